"""Qwen-VL's front end through vLLM's real processor: counts, hashes, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item

from random_checkpoints.qwen_vl import write_qwen_checkpoint
from random_checkpoints.qwen_vl_configs import small_qwen
from tests.conftest import WriteQwenCheckpoint, expect_refusal
from tests.engine import noise_image
from tests.front_end import num_kept
from tests.qwen import MODEL_TYPES, QwenFrontEnd, qwen_prompt
from tests.test_metrics import counted
from vllm_hired.layouts import ImageSizeError
from vllm_hired.layouts.qwen_vl import (
    PixelLimits,
    longest_side,
    most_cells,
    resized,
)

IMAGE = noise_image(200, 150)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def qwen(make_qwen: WriteQwenCheckpoint, request: pytest.FixtureRequest) -> Path:
    return make_qwen(request.param)


@pytest.fixture(scope="module")
def front_end(qwen: Path) -> QwenFrontEnd:
    return QwenFrontEnd(qwen, limit_mm_per_prompt={"image": 4})


SIDES = st.integers(1, 3000) | st.sampled_from(
    [1, 13, 14, 27, 28, 29, 31, 32, 33, 5600]
)
CELLS = st.integers(1, 1500)


@settings(max_examples=2000, deadline=None)
@given(SIDES, SIDES, st.sampled_from([8, 28, 32]), CELLS, CELLS, st.integers(0, 900))
def test_resizing_is_the_processors(
    height: int, width: int, side: int, least: int, more: int, rest: int
) -> None:
    """Also at its limits, and never more cells or a longer side than are planned."""
    limits = PixelLimits(least * side**2 + rest, (least + more) * side**2)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageSizeError, match="too long and thin"):
            resized(height, width, side, limits)
        with pytest.raises(ValueError, match="aspect ratio"):
            smart_resize(height, width, side, limits.least, limits.most)
        return
    found = resized(height, width, side, limits)
    assert found == smart_resize(height, width, side, limits.least, limits.most)
    rows, cols = (length // side for length in found)
    assert rows * cols <= most_cells(side, limits)
    assert max(rows, cols) <= longest_side(side, limits)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(data=st.data())
def test_counts_of_any_images_at_any_budget_cached_or_not(
    front_end: QwenFrontEnd, data: st.DataObject
) -> None:
    """One cell, one row, ratios up to 200, a request's own limits of pixels; budgets
    mixed over one shared cache, whose second answer comes from it."""
    cache = MultiModalProcessorOnlyCache(front_end.config)
    short = st.integers(1, 40)
    sizes = (
        st.tuples(st.integers(20, 600), st.integers(20, 600))
        | short.flatmap(lambda s: st.tuples(st.just(s), st.integers(s, 200 * s)))
        | short.flatmap(lambda s: st.tuples(st.integers(s, 200 * s), st.just(s)))
    )
    images = [
        Image.new("RGB", size, (seed, 0, 0))
        for seed, size in enumerate(data.draw(st.lists(sizes, min_size=1, max_size=3)))
    ]
    least = data.draw(st.sampled_from([1, 4, 30])) * 32**2
    limits = data.draw(
        st.sampled_from([{}, {"min_pixels": least, "max_pixels": 40 * 32**2}])
    )
    for budget in data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=3)):
        rho = f"{budget / 100}"
        expected = [front_end.expected(image, rho, **limits) for image in images]
        for _ in range(2):
            inputs = front_end(*images, budget=float(rho), cache=cache, **limits)
            assert front_end.placeholders(inputs) == expected
        uncached = front_end(*images, budget=float(rho), **limits)
        assert front_end.placeholders(uncached) == expected
        if budget < 100:
            assert num_kept(uncached) == expected
        assert uncached["mm_hashes"] == inputs["mm_hashes"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_without_dropping_inputs_are_stocks(
    make_qwen: WriteQwenCheckpoint, model_type: str
) -> None:
    """Same hashes, same fields, same pixels whether unset, 1.0, or asked for."""
    folder = make_qwen(model_type)
    plain = QwenFrontEnd(folder)
    unset = plain(IMAGE)
    for same in (
        plain(IMAGE, budget=1.0),
        QwenFrontEnd(folder, hf_overrides={"hired_budget": 1.0})(IMAGE),
    ):
        assert same["mm_hashes"] == unset["mm_hashes"]
        assert same["prompt_token_ids"] == unset["prompt_token_ids"]
        (item,), (stock,) = same["mm_kwargs"]["image"], unset["mm_kwargs"]["image"]
        assert set(item) == set(stock) == {"pixel_values", "image_grid_thw"}
        assert torch.equal(item["pixel_values"].data, stock["pixel_values"].data)
    asked = plain(IMAGE, budget=0.2)
    by_default = QwenFrontEnd(folder, hf_overrides={"hired_budget": 0.2})(IMAGE)
    assert asked["mm_hashes"] == by_default["mm_hashes"] != unset["mm_hashes"]


def test_videos_keep_their_tokens_and_do_not_count(
    make_qwen: WriteQwenCheckpoint,
) -> None:
    for model_type in MODEL_TYPES:
        front_end = QwenFrontEnd(make_qwen(model_type))
        request = qwen_prompt(
            (200, 150), (112, 96, 4), bare_videos=model_type == "qwen2_vl"
        )
        data = front_end.processor.info.parse_mm_data(request["multi_modal_data"])
        lengths = {}
        for budget in (0.2, 1.0):
            with counted() as counts:
                inputs = front_end.processor(
                    request["prompt"],
                    data,
                    hf_processor_mm_kwargs={"hired_budget": budget},
                )
            lengths[budget] = inputs["mm_placeholders"]["video"][0].get_num_embeds()
            (image,) = inputs["mm_placeholders"]["image"]
            assert counts["images"] == 1
            assert counts["kept"] == image.length
        assert lengths[0.2] == lengths[1.0] == 2 * 3 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"hired_budget": 0.2},
        {"hired_budget": 0.02},
        {"hired_budget": 0.2, "hired_max_budget": 0.9},
        {"hired_budget": 0.2, "hired_max_budget": 1.0},
        {"hired_token_cap": 50},
        {"hired_token_cap": 1000},
    ],
)
def test_memory_is_planned_for_the_largest_image_that_may_come(
    qwen: Path, overrides: dict[str, Any]
) -> None:
    front_end = QwenFrontEnd(qwen, hf_overrides=overrides)
    planned = get_mm_max_toks_per_item(front_end.processor, {"image": 1}, None)["image"]
    largest = overrides.get("hired_max_budget")
    seen = [
        front_end.placeholders(front_end(Image.new("RGB", size), budget=largest))[0]
        for size in ((3000, 3000), (60, 12000), (8200, 41), (9400, 47), (640, 480))
    ]
    dummy = front_end.processor.get_dummy_mm_inputs({"image": 1})
    assert max(seen + front_end.placeholders(dummy)) <= planned
    # The bound is near: a few cells more than an image can have.
    assert planned <= max(seen) + 10


def test_videos_are_planned_as_ever(qwen: Path) -> None:
    planned = [
        get_mm_max_toks_per_item(
            QwenFrontEnd(qwen, hf_overrides=overrides).processor, {"video": 1}, None
        )["video"]
        for overrides in ({}, {"hired_budget": 0.02})
    ]
    assert planned[0] == planned[1]


def test_a_request_cannot_ask_for_more_than_is_planned(qwen: Path) -> None:
    front_end = QwenFrontEnd(
        qwen, hf_overrides={"hired_budget": 0.2, "hired_max_budget": 0.4}
    )
    assert front_end(IMAGE, budget=0.4)
    for value in (0.5, 0, True, "0.2"):
        with pytest.raises(VLLMValidationError, match="is not allowed"):
            front_end(IMAGE, budget=value)


def test_the_tower_encodes_no_more_than_is_planned(qwen: Path) -> None:
    """However few tokens of it would be kept."""
    overrides = {"hired_budget": 0.2}
    side = 28 if "qwen2" in qwen.name else 32
    more = {"min_pixels": 500 * side**2, "max_pixels": 900 * side**2}
    with pytest.raises(VLLMValidationError, match="memory is planned for"):
        QwenFrontEnd(qwen, hf_overrides=overrides)(IMAGE, budget=0.01, **more)
    front_end = QwenFrontEnd(qwen, hf_overrides=overrides, mm_processor_kwargs=more)
    assert num_kept(front_end(IMAGE)) == [front_end.expected(IMAGE, "0.2", **more)]


@pytest.mark.parametrize("key", ["patch_size", "merge_size", "temporal_patch_size"])
def test_processor_kwargs_that_change_the_cells(
    front_end: QwenFrontEnd, key: str
) -> None:
    for kwargs in ({key: 1}, {"images_kwargs": {key: 1}}):
        with pytest.raises(VLLMValidationError, match="it is the model's own"):
            front_end(IMAGE, budget=0.2, **kwargs)


def test_a_processor_file_that_disagrees_with_the_config(tmp_path: Path) -> None:
    folder = write_qwen_checkpoint(tmp_path, small_qwen("qwen2_5_vl"), seed=None)
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"patch_size": 14', '"patch_size": 7'))
    with expect_refusal(match=r"patch_size=7 is not allowed.*config.json"):
        QwenFrontEnd(folder, hf_overrides={"hired_budget": 0.2})


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a layer of windows": (
        {"hired_final_layer": 2},
        "its layers with full attention are 1, 3",
    ),
    "no [CLS]": ({"hired_attention": "cls"}, r"has no \[CLS\]"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_the_tower_cannot_serve(
    make_qwen: WriteQwenCheckpoint, name: str
) -> None:
    overrides, said = SETTINGS[name]
    with expect_refusal(match=said):
        QwenFrontEnd(
            make_qwen("qwen2_5_vl"), hf_overrides={"hired_budget": 0.2, **overrides}
        )


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "pipeline parallelism": (
        {"pipeline_parallel_size": 2},
        "pipeline_parallel_size=2 is not allowed: with a budget it must be 1",
    ),
    "two halves of a batch": ({"enable_dbo": True}, "enable_dbo=True is not allowed"),
    "parts of a batch": ({"ubatch_size": 2}, "ubatch_size=2 is not allowed"),
    "a rank for each image": (
        {"mm_encoder_tp_mode": "data"},
        "mm_encoder_tp_mode='data' is not allowed",
    ),
    "pruned videos": (
        {"video_pruning_rate": 0.5},
        "video_pruning_rate=0.5 is not allowed: not with a budget",
    ),
    "a drafter of media": (
        {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
        "its method must be one of ngram",
    ),
    "a drafter without a name": (
        {"speculative_config": {"model": "some/eagle", "num_speculative_tokens": 1}},
        "its method must be one of ngram",
    ),
    "a drafter by its own option": (
        {"spec_method": "mtp", "spec_tokens": 1},
        "its method must be one of ngram",
    ),
    "a model that drafts, by its own option": (
        {"spec_model": "some/eagle", "spec_tokens": 1},
        "its method must be one of ngram",
    ),
    "a compiled tower": (
        {"compilation_config": {"compile_mm_encoder": True}},
        "compile_mm_encoder=True is not allowed",
    ),
    "a captured tower": (
        {"compilation_config": {"cudagraph_mm_encoder": True}},
        "cudagraph_mm_encoder=True is not allowed",
    ),
}
"""Engine options that a budget is refused with."""


@pytest.mark.parametrize("name", OPTIONS)
def test_options_under_which_positions_or_scores_would_be_lost(
    qwen: Path, name: str
) -> None:
    """At start-up with a budget; without one, when a request asks for one."""
    options, said = OPTIONS[name]
    with expect_refusal(match=said):
        QwenFrontEnd(qwen, hf_overrides={"hired_budget": 0.2}, **options)
    front_end = QwenFrontEnd(qwen, **options)
    if name != "pruned videos":
        assert front_end(IMAGE)["mm_hashes"] == QwenFrontEnd(qwen)(IMAGE)["mm_hashes"]
    with pytest.raises(VLLMValidationError, match=said):
        front_end(IMAGE, budget=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        {"spec_method": "ngram", "spec_tokens": 2},
    ],
)
def test_drafting_from_the_text_is_allowed(qwen: Path, options: dict[str, Any]) -> None:
    front_end = QwenFrontEnd(qwen, hf_overrides={"hired_budget": 0.2}, **options)
    assert num_kept(front_end(IMAGE)) == [front_end.expected(IMAGE, "0.2")]
