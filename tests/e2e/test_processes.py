"""What needs processes of its own: stock vLLM, two ranks, refused starts."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.conftest import ARCHITECTURES, NO_CLS, WriteCheckpoint
from tests.test_refusals import ENGINES

ONE, TWO = [(100, 80)], [(56, 150), (112, 112)]
BAD_VALUE = (
    {"hf_overrides": {"hired_budget": 1.5}},
    r"hired_budget=1\.5 is not allowed: a number in \(0, 1\]",
)
REQUESTS = [(ONE, None), (TWO, None), ([(171, 152)], None)]


def start(
    folder: Path, job: dict[str, Any], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `tests.engine` on a job in a process of its own."""
    (folder / "job.json").write_text(json.dumps(job))
    return subprocess.run(
        [sys.executable, "-m", "tests.engine", folder / "job.json", folder / "out.pt"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def answer(folder: Path, job: dict[str, Any], **environment: str) -> dict[str, Any]:
    done = start(folder, job, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    return result


MakeStock = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> MakeStock:
    """What vLLM without the plugin answers to `REQUESTS`."""

    @cache
    def stocks(checkpoint: Path) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("stock")
        return answer(folder, parity_job(checkpoint), VLLM_PLUGINS="")

    return stocks


def parity_job(checkpoint: Path) -> dict[str, Any]:
    return {
        "engine": {"model": str(checkpoint)},
        "requests": REQUESTS,
        "max_tokens": 4,
    }


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
    stock: MakeStock,
    tmp_path: Path,
    name: str,
    budget: str,
) -> None:
    """Same placeholders, hashes and logits, bit for bit."""
    checkpoint = make_checkpoint(**(ARCHITECTURES | NO_CLS)[name])
    expected = stock(checkpoint)
    assert len(expected["outputs"]) == 3
    assert len(expected["outputs"][0]["logits"][0]) > 256
    job = parity_job(checkpoint)
    if budget == "of 1.0 asked":
        job["requests"] = [(sizes, 1.0) for sizes, _ in REQUESTS]
    elif budget == "of 1.0 by default":
        job["engine"]["hf_overrides"] = {"hired_budget": 1.0}
    assert answer(tmp_path, job) == expected


def test_two_ranks_keep_what_one_keeps(any_checkpoint: Path, tmp_path: Path) -> None:
    """Tensor parallel: same indices on every rank, same greedy text."""
    job: dict[str, Any] = {
        "engine": {"model": str(any_checkpoint), "hf_overrides": {"hired_budget": 0.2}},
        "requests": REQUESTS,
        "max_tokens": 12,
        "digest": True,
    }
    alone = answer(tmp_path, job)
    job["engine"]["tensor_parallel_size"] = 2
    pair = answer(
        tmp_path,
        job,
        VLLM_CPU_OMP_THREADS_BIND="0|1",
        VLLM_ALLOW_INSECURE_SERIALIZATION="1",
    )
    assert len(alone["digests"]) == 1
    assert pair["digests"] == alone["digests"] * 2
    assert pair["inputs"] == alone["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_explicit_architecture_fails_without_the_plugin(
    make_checkpoint: WriteCheckpoint, tmp_path: Path, name: str
) -> None:
    checkpoint = make_checkpoint(**ARCHITECTURES[name])
    (upstream,) = AutoConfig.from_pretrained(checkpoint).architectures
    job = {
        "engine": {
            "model": str(checkpoint),
            "hf_overrides": {
                "architectures": [f"Hired{upstream}"],
                "hired_budget": 0.2,
            },
        },
        "requests": [(ONE, None)],
        "max_tokens": 1,
    }
    with_plugin = answer(tmp_path, job)
    assert with_plugin["inputs"][0][1]["image"][0].length < 100
    (tmp_path / "out.pt").unlink()
    without = start(tmp_path, job, VLLM_PLUGINS="")
    assert without.returncode != 0
    assert f"Hired{upstream}" in without.stderr
    assert not (tmp_path / "out.pt").exists()


STARTED = (
    "a bad value",
    "among processor kwargs",
    "in the text config",
    "a compiled tower",
)


@pytest.mark.parametrize("name", STARTED)
def test_refusals_at_start_up_reach_the_user(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """In a second or two, before any engine process; more in test_engine_args."""
    options, said = (ENGINES | {"a bad value": BAD_VALUE})[name]
    job = {
        "engine": {"model": str(checkpoint), **options},
        "requests": [],
        "max_tokens": 1,
    }
    done = start(tmp_path, job)
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr[-2000:]
    assert "EngineCore" not in done.stderr


@pytest.mark.parametrize("module", ["torch", "vllm", "transformers"])
def test_importing_the_package_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, vllm_hired; print({module!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
