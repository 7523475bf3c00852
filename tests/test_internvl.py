"""InternVL's front end through vLLM's real processors: counts, hashes, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import (
    get_optimal_tiled_canvas,
)
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.encoder_budget import get_mm_max_toks_per_item
from vllm.transformers_utils.processors.internvl import (
    calculate_internvl_targets,
    get_internvl_target_ratios,
)

from tests.conftest import WriteInternVLCheckpoint, expect_refusal
from tests.engine import noise_image
from tests.front_end import num_kept
from tests.internvl import (
    InternVLFrontEnd,
    front_end_of,
    internvl_prompt,
    kept_count,
)
from tests.test_metrics import counted
from vllm_hired.layouts.internvl import TileLimits, tile_grid

IMAGE = noise_image(200, 150)
CELLS = 36
"""Of a tile of the small checkpoints."""


@pytest.fixture(scope="module")
def front_end(internvl: Path) -> InternVLFrontEnd:
    return front_end_of(internvl, limit_mm_per_prompt={"image": 4})


@settings(max_examples=2000, deadline=None)
@given(
    # Multiples of the tile's side make ratios that several grids fit equally well.
    *[st.integers(1, 3000) | st.integers(1, 14).map(lambda n: 84 * n)] * 2,
    st.sampled_from([14, 84, 448]),
    st.integers(1, 14),
    st.integers(0, 20),
)
def test_the_grid_is_the_processors(
    height: int, width: int, side: int, least: int, more: int
) -> None:
    """Of HF's, and of vLLM's own for the format with remote code."""
    most = least + more
    cols, rows = get_optimal_tiled_canvas((height, width), (side, side), least, most)
    assert tile_grid(height, width, side, TileLimits(least, most)) == (rows, cols)
    blocks, target_width, target_height = calculate_internvl_targets(
        orig_width=width,
        orig_height=height,
        target_ratios=get_internvl_target_ratios(least, most),
        image_size=side,
        use_thumbnail=False,
    )
    rows, cols = tile_grid(height, width, side, TileLimits(least, most, is_chat=True))
    assert (rows * side, cols * side) == (target_height, target_width)
    assert rows * cols == blocks


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(data=st.data())
def test_counts_of_any_images_at_any_budget_cached_or_not(
    front_end: InternVLFrontEnd, internvl_type: str, data: st.DataObject
) -> None:
    """Ratios up to 400, a request's own limits of tiles; budgets mixed over one shared
    cache, whose second answer comes from it."""
    cache = MultiModalProcessorOnlyCache(front_end.config)
    sides = st.integers(1, 400)
    images = [
        Image.new("RGB", size, (seed, 0, 0))
        for seed, size in enumerate(
            data.draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=3))
        )
    ]
    limits: dict[str, int] = {}
    if internvl_type == "internvl":
        # In the other format vLLM's video processor refuses them.
        least, most = data.draw(st.sampled_from([(1, 6), (1, 1), (1, 4), (3, 5)]))
        limits = {"min_patches": least, "max_patches": most}
    # By upstream alone.
    stock = front_end.placeholders(front_end(*images, budget=1.0, **limits))
    assert {count % CELLS for count in stock} == {0}
    for budget in data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=3)):
        rho = f"{budget / 100}"
        expected = [kept_count(count, rho) for count in stock]
        for _ in range(2):
            inputs = front_end(*images, budget=float(rho), cache=cache, **limits)
            assert front_end.placeholders(inputs) == expected
        uncached = front_end(*images, budget=float(rho), **limits)
        assert front_end.placeholders(uncached) == expected
        assert num_kept(uncached) == expected
        assert uncached["mm_hashes"] == inputs["mm_hashes"]


@pytest.mark.slow
def test_without_dropping_inputs_are_stocks(internvl: Path) -> None:
    """Same hashes, same fields, same pixels whether unset, 1.0, or asked for."""
    plain = front_end_of(internvl)
    unset = plain(IMAGE)
    for same in (
        plain(IMAGE, budget=1.0),
        front_end_of(internvl, hf_overrides={"hired_budget": 1.0})(IMAGE),
    ):
        assert same["mm_hashes"] == unset["mm_hashes"]
        assert same["prompt_token_ids"] == unset["prompt_token_ids"]
        (item,), (stock,) = same["mm_kwargs"]["image"], unset["mm_kwargs"]["image"]
        pixels = plain.processor.pixels_key
        assert (
            set(item)
            == set(stock)
            == {
                pixels,
                "image_num_patches",
                "image_token_id",
            }
        )
        assert torch.equal(item[pixels].data, stock[pixels].data)
    asked = plain(IMAGE, budget=0.2)
    by_default = front_end_of(internvl, hf_overrides={"hired_budget": 0.2})(IMAGE)
    assert asked["mm_hashes"] == by_default["mm_hashes"] != unset["mm_hashes"]


def test_one_image_of_each_grid(front_end: InternVLFrontEnd) -> None:
    """A thumbnail beside several tiles, none beside one."""
    for (width, height), partitions in {
        (84, 84): 1,
        (40, 44): 1,
        (168, 84): 3,
        (84, 252): 4,
        (252, 168): 7,
        (2000, 10): 7,
    }.items():
        inputs = front_end(noise_image(width, height), budget=0.25)
        (item,) = inputs["mm_kwargs"]["image"]
        assert int(item["image_num_patches"].data) == partitions
        assert front_end.placeholders(inputs) == [partitions * CELLS // 4]


def test_videos_keep_their_tokens_and_do_not_count(
    front_end: InternVLFrontEnd, internvl_type: str
) -> None:
    request = internvl_prompt(internvl_type, (200, 150), (112, 96, 4))
    data = front_end.processor.info.parse_mm_data(request["multi_modal_data"])
    for budget in (0.2, 1.0):
        with counted() as counts:
            inputs = front_end.processor(
                request["prompt"],
                data,
                hf_processor_mm_kwargs={"hired_budget": budget},
            )
        (video,) = inputs["mm_placeholders"]["video"]
        assert video.get_num_embeds() == 4 * CELLS
        (image,) = inputs["mm_placeholders"]["image"]
        assert counts["images"] == 1
        assert counts["kept"] == image.get_num_embeds()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"hired_budget": 0.2},
        {"hired_budget": 0.2, "hired_max_budget": 0.9},
        {"hired_budget": 0.2, "hired_max_budget": 1.0},
        {"hired_token_cap": 50},
        {"hired_token_cap": 1000},
    ],
)
def test_memory_is_planned_for_the_largest_image_that_may_come(
    internvl: Path, overrides: dict[str, Any]
) -> None:
    """And for videos as without a budget."""
    front_end = front_end_of(internvl, hf_overrides=overrides)
    counts = {"image": 1, "video": 1}
    planned = get_mm_max_toks_per_item(front_end.processor, counts, None)
    largest = overrides.get("hired_max_budget")
    seen = [
        front_end.placeholders(front_end(Image.new("RGB", size), budget=largest))[0]
        for size in ((252, 168), (84, 600), (30, 30))
    ]
    dummy = front_end.processor.get_dummy_mm_inputs({"image": 1})
    (dummy_tokens,) = dummy["mm_placeholders"]["image"]
    # At a largest budget of 1.0 it loses one.
    dropped = int(largest == 1)
    assert max(seen) == dummy_tokens.get_num_embeds() + dropped == planned["image"]
    stock = front_end_of(internvl)
    as_ever = stock.processor.get_dummy_mm_inputs(counts)["mm_placeholders"]["video"]
    assert planned["video"] == sum(r.get_num_embeds() for r in as_ever)


def test_a_request_cannot_ask_for_more_than_is_planned(
    internvl: Path, internvl_type: str
) -> None:
    front_end = front_end_of(
        internvl, hf_overrides={"hired_budget": 0.2, "hired_max_budget": 0.4}
    )
    assert front_end(IMAGE, budget=0.4)
    for value in (0.5, 0, True, "0.2"):
        with pytest.raises(VLLMValidationError, match="is not allowed"):
            front_end(IMAGE, budget=value)
    large, overrides = Image.new("RGB", (336, 252)), {"hired_budget": 0.2}
    if internvl_type == "internvl_chat":
        roomy = front_end_of(
            internvl, hf_overrides=overrides | {"max_dynamic_patch": 12}
        )
    else:
        more = {"max_patches": 12}
        # However few tokens of them would be kept, the tower encodes all tiles.
        with pytest.raises(VLLMValidationError, match="memory is planned for 6 tiles"):
            front_end(large, budget=0.01, **more)
        roomy = front_end_of(internvl, hf_overrides=overrides, mm_processor_kwargs=more)
    assert num_kept(roomy(large)) == [13 * CELLS // 5]


@pytest.mark.parametrize(
    "kwargs", [{"size": {"height": 42, "width": 42}}, {"image_size": 42}]
)
def test_processor_kwargs_that_change_the_tiles(
    front_end: InternVLFrontEnd, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(VLLMValidationError, match=r"is not allowed.*leave crop_size"):
        front_end(IMAGE, budget=0.2, **kwargs)


def test_a_processor_file_that_disagrees_with_the_config(
    make_internvl: WriteInternVLCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(make_internvl("internvl"), folder)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"size": {"height": 42, "width": 42}}))
    with expect_refusal(match="preprocessor_config.json .* does not cut the tiles"):
        front_end_of(folder, hf_overrides={"hired_budget": 0.2})


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a layer that does not run": (
        {"hired_final_layer": 4},
        {},
        "the vision tower runs layers 0 to 3",
    ),
    "cells column by column": (
        {"ps_version": "v1"},
        {},
        "ps_version='v1' is not allowed",
    ),
    "a rank for each image": (
        {},
        {"mm_encoder_tp_mode": "data"},
        "mm_encoder_tp_mode='data' is not allowed",
    ),
    "a compiled tower": (
        {},
        {"compilation_config": {"compile_mm_encoder": True}},
        "compile_mm_encoder=True is not allowed",
    ),
    "a captured tower": (
        {},
        {"compilation_config": {"cudagraph_mm_encoder": True}},
        "cudagraph_mm_encoder=True is not allowed",
    ),
}
"""HF overrides and engine options that a budget is refused with."""


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_refused_at_start_up(
    make_internvl: WriteInternVLCheckpoint, name: str
) -> None:
    overrides, options, said = SETTINGS[name]
    folder = make_internvl("internvl_chat")
    with expect_refusal(match=said):
        front_end_of(folder, hf_overrides={"hired_budget": 0.2, **overrides}, **options)
    if not options:
        return
    front_end = front_end_of(folder, **options)
    assert front_end(IMAGE)["mm_hashes"] == front_end_of(folder)(IMAGE)["mm_hashes"]
    with pytest.raises(VLLMValidationError, match=said):
        front_end(IMAGE, budget=0.2)


def test_a_rank_for_each_image_where_vllm_sets_it_back(
    make_internvl: WriteInternVLCheckpoint,
) -> None:
    folder, overrides = make_internvl("internvl"), {"hired_budget": 0.2}
    front_end = front_end_of(folder, hf_overrides=overrides, mm_encoder_tp_mode="data")
    multimodal = front_end.config.get_multimodal_config()
    assert multimodal.mm_encoder_tp_mode == "weights"
    plain = front_end_of(folder, hf_overrides=overrides)
    assert num_kept(front_end(IMAGE)) == num_kept(plain(IMAGE))
