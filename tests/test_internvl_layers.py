"""Which layers of InternVL's tower are read, and how patches add up to cells."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import WriteInternVLCheckpoint
from tests.engine import noise_image
from tests.internvl import front_end_of
from tests.internvl_reference import InternVLReference
from vllm_hired.towers.merged import block_sums

IMAGE = noise_image(200, 150)


def test_layers_by_default(internvl: Path) -> None:
    """[CLS] of the last layer but one ranks, attention received in the last."""
    for overrides, layers in (
        ({}, (0, 2)),
        ({"hired_attention": "received"}, (0, 3)),
        ({"hired_init_layer": 1, "hired_final_layer": 3}, (1, 3)),
    ):
        hired = front_end_of(internvl, hf_overrides=overrides).processor.info.hired
        assert (hired.init_layer, hired.final_layer) == layers


@pytest.mark.parametrize(("layer", "matters"), [(-1, False), (-2, True)])
def test_no_answer_depends_on_what_cls_asks_for_in_the_last_layer(
    make_internvl: WriteInternVLCheckpoint, layer: int, matters: bool
) -> None:
    """So no answer has ever trained it, and the layer before is the default."""
    reference = InternVLReference(make_internvl("internvl"))
    pixels = reference.pixels(IMAGE)
    before = reference.encode(pixels).rows

    def ask_otherwise(module: Any, inputs: Any, query: torch.Tensor) -> torch.Tensor:
        query = query.clone()
        query[:, 0] = query[:, 0].flip(-1)
        return query

    attention = reference.model.model.vision_tower.encoder.layer[layer].attention
    attention.q_proj.register_forward_hook(ask_otherwise)
    after = reference.encode(pixels).rows
    assert torch.equal(before, after) is not matters


def test_sums_over_cells() -> None:
    rows, cols, side = 3, 4, 2
    values = torch.arange(2 * rows * cols * side**2 * 5).view(2, -1, 5)
    grid = values.view(2, rows * side, cols * side, 5)
    found = block_sums(values, rows, cols, side).view(2, rows, cols, 5)
    for row, col in product(range(rows), range(cols)):
        block = grid[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        assert torch.equal(found[:, row, col], block.sum(dim=(1, 2)))
