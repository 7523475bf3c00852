"""The engine's environment, and what tests share: checkpoints, images, engines.

vLLM takes long to import, so only the processes that run tests do, and not the one that
hands tests out to them.
"""

from __future__ import annotations

import os
import shutil

# Before vLLM, whose model runner it picks.
from tests.runners import CORES

os.environ |= {
    # In this process, so that tests can look inside.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": CORES,
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}

import logging
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from random_checkpoints.internvl import write_internvl_checkpoint
from random_checkpoints.internvl_configs import small_internvl
from random_checkpoints.llava import small, write_checkpoint
from random_checkpoints.qwen_vl import write_qwen_checkpoint
from random_checkpoints.qwen_vl_configs import small_qwen
from vllm_hired.config import SETTINGS
from vllm_hired.errors import HiredConfigError

if TYPE_CHECKING:
    from vllm import LLM

    from tests.processes import Processes
    from tests.reference import Reference

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llava_next": {},
    "llava": {"architecture": "llava"},
}
"""What tests that hold for every architecture run over: changes to a small shape."""

NO_CLS = {
    tower: {"architecture": "llava", "tower": tower, "feature_strategy": "full"}
    for tower in ("siglip", "pixtral")
}
"""Towers that HiRED cannot use, and that must work as ever without a budget."""

INTERNVL_FORMATS = ("internvl", "internvl_chat")
"""Model types of InternVL in HF's format and in that with remote code."""

WriteCheckpoint = Callable[..., Path]
WriteQwenCheckpoint = Callable[[str], Path]
WriteInternVLCheckpoint = Callable[..., Path]
MakeEngine = Callable[..., "LLM"]


def pytest_report_header() -> str:
    """Says it where one release's Python runs on another's kernels."""
    return f"vLLM {version('vllm')}"


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
def make_qwen(tmp_path_factory: pytest.TempPathFactory) -> WriteQwenCheckpoint:
    """`make_qwen("qwen3_vl")`: the folder of a small checkpoint."""

    @cache
    def make(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{model_type}_")
        return write_qwen_checkpoint(folder, small_qwen(model_type))

    return make


@pytest.fixture(scope="session")
def make_internvl(tmp_path_factory: pytest.TempPathFactory) -> WriteInternVLCheckpoint:
    """`make_internvl("internvl_chat", backbone="qwen3")`: likewise."""

    @cache
    def make(model_type: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(f"{model_type}_")
        return write_internvl_checkpoint(folder, small_internvl(model_type, **changes))

    return make


@pytest.fixture(scope="module", params=INTERNVL_FORMATS)
def internvl_type(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def internvl(make_internvl: WriteInternVLCheckpoint, internvl_type: str) -> Path:
    """A small checkpoint of each format."""
    return make_internvl(internvl_type)


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: WriteCheckpoint) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_checkpoint(
    make_checkpoint: WriteCheckpoint, request: pytest.FixtureRequest
) -> Path:
    """Of each architecture in turn."""
    return make_checkpoint(**ARCHITECTURES[request.param])


@pytest.fixture(scope="session")
def make_engine() -> MakeEngine:
    """`make_engine(checkpoint, hired_budget=0.2, ...)`: an engine in this process.

    The same arguments give the same engine.
    """
    from tests.engine import start_engine

    engines: dict[str, LLM] = {}

    def make(checkpoint: Path, **changes: Any) -> LLM:
        key = repr((checkpoint, sorted(changes.items())))
        if key not in engines:
            overrides = {k: changes.pop(k) for k in [*changes] if k in SETTINGS}
            engines[key] = start_engine(
                str(checkpoint), **{"hf_overrides": overrides, **changes}
            )
        return engines[key]

    return make


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """`processes(STOCK, answer, ...)`: calls a function in another process."""
    from tests.processes import Processes

    with Processes() as processes:
        yield processes


@pytest.fixture(scope="session")
def engine(make_engine: MakeEngine, checkpoint: Path) -> LLM:
    """The shared engine: default 0.2, requests up to 1.0, both caches on."""
    return make_engine(checkpoint, hired_budget=0.2, hired_max_budget=1.0)


@pytest.fixture(scope="session")
def any_engine(make_engine: MakeEngine, any_checkpoint: Path) -> LLM:
    """The shared engine of each architecture."""
    return make_engine(any_checkpoint, hired_budget=0.2, hired_max_budget=1.0)


@pytest.fixture(scope="session")
def reference(any_checkpoint: Path) -> Reference:
    from tests.reference import Reference

    return Reference(any_checkpoint)


@pytest.fixture
def caplog_vllm(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """`caplog` for vLLM's logger, which does not propagate, at level INFO."""
    logger = logging.getLogger("vllm")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield caplog
    logger.setLevel(level)
    logger.removeHandler(caplog.handler)


expect_refusal = partial(pytest.raises, HiredConfigError)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path is not None, f"`make test` installs one of {BROWSERS}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


SLOW_FIXTURES = {"make_engine", "server", "browser", "distributions"}
"""What uses one, searches for counterexamples or lives in `tests/e2e` is marked `slow`;
a few mark themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    end_to_end = Path(__file__).parent / "e2e"
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        if (
            SLOW_FIXTURES.intersection(item.fixturenames)
            or getattr(item.obj, "is_hypothesis_test", False)
            or end_to_end in item.path.parents
        ):
            item.add_marker(pytest.mark.slow)
    # Where two processes share the tests, what is left to the end should be short.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
