"""The front end through vLLM's real processor: counts, hashes, caches, refusals."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from vllm.config import MultiModalConfig
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item

from random_checkpoints.llava import REAL_PINPOINTS
from tests.conftest import NO_CLS, WriteCheckpoint, expect_refusal
from tests.engine import noise_image
from tests.front_end import FrontEnd, num_kept
from tests.test_algorithm import BUG_SIZES


def cache_for(front_end: FrontEnd) -> MultiModalProcessorOnlyCache:
    multimodal: MultiModalConfig = front_end.config.multimodal_config
    assert multimodal.mm_processor_cache_gb > 0
    return MultiModalProcessorOnlyCache(front_end.config)


@pytest.fixture(scope="module")
def front_end(checkpoint: Path) -> FrontEnd:
    return FrontEnd(checkpoint, limit_mm_per_prompt={"image": 4})


@pytest.fixture(scope="module")
def any_front_end(any_checkpoint: Path) -> FrontEnd:
    return FrontEnd(any_checkpoint, limit_mm_per_prompt={"image": 4})


@pytest.fixture(scope="module")
def real_front_end(make_checkpoint: WriteCheckpoint) -> FrontEnd:
    """With LLaVA-NeXT's own vision layout."""
    return FrontEnd(
        make_checkpoint(tile_size=336, patch_size=14, pinpoints=REAL_PINPOINTS)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), BUG_SIZES)
def test_counts_on_sizes_that_upstream_got_wrong(
    real_front_end: FrontEnd, height: int, width: int
) -> None:
    image = noise_image(width, height)
    for budget in ("0.2", "0.4", "1.0"):
        inputs = real_front_end(image, budget=float(budget))
        counts = real_front_end.placeholders(inputs)
        assert counts == [real_front_end.expected(image, budget)]
        if budget != "1.0":
            assert num_kept(inputs) == counts


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors],
)
@given(data=st.data())
def test_counts_of_any_images_at_any_budget_cached_or_not(
    any_front_end: FrontEnd, data: st.DataObject
) -> None:
    """Budgets mixed over one shared cache: the second call answers from it."""
    front_end = any_front_end
    cache = cache_for(front_end)
    sides = st.integers(20, 200)
    images = [
        noise_image(*data.draw(st.tuples(sides, sides)), seed)
        for seed in range(data.draw(st.integers(1, 3)))
    ]
    for budget in data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=3)):
        rho = f"{budget / 100}"
        expected = [front_end.expected(image, rho) for image in images]
        for _ in range(2):
            inputs = front_end(*images, budget=float(rho), cache=cache)
            assert front_end.placeholders(inputs) == expected
        uncached = front_end(*images, budget=float(rho))
        assert front_end.placeholders(uncached) == expected
        if budget < 100:
            assert num_kept(uncached) == expected
        assert uncached["mm_hashes"] == inputs["mm_hashes"]


def test_a_cached_image_beside_a_new_one(front_end: FrontEnd) -> None:
    cache = cache_for(front_end)
    old, new = noise_image(56, 56, 1), noise_image(150, 60, 2)
    front_end(old, budget=0.3, cache=cache)
    counts = front_end.placeholders(front_end(new, old, budget=0.3, cache=cache))
    assert counts == [front_end.expected(new, "0.3"), front_end.expected(old, "0.3")]


def test_images_carry_their_own_tiles_alone(front_end: FrontEnd) -> None:
    images = [noise_image(112, 56), noise_image(112, 112)]
    inputs = front_end(*images, budget=0.5)
    tiles = [
        item["pixel_values"].data.shape[0] for item in inputs["mm_kwargs"]["image"]
    ]
    assert tiles == [3, 5]


def test_without_dropping_inputs_are_stocks(any_checkpoint: Path) -> None:
    """Same hashes, same fields, same pixels whether unset, 1.0, or asked for."""
    image = noise_image(100, 80)
    plain = FrontEnd(any_checkpoint)
    unset = plain(image)
    sizes = [] if plain.hf_config.model_type == "llava" else ["image_sizes"]
    for same in (
        plain(image, budget=1.0),
        FrontEnd(any_checkpoint, hf_overrides={"hired_budget": 1.0})(image),
    ):
        assert same["mm_hashes"] == unset["mm_hashes"]
        assert same["prompt_token_ids"] == unset["prompt_token_ids"]
        (item,), (stock,) = same["mm_kwargs"]["image"], unset["mm_kwargs"]["image"]
        assert set(item) == set(stock) == {"pixel_values", *sizes}
        assert torch.equal(item["pixel_values"].data, stock["pixel_values"].data)


def test_hashes_tell_engine_defaults_and_requests_apart(any_checkpoint: Path) -> None:
    image = noise_image(100, 80)
    at = {
        budget: FrontEnd(any_checkpoint, hf_overrides={"hired_budget": budget})(image)
        for budget in (0.2, 0.4, 1.0)
    }
    hashes = [tuple(inputs["mm_hashes"]["image"]) for inputs in at.values()]
    assert len(set(hashes)) == 3
    asked = FrontEnd(any_checkpoint)(image, budget=0.2)
    assert asked["mm_hashes"] == at[0.2]["mm_hashes"]


def test_the_processor_is_loaded_once_for_all_budgets(front_end: FrontEnd) -> None:
    info = front_end.processor.info
    processors = {id(info.get_hf_processor(hired_budget=b)) for b in (0.1, 0.2, 0.3)}
    assert len(processors) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"hired_budget": 0.2},
        {"hired_budget": 0.2, "hired_max_budget": 0.9},
        {"hired_budget": 0.2, "hired_max_budget": 1.0},
        {"hired_token_cap": 50},
        {"hired_budget": 0.99},
        {},
    ],
)
def test_memory_is_planned_for_the_largest_image_that_may_come(
    any_checkpoint: Path, overrides: dict[str, Any]
) -> None:
    front_end = FrontEnd(any_checkpoint, hf_overrides=overrides)
    planned = get_mm_max_toks_per_item(front_end.processor, {"image": 1}, None)["image"]
    dummy = front_end.processor.get_dummy_mm_inputs({"image": 1})
    (item,) = dummy["mm_kwargs"]["image"]
    if overrides.get("hired_max_budget") == 1.0:
        # What dropping needs is measured, too.
        assert not item["is_undropped"].data
        assert 0.9 * planned < num_kept(dummy)[0] <= planned
    else:
        assert front_end.placeholders(dummy) == [planned]
    largest = overrides.get("hired_max_budget")
    sides = (20, 56, 57, 100, 111, 112, 168, 300)
    seen = max(
        front_end.placeholders(front_end(noise_image(w, h), budget=largest))[0]
        for w in sides
        for h in sides
    )
    assert seen == planned


def test_memory_is_planned_for_a_letterboxed_image_that_stays_whole(
    make_checkpoint: WriteCheckpoint,
) -> None:
    """It keeps its newline tokens under a cap that the whole canvas exceeds."""
    folder = make_checkpoint(pinpoints=((56, 56), (168, 56)))
    front_end = FrontEnd(folder, hf_overrides={"hired_token_cap": 262})
    planned = get_mm_max_toks_per_item(front_end.processor, {"image": 1}, None)["image"]
    assert front_end.placeholders(front_end(noise_image(56, 168))) == [256]
    (letterboxed,) = front_end.placeholders(front_end(noise_image(60, 165)))
    assert letterboxed == planned == 262


def test_memory_is_planned_for_whole_embeddings(checkpoint: Path) -> None:
    overrides = {"hired_budget": 0.2}
    for embeds, expected in ((False, 64), (True, 64 * 5 + 16)):
        front_end = FrontEnd(
            checkpoint, hf_overrides=overrides, enable_mm_embeds=embeds
        )
        assert get_mm_max_toks_per_item(front_end.processor, {"image": 1}, None) == {
            "image": expected
        }


def test_the_largest_image_depends_on_the_budget(
    make_checkpoint: WriteCheckpoint,
) -> None:
    """20 x 1 tiles have most stock tokens, for their newlines; 3 x 7 most patches."""
    folder = make_checkpoint(pinpoints=((20 * 56, 56), (3 * 56, 7 * 56)))

    def largest(**overrides: float) -> tuple[int, int]:
        front_end = FrontEnd(folder, hf_overrides=overrides)
        size = front_end.processor.info.get_image_size_with_most_features()
        return size.height // 56, size.width // 56

    assert largest() == (20, 1)
    assert largest(hired_budget=0.5) == (3, 7)
    assert largest(hired_budget=0.5, hired_max_budget=1.0) == (20, 1)


@pytest.mark.parametrize("cap", [1, 40, 96, 10_000])
def test_token_cap_bounds_every_image(any_checkpoint: Path, cap: int) -> None:
    front_end = FrontEnd(any_checkpoint, hf_overrides={"hired_token_cap": cap})
    for size in ((56, 56), (112, 112), (150, 40)):
        image = noise_image(*size)
        inputs = front_end(image)
        assert front_end.placeholders(inputs) == num_kept(inputs)
        assert num_kept(inputs) == [front_end.expected(image, "1", cap)]
        assert num_kept(inputs)[0] <= cap


REFUSED = [0, -0.2, 1.5, 0.5, float("nan"), float("inf"), True, "0.2", None, [0.2, 0.2]]


@pytest.mark.parametrize("value", [value for value in REFUSED if value is not None])
def test_bad_request_budgets_are_client_errors(
    any_checkpoint: Path, value: object
) -> None:
    front_end = FrontEnd(any_checkpoint, hf_overrides={"hired_budget": 0.4})
    with pytest.raises(VLLMValidationError, match="is not allowed") as refusal:
        front_end(noise_image(56, 56), budget=value)
    assert refusal.value.parameter == "hired_budget"
    assert repr(refusal.value.value) == repr(value)
    assert front_end.placeholders(front_end(noise_image(56, 56), budget=0.2))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"hired_alpha": 0.1},
        {"hired_algorithm": "x"},
        {"images_kwargs": {"hired_budget": 0.1}},
    ],
)
def test_a_request_sets_the_budget_alone(front_end: FrontEnd, kwargs: Any) -> None:
    with pytest.raises(VLLMValidationError, match="takes hired_budget alone"):
        front_end(noise_image(56, 56), **kwargs)


@pytest.mark.parametrize(
    ("size", "said"),
    [((3000, 1), "too long and thin"), ((1, 3000), "too long and thin")],
)
def test_images_without_a_valid_patch_are_client_errors(
    real_front_end: FrontEnd, size: tuple[int, int], said: str
) -> None:
    with pytest.raises(VLLMValidationError, match=said):
        real_front_end(Image.new("RGB", size), budget=0.2)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_images_are_client_errors(
    front_end: FrontEnd, size: tuple[int, int]
) -> None:
    with pytest.raises(VLLMValidationError, match="is empty"):
        front_end(Image.new("RGB", size), budget=0.2)


def test_budgets_are_read_as_decimals(real_front_end: FrontEnd) -> None:
    image = noise_image(672, 672)
    inputs = real_front_end(image, budget=0.35)
    assert num_kept(inputs) == [int(Fraction("0.35") * 2880)] == [1008]


@pytest.mark.parametrize("tower", NO_CLS)
def test_towers_without_cls_refuse_a_budget(
    make_checkpoint: WriteCheckpoint, tower: str
) -> None:
    """At start-up where it is a setting, with HTTP 400 where a request asks."""
    folder = make_checkpoint(**NO_CLS[tower])
    said = {
        "siglip": r"has no \[CLS\]; with this tower set hired_attention=received",
        "pixtral": "can read the towers clip_vision_model, siglip_vision_model",
    }[tower]
    with expect_refusal(match=said):
        FrontEnd(folder, hf_overrides={"hired_budget": 0.2})
    front_end = FrontEnd(folder)
    image = noise_image(56, 56)
    with pytest.raises(VLLMValidationError, match=said):
        front_end(image, budget=0.2)
    assert front_end(image, budget=1.0)["mm_hashes"] == front_end(image)["mm_hashes"]


def test_llava_crops_to_one_partition(make_checkpoint: WriteCheckpoint) -> None:
    """The paper's low-resolution case, at its real size."""
    folder = make_checkpoint(architecture="llava", tile_size=336, patch_size=14)
    front_end = FrontEnd(folder)
    for size in ((672, 672), (300, 1000), (20, 20), (1, 3000)):
        inputs = front_end(noise_image(*size), budget=0.2)
        assert num_kept(inputs) == front_end.placeholders(inputs) == [115]
