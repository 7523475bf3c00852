"""The counters through vLLM's real processor; the server's `/metrics` is in e2e."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import (
    MultiModalProcessorOnlyCache,
    ShmObjectStoreSenderCache,
)

from tests.engine import noise_image
from tests.front_end import FrontEnd
from vllm_hired.engine.metrics import Metrics, metrics

NAMES = ("images", "kept", "dropped")


def values() -> dict[str, float]:
    totals = {}
    for name in NAMES:
        (family,) = getattr(metrics(), name).collect()
        (total,) = (s.value for s in family.samples if s.name.endswith("_total"))
        totals[name] = total
    return totals


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """What the counters of this process count inside the block, filled at its end."""
    before, counts = values(), dict[str, float]()
    yield counts
    counts |= {name: after - before[name] for name, after in values().items()}


@pytest.fixture(scope="module")
def front_end(any_checkpoint: Path) -> FrontEnd:
    return FrontEnd(any_checkpoint)


@contextmanager
def cache_of(kind: str, front_end: FrontEnd) -> Iterator[Any]:
    """One of vLLM's caches of processed images in the front end."""
    if kind == "shm":
        front_end.config.get_multimodal_config().mm_processor_cache_gb = 0.01
        ranks = SimpleNamespace(world_size=1)
        cache = ShmObjectStoreSenderCache(
            SimpleNamespace(model_config=front_end.config, parallel_config=ranks)
        )
        yield cache
        cache.close()
    else:
        yield MultiModalProcessorOnlyCache(front_end.config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processor_only", "shm"])
def test_images_count_once_a_request_cached_or_not(
    front_end: FrontEnd, kind: str
) -> None:
    images = [noise_image(112, 112), noise_image(60, 30)]
    kept = sum(front_end.expected(image, "0.2") for image in images)
    stock = sum(front_end.expected(image, "1") for image in images)
    with cache_of(kind, front_end) as cache:
        for _ in range(2):
            with counted() as counts:
                front_end(*images, budget=0.2, cache=cache)
            assert counts == {"images": 2, "kept": kept, "dropped": stock - kept}
        with counted() as whole:
            front_end(*images, budget=1.0, cache=cache)
    assert whole == {"images": 2, "kept": stock, "dropped": 0}


def test_what_does_not_count(front_end: FrontEnd) -> None:
    """vLLM's dummy images, our own, and a request that is refused."""
    with counted() as counts:
        front_end.processor.get_dummy_mm_inputs({"image": 1})
        FrontEnd(Path(front_end.config.model), hf_overrides={"hired_budget": 0.2})
        with pytest.raises(VLLMValidationError, match="hired_budget"):
            front_end(noise_image(60, 60), budget=2.0)
    assert counts == {"images": 0, "kept": 0, "dropped": 0}


def test_the_buckets_are_those_of_the_docs() -> None:
    docs = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    (listed,) = re.findall(r"buckets end at ([^.]*) tokens", docs)
    (family,) = metrics().kept_per_image.collect()
    bounds = [s.labels["le"] for s in family.samples if s.name.endswith("_bucket")]
    assert [float(bound) for bound in bounds[:-1]] == [
        float(number) for number in re.findall(r"\d+", listed)
    ]


def test_an_error_in_a_counter_reaches_nobody(
    front_end: FrontEnd,
    monkeypatch: pytest.MonkeyPatch,
    caplog_vllm: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such counter")

    monkeypatch.setattr(Metrics, "count_image", fail)
    image = noise_image(60, 60)
    inputs = front_end(image, budget=0.2)
    assert front_end.placeholders(inputs) == [front_end.expected(image, "0.2")]
    assert "could not count" in caplog_vllm.text
