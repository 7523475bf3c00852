"""Budgets by the load in vLLM's front end; over HTTP they are in e2e."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.metrics.stats import SchedulerStats

from benchmarks.bursts import recorded_loads
from tests.conftest import WriteCheckpoint, WriteQwenCheckpoint, expect_refusal
from tests.engine import noise_image
from tests.front_end import FrontEnd, ServingFrontEnd, num_kept
from tests.qwen import QwenFrontEnd
from vllm_hired.adaptive import FRESH_S, Load
from vllm_hired.engine.load import LoadLogger, wrap_async_llm
from vllm_hired.engine.metrics import adaptive_images

FIXED = {"hired_budget": 0.1, "hired_max_budget": 0.8, "hired_detail_low": 0.3}
ADAPTIVE = FIXED | {"hired_adaptive": True}
LADDER = ["0.8", "0.4", "0.2", "0.1"]


class ServingQwenFrontEnd(QwenFrontEnd, ServingFrontEnd):
    """That of `vllm serve`."""


@pytest.fixture(scope="module", params=["llava_next", "qwen3_vl"])
def pair(
    make_checkpoint: WriteCheckpoint,
    make_qwen: WriteQwenCheckpoint,
    request: pytest.FixtureRequest,
) -> tuple[Any, Any]:
    """Front ends of the same checkpoint, with budgets by the load and without."""
    qwen = request.param != "llava_next"
    folder = make_qwen(request.param) if qwen else make_checkpoint()
    make = ServingQwenFrontEnd if qwen else ServingFrontEnd
    limit = {"image": 3}
    return (
        make(folder, hf_overrides=ADAPTIVE, limit_mm_per_prompt=limit),
        make(folder, hf_overrides=FIXED, limit_mm_per_prompt=limit),
    )


def chosen() -> dict[str, float]:
    """Images by the budget that the load chose, so far."""
    (family,) = adaptive_images().collect()
    return {
        sample.labels["budget"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def test_images_get_the_budgets_of_the_ladder(pair: tuple[Any, Any]) -> None:
    """By the load, unless they are known or a number is asked for; and their hashes and
    counts are those of the same number asked for."""
    adaptive, fixed = pair
    images = [noise_image(112, 112, seed) for seed in range(8)]
    before = chosen()

    def check(awaiting: int, expected: list[Any], *places: int, **given: Any) -> None:
        adaptive.processor.adaptive.load = lambda: Load(awaiting=awaiting)
        own = [images[place] for place in places]
        found = adaptive(*own, **given)
        same = fixed(*own, budget=[float(budget) for budget in expected])
        assert found["mm_hashes"] == same["mm_hashes"]
        assert found["prompt_token_ids"] == same["prompt_token_ids"]
        assert num_kept(found) == num_kept(same)

    check(0, ["0.8"], 0)
    check(4, ["0.4"], 1)
    check(100, ["0.8", "0.1", "0.4"], 0, 2, 1)
    check(6, ["0.2"], 3)
    check(0, ["0.1", "0.1"], 2, 2)
    # A number, a list and null, by which `detail` comes too.
    check(100, ["0.5", "0.5"], 0, 4, budget=0.5)
    check(100, ["0.3", "0.1", "0.8"], 0, 5, 6, budget=[0.3, None, 0.8])
    check(0, ["0.8", "0.1"], 4, 5)
    check(0, ["0.8"], 6, budget=[None])

    counted = {budget: n - before.get(budget, 0) for budget, n in chosen().items()}
    assert counted == {"0.8": 4, "0.4": 2, "0.2": 1, "0.1": 5}


def test_the_step_is_in_the_log(
    pair: tuple[Any, Any], caplog_vllm: pytest.LogCaptureFixture
) -> None:
    adaptive, _ = pair
    logging.getLogger("vllm").setLevel(logging.DEBUG)
    adaptive.processor.adaptive.load = lambda: Load(awaiting=7, waiting=9)
    adaptive(noise_image(100, 60))
    assert {*recorded_loads(caplog_vllm.text)} == {(7, 9, 0.2)}


def test_without_the_setting_nothing_is_chosen(pair: tuple[Any, Any]) -> None:
    _, fixed = pair
    assert fixed.processor.adaptive is None
    before = chosen()
    fixed(noise_image(112, 112))
    assert chosen() == before


def test_embeddings_stay_whole(checkpoint: Path) -> None:
    front_end = ServingFrontEnd(
        checkpoint, hf_overrides=ADAPTIVE, enable_mm_embeds=True
    )
    front_end.processor.adaptive.load = lambda: pytest.fail("asked for the load")
    width = front_end.hf_config.text_config.hidden_size
    inputs = front_end.processor(
        "<image>",
        front_end.processor.info.parse_mm_data({"image": torch.zeros(1, 30, width)}),
    )
    assert front_end.placeholders(inputs) == [30]


def test_names_of_images_stand_for_them(pair: tuple[Any, Any]) -> None:
    """An image that the client names by a uuid is known by it."""
    processor = pair[0].processor

    def named(awaiting: int, name: str, seed: int) -> int:
        processor.adaptive.load = lambda: Load(awaiting=awaiting)
        inputs = processor(
            pair[0].image_text,
            processor.info.parse_mm_data({"image": noise_image(112, 112, seed)}),
            mm_uuid_items={"image": [name]},
        )
        return num_kept(inputs)[0]

    assert named(100, "first", 20) == named(0, "first", 20) < named(0, "second", 20)


def test_a_process_that_knows_no_load_refuses(checkpoint: Path) -> None:
    front_end = ServingFrontEnd(checkpoint, hf_overrides=ADAPTIVE)
    with pytest.raises(VLLMValidationError, match="has no engine whose load") as why:
        front_end(noise_image(60, 60))
    assert why.value.parameter == "hired_adaptive"
    front_end(noise_image(60, 60), budget=0.4)


TRANSFER = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
ENCODERS = {"ec_connector": "ECExampleConnector", "ec_role": "ec_producer"}


@pytest.mark.parametrize(
    ("front_end", "options", "said"),
    [
        (FrontEnd, {}, "not offline"),
        (FrontEnd, {"disable_log_stats": False}, "not offline"),
        (ServingFrontEnd, {"disable_log_stats": True}, "not with --disable-log-stats"),
        (
            ServingFrontEnd,
            {"mm_processor_cache_gb": 0, "enable_prefix_caching": False},
            "not with --mm-processor-cache-gb 0 and --no-enable-prefix-caching",
        ),
        (ServingFrontEnd, {"kv_transfer_config": TRANSFER}, "--kv-transfer-config"),
        (ServingFrontEnd, {"ec_transfer_config": ENCODERS}, "--ec-transfer-config"),
    ],
)
def test_where_it_is_refused(
    checkpoint: Path, front_end: type[FrontEnd], options: dict[str, Any], said: str
) -> None:
    with expect_refusal(match=f"hired_adaptive=True is not allowed: .*{said}"):
        front_end(checkpoint, hf_overrides=ADAPTIVE, **options)
    front_end(checkpoint, hf_overrides=FIXED, **options)


def test_a_vllm_without_what_tells_the_load(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: Any) -> None:
        self.is_awaiting = True

    monkeypatch.setattr(RequestState, "__init__", other)
    with expect_refusal(match="RequestState.__init__ knows no attribute is_prefilling"):
        ServingFrontEnd(checkpoint, hf_overrides=ADAPTIVE)
    ServingFrontEnd(checkpoint, hf_overrides=FIXED)


def test_the_load_is_what_reached_this_front_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    requests: dict[str, Any] = {}
    load_logger = LoadLogger(SimpleNamespace(request_states=requests), num_engines=2)
    assert load_logger.load() == Load(0, 0, 2)
    requests |= {
        name: SimpleNamespace(is_prefilling=name != "decoding")
        for name in ("waiting", "prefilling", "decoding")
    }
    load_logger.record(SchedulerStats(num_running_reqs=9, num_waiting_reqs=4), None)
    load_logger.record(None, None, None, engine_idx=0)
    load_logger.record(SchedulerStats(num_waiting_reqs=3), None, None, engine_idx=1)
    assert load_logger.load() == Load(awaiting=2, waiting=7, engines=2)
    load_logger.record(SchedulerStats(), None, engine_idx=0)
    assert load_logger.load() == Load(awaiting=2, waiting=3, engines=2)
    clock = FRESH_S + 1
    requests.clear()
    assert load_logger.load() == Load(0, 0, 2)


@pytest.fixture
def async_llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`AsyncLLM` with another `__init__`, which starts no engine, wrapped."""

    def start(self: Any, adaptive: Any, log_stats: bool) -> None:
        self.renderer = SimpleNamespace(
            mm_processor=SimpleNamespace(adaptive=adaptive), shutdown=lambda: None
        )
        self.output_processor = SimpleNamespace(request_states={})
        self.engine_core = SimpleNamespace(
            engine_ranks_managed=[0, 1, 2], shutdown=lambda timeout: None
        )
        self.logger_manager = SimpleNamespace(stat_loggers=[]) if log_stats else None

    monkeypatch.setattr(AsyncLLM, "__init__", start)
    monkeypatch.setattr(AsyncLLM, "__del__", lambda self: None)
    wrap_async_llm.__wrapped__()
    return AsyncLLM


def test_an_engine_client_tells_its_load(async_llm: Any) -> None:
    adaptive = SimpleNamespace(load=None)
    (load_logger,) = async_llm(adaptive, True).logger_manager.stat_loggers
    load_logger.record(SchedulerStats(num_waiting_reqs=6), None, engine_idx=2)
    assert adaptive.load() == Load(awaiting=0, waiting=6, engines=3)
    assert async_llm(None, True).logger_manager.stat_loggers == []
    assert async_llm(None, False).logger_manager is None
    with expect_refusal(match="--disable-log-stats"):
        async_llm(SimpleNamespace(load=None), False)
