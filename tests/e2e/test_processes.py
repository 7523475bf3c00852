"""What needs processes of its own: stock vLLM, two ranks, refused starts."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.conftest import ARCHITECTURES, NO_CLS, MakeEngine, WriteCheckpoint
from tests.engine import answers, kept_digest, prompt
from tests.processes import (
    ENGINE_APART,
    STOCK,
    TWO_RANKS,
    Processes,
    Sizes,
    answer,
    refusal,
)
from tests.test_refusals import ENGINES

ONE: Sizes = [(100, 80)]
TWO: Sizes = [(56, 150), (112, 112)]
IMAGES = [ONE, TWO, [(171, 152)]]
REQUESTS: list[tuple[Sizes, float | None]] = [(sizes, None) for sizes in IMAGES]
BAD_VALUE = (
    {"hf_overrides": {"hired_budget": 1.5}},
    r"hired_budget=1\.5 is not allowed: a number in \(0, 1\]",
)

Stock = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def stock(processes: Processes) -> Stock:
    """What vLLM without the plugin answers to `REQUESTS`."""

    @cache
    def stocks(checkpoint: Path) -> dict[str, Any]:
        return processes(STOCK, answer, str(checkpoint), REQUESTS)

    return stocks


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        *product(ARCHITECTURES, ["unset", "of 1.0 asked", "of 1.0 by default"]),
        # Where every setting is refused.
        *product(NO_CLS, ["unset", "of 1.0 asked"]),
    ],
)
def test_without_a_budget_everything_is_stocks(
    make_checkpoint: WriteCheckpoint,
    make_engine: MakeEngine,
    stock: Stock,
    name: str,
    budget: str,
) -> None:
    """Same placeholders, hashes and logits, bit for bit."""
    checkpoint = make_checkpoint(**(ARCHITECTURES | NO_CLS)[name])
    expected = stock(checkpoint)
    assert len(expected["outputs"]) == 3
    assert len(expected["outputs"][0]["logits"][0]) > 256
    settings = {"hired_budget": 1.0} if budget == "of 1.0 by default" else {}
    llm = make_engine(checkpoint, **settings)
    asked = 1.0 if budget == "of 1.0 asked" else None
    requests = [prompt(*sizes, budget=asked) for sizes in IMAGES]
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    assert answers(llm, requests, 4) == expected


def test_two_ranks_keep_what_one_keeps(
    any_checkpoint: Path, make_engine: MakeEngine
) -> None:
    """Tensor parallel: same indices on every rank, same greedy text."""
    llm = make_engine(any_checkpoint, hired_budget=0.2)
    alone = answers(llm, [prompt(*sizes) for sizes in IMAGES], 12)
    # Ranks that wait for work keep their cores busy.
    with Processes() as processes:
        pair = processes(
            TWO_RANKS,
            answer,
            str(any_checkpoint),
            REQUESTS,
            12,
            digest=kept_digest,
            tensor_parallel_size=2,
            hf_overrides={"hired_budget": 0.2},
        )
    (digest,) = llm.apply_model(kept_digest)
    assert pair["digests"] == [digest] * 2
    assert pair["inputs"] == alone["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_explicit_architecture_fails_without_the_plugin(
    make_checkpoint: WriteCheckpoint,
    make_engine: MakeEngine,
    processes: Processes,
    name: str,
) -> None:
    checkpoint = make_checkpoint(**ARCHITECTURES[name])
    (upstream,) = AutoConfig.from_pretrained(checkpoint).architectures
    overrides = {"architectures": [f"Hired{upstream}"], "hired_budget": 0.2}
    llm = make_engine(checkpoint, hf_overrides=overrides)
    (_, placeholders), *_ = answers(llm, [prompt(*ONE)], 1)["inputs"]
    assert placeholders["image"][0].length < 100
    said = processes(STOCK, refusal, str(checkpoint), hf_overrides=overrides)
    assert f"Hired{upstream}" in said


STARTED = (
    "a bad value",
    "among processor kwargs",
    "in the text config",
    "a compiled tower",
)


@pytest.mark.parametrize("name", STARTED)
def test_refusals_at_start_up_reach_the_user(
    checkpoint: Path, processes: Processes, name: str
) -> None:
    """Before any engine process; more in test_engine_args."""
    options, said = (ENGINES | {"a bad value": BAD_VALUE})[name]
    heard = processes(ENGINE_APART, refusal, str(checkpoint), **options)
    assert re.search(said, heard), heard


@pytest.mark.parametrize("module", ["torch", "vllm", "transformers"])
def test_importing_the_package_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, vllm_hired; print({module!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
