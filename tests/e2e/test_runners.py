"""The other ways in which users' engines run: which tests run so, and that they pass.

Each row starts pytest anew, since a process has one way to run its engines; every
engine in it is checked to run so. All other tests run on Model Runner V1, eagerly.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runners import VARIABLE

TESTS = {
    "v2": {
        "test_generation": [
            # Several prompts with several images against HF.
            "equals_hf_fed_the_oracles_embeddings[llava_next-mixed prompts-0.2]",
            "one_batch_of_all_kinds[llava_next]",
            "prefix_cache_keeps_budgets_apart[llava_next]",
            "chunked_prefill_changes_nothing[llava_next-options0]",
        ],
        "test_lora": ["equals_merged_weights[llava_next]"],
        "test_processes": ["without_a_budget_everything_is_stocks[llava_next-unset]"],
    },
    "v1-compiled": {
        "test_generation": [
            "equals_hf_fed_the_oracles_embeddings[llava_next-mixed prompts-0.2]",
            "one_batch_of_all_kinds[llava_next]",
        ],
        "test_processes": ["without_a_budget_everything_is_stocks[llava_next-unset]"],
    },
}
"""By the names of `tests.runners.RUNNERS`, and by file of this folder."""


# Many engines start, one after another.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("runner", TESTS)
def test_passes_as_on_model_runner_v1(runner: str, tmp_path: Path) -> None:
    folder = Path(__file__).parent
    tests = [
        f"{folder / file}.py::test_{name}"
        for file, names in TESTS[runner].items()
        for name in names
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "--timeout=600", *tests],
        env=os.environ
        | {
            VARIABLE: runner,
            # Compiled here and now, not found in a cache.
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        },
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    # Nothing failed, was skipped or not found.
    passed = rf"^{len(tests)} passed(, \d+ warnings?)? in "
    assert re.search(passed, done.stdout, re.MULTILINE), done.stdout[-5000:]
