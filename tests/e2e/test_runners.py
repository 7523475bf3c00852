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

from tests.qwen import QWEN3_IS_HFS
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
        "test_qwen_vl": ["equals_hf_fed_what_is_to_be_kept[qwen2_5_vl]"],
    },
    "v1-compiled": {
        "test_generation": [
            "equals_hf_fed_the_oracles_embeddings[llava_next-mixed prompts-0.2]",
            "one_batch_of_all_kinds[llava_next]",
        ],
        "test_processes": ["without_a_budget_everything_is_stocks[llava_next-unset]"],
        "test_qwen_vl": ["equals_hf_fed_what_is_to_be_kept[qwen3_vl]"],
    },
}
"""By the names of `tests.runners.RUNNERS`, and by file of this folder."""

MATRIX = {
    runner: {
        "test_qwen_vl": [
            f"{test}[{family}]"
            for test in (
                "equals_hf_fed_what_is_to_be_kept",
                "an_error_in_the_positions_is_seen",
                "prefix_cache_keeps_budgets_apart",
            )
            for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
        ],
        "test_qwen_processes": [
            f"without_a_budget_everything_is_stocks[{family}]"
            for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
        ],
        "test_internvl": [
            f"{test}[{model_type}{case}]"
            for test, case in (
                ("equals_hf_fed_what_is_to_be_kept", ""),
                ("prefix_cache_keeps_budgets_apart", ""),
                ("without_a_budget_everything_is_stocks", "-1.0"),
            )
            for model_type in ("internvl", "internvl_chat")
        ],
    }
    for runner in TESTS
}
"""What `make test-all` runs besides."""


# Many engines start, one after another.
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("runner", "listed"),
    [
        *TESTS.items(),
        *(
            pytest.param(runner, listed, marks=pytest.mark.matrix)
            for runner, listed in MATRIX.items()
        ),
    ],
    ids=[*TESTS, *(f"{runner} matrix" for runner in MATRIX)],
)
def test_passes_as_on_model_runner_v1(
    runner: str, listed: dict[str, list[str]], tmp_path: Path
) -> None:
    folder = Path(__file__).parent
    tests = [
        f"{folder / file}.py::test_{name}"
        for file, names in listed.items()
        for name in names
        if QWEN3_IS_HFS or "qwen3_vl" not in name
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--quiet", "--timeout=600"),
            *("-m", "matrix or not matrix"),
            *tests,
        ],
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
