"""Positions of kept tokens: the buffers of a step, and a prompt's positions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from vllm_hired.engine.models.qwen_vl import (
    HiredQwen2_5_VLForConditionalGeneration,
    HiredQwen3VLForConditionalGeneration,
)
from vllm_hired.engine.mrope import MRoPEOffsets, offsets_of, with_offsets

WIDTH = 6


def pruned(cells: list[int], cols: int) -> Tensor:
    return with_offsets(torch.randn(len(cells), WIDTH), torch.tensor(cells), cols)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_offsets_are_exact_in_every_dtype(dtype: torch.dtype) -> None:
    cols = 60_000
    cells = torch.tensor(
        [0, 255, 256, 257, 511, cols - 1, cols, 65_535 * cols + 59_999]
    )
    rows = with_offsets(torch.randn(len(cells), WIDTH, dtype=dtype), cells, cols)
    assert rows.dtype == dtype
    expected = torch.stack((cells // cols, cells % cols), dim=1)
    assert torch.equal(offsets_of(rows), expected)


def test_a_step_of_whole_and_pruned_items() -> None:
    """An item between two others, of which the first is cut by its chunk."""
    offsets = MRoPEOffsets(max_tokens=16)
    whole = torch.randn(3, WIDTH)
    first, last = pruned([2, 5, 9], cols=4), pruned([0, 7], cols=5)
    is_media = torch.zeros(12, dtype=torch.bool)
    is_media[[1, 2, 5, 6, 7, 9, 10]] = True
    taken = offsets.take([first[1:], whole, last], WIDTH, is_media)
    assert [rows.shape for rows in taken] == [(2, WIDTH), (3, WIDTH), (2, WIDTH)]
    assert torch.equal(taken[0], first[1:, :WIDTH])
    assert torch.equal(taken[1], whole)

    positions = torch.arange(3 * 17).view(3, 17)[:, :14]
    before = positions.clone()
    expected = positions.clone()
    expected[1:, 1] += torch.tensor([1, 1])
    expected[1:, 2] += torch.tensor([2, 1])
    expected[1:, 10] += torch.tensor([1, 2])
    # As often as the model is called in the step; 14 tokens are 12 and padding.
    for _ in range(3):
        assert torch.equal(offsets(positions), expected)
    assert torch.equal(positions, before)


@pytest.mark.parametrize("embeddings", [[], [torch.randn(2, WIDTH)]])
def test_the_next_step_starts_anew(embeddings: list[Tensor]) -> None:
    """Decoding, or whole images; then a dummy step, which has no embeddings at all and
    is longer."""
    offsets = MRoPEOffsets(max_tokens=16)
    is_media = torch.ones(16, dtype=torch.bool)
    offsets.take([pruned([*range(16)], cols=4)], WIDTH, is_media)
    assert offsets.offsets.any()
    offsets.take(embeddings, WIDTH, torch.tensor([True, True]))
    positions = torch.zeros((3, 16), dtype=torch.int64)
    assert not offsets(positions).any()


def test_a_captured_graph_finds_them_where_they_were() -> None:
    """At one address and with one stride at every length, never contiguous."""
    offsets = MRoPEOffsets(max_tokens=16)
    found = [offsets(torch.zeros((3, n), dtype=torch.int64)) for n in (1, 5, 16)]
    assert len({positions.data_ptr() for positions in found}) == 1
    assert {positions.stride() for positions in found} == {(17, 1)}
    assert not found[-1].is_contiguous()


# A model of which nothing but its config and its methods is needed.
CONFIG = SimpleNamespace(
    vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
    image_token_id=7,
    video_token_id=8,
    vision_start_token_id=4,
    vision_end_token_id=5,
)


def model_of(cls: Any) -> Any:
    model = cls.__new__(cls)
    torch.nn.Module.__init__(model)
    model.config = CONFIG
    return model


def field(value: Any) -> Any:
    return SimpleNamespace(data=torch.tensor(value))


def image(offset: int, rows: int, cols: int, kept: int | None) -> MultiModalFeatureSpec:
    data = {"image_grid_thw": field([1, 2 * rows, 2 * cols])}
    length = rows * cols
    if kept is not None:
        data |= {"num_kept": field(kept), "is_undropped": field(kept == length)}
        length = kept
    return MultiModalFeatureSpec(
        data=data,
        modality="image",
        identifier="",
        mm_position=PlaceholderRange(offset=offset, length=length),
    )


GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    "cls",
    [HiredQwen2_5_VLForConditionalGeneration, HiredQwen3VLForConditionalGeneration],
)
def test_positions_of_a_prompt(cls: Any, data: st.DataObject) -> None:
    """Against the rule, token by token: some images pruned, some whole, one after
    another or with text between them, at the end or not."""
    tokens: list[int] = []
    expected: list[tuple[int, int, int]] = []
    features = []
    following = 0

    def text(count: int) -> None:
        nonlocal following
        for _ in range(count):
            tokens.append(9)
            expected.append((following,) * 3)
            following += 1

    for _ in range(data.draw(st.integers(0, 4))):
        text(data.draw(st.integers(0, 3)))
        rows, cols = data.draw(GRIDS)
        cells = rows * cols
        kept = data.draw(st.none() | st.integers(max(rows, cols), cells))
        features.append(image(len(tokens), rows, cols, kept))
        tokens += [7] * (cells if kept is None else kept)
        if kept is None or kept == cells:
            expected += [
                (following, following + row, following + col)
                for row in range(rows)
                for col in range(cols)
            ]
        else:
            expected += [(following,) * 3] * kept
        following += max(rows, cols)
    text(data.draw(st.integers(0 if tokens else 1, 3)))

    data.draw(st.randoms()).shuffle(features)
    positions, delta = model_of(cls).get_mrope_input_positions(tokens, features)
    assert positions.T.tolist() == [[*position] for position in expected]
    assert delta == following - len(tokens)
