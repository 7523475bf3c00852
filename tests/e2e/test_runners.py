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

from tests.runners import RUNNERS, VARIABLE

GENERATION = "tests/e2e/test_generation.py::test_"
STOCK = (
    "tests/e2e/test_processes.py"
    "::test_without_a_budget_everything_is_stocks[llava_next-unset]"
)
TESTS = {
    "v2": [
        # Several prompts with several images against HF; budgets of requests in one
        # batch; the prefix cache; chunked prefill.
        f"{GENERATION}equals_hf_fed_the_oracles_embeddings[llava_next-mixed prompts-0.2]",
        f"{GENERATION}one_batch_of_all_kinds[llava_next]",
        f"{GENERATION}prefix_cache_keeps_budgets_apart[llava_next]",
        f"{GENERATION}chunked_prefill_changes_nothing[llava_next-options0]",
        "tests/e2e/test_lora.py::test_equals_merged_weights[llava_next]",
        "tests/e2e/test_pooling.py::test_embeddings_equal_hfs[llava_next]",
        STOCK,
    ],
    "v1-compiled": [
        f"{GENERATION}equals_hf_fed_the_oracles_embeddings[llava_next-mixed prompts-0.2]",
        f"{GENERATION}one_batch_of_all_kinds[llava_next]",
        f"{GENERATION}chunked_prefill_changes_nothing[llava_next-options0]",
        STOCK,
    ],
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("runner", TESTS)
def test_runs_as_on_model_runner_v1(runner: str, tmp_path: Path) -> None:
    assert runner in RUNNERS
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "--timeout=600", *TESTS[runner]],
        env=os.environ
        | {
            VARIABLE: runner,
            # Compiled here and now, not found in a cache.
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    # Nothing failed, was skipped or not found.
    passed = rf"^{len(TESTS[runner])} passed(, \d+ warnings?)? in "
    assert re.search(passed, done.stdout, re.MULTILINE), done.stdout[-5000:]
