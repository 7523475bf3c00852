"""The engine's environment, and what tests share: checkpoints, images, engines."""

import os

os.environ |= {
    # In this process, so that tests can look inside.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from benchmarks.checkpoints import small, write_checkpoint
from tests.engine import ENGINE_OPTIONS
from vllm_hired.config import HiredConfigError

WriteCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> WriteCheckpoint:
    """`make_checkpoint(backbone="qwen2")`: the folder of a small checkpoint."""
    folders: dict[str, Path] = {}

    def make(**changes: Any) -> Path:
        key = repr(sorted(changes.items()))
        if key not in folders:
            folder = tmp_path_factory.mktemp("checkpoint")
            folders[key] = write_checkpoint(folder, small(**changes))
        return folders[key]

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: WriteCheckpoint) -> Path:
    return make_checkpoint()


@contextmanager
def running_engine(checkpoint: Path, **options: Any) -> Iterator[LLM]:
    """An engine in this process."""
    llm = LLM(str(checkpoint), **(ENGINE_OPTIONS | options))
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Iterator[LLM]:
    """The shared engine: default 0.2, requests up to 1.0, both caches on."""
    overrides = {"hired_budget": 0.2, "hired_max_budget": 1.0}
    with running_engine(checkpoint, hf_overrides=overrides) as llm:
        yield llm


expect_refusal = partial(pytest.raises, HiredConfigError)
