"""The small model: its dimensions, and the visual part of its prompt."""

from pathlib import Path

import torch
from torch import Tensor

from random_checkpoints.llava import Shape
from vllm_hired.layouts import Layout
from vllm_hired.selectors.index_tables import index_tables

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "llava-next-tiny"
"""The committed one."""

TILE, PATCH = 112, 14
TINY = Shape(
    tile_size=TILE,
    patch_size=PATCH,
    pinpoints=tuple(
        (rows * TILE, cols * TILE)
        for rows, cols in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    ),
    vision_hidden=192,
    vision_intermediate=768,
    vision_heads=6,
    vision_layers=8,
    text_hidden=256,
    text_intermediate=768,
    text_heads=4,
    text_layers=4,
    max_positions=1024,
)
"""About 7 million parameters, 14 MB in bfloat16."""


def prompt_of(question: str) -> tuple[str, str]:
    """What stands before the picture and after it, as the chat template has it."""
    return "USER: ", f"{question}\nASSISTANT:"


def visual_rows(
    features: Tensor,
    layout: Layout,
    newline: Tensor,
    keep: Tensor | None,
) -> Tensor:
    """Projected tokens of one image, in the order in which the LLM gets them.

    Args:
        features: `[P * N, hidden]`, projected.
        layout: of the image.
        newline: `[hidden]`.
        keep: `[N + V_sub]` bool over the sequence, or None for the stock sequence
            with its newline tokens.
    """
    rows = features[index_tables(layout, features.device).sequence]
    if keep is not None:
        return rows[keep.to(rows.device)]
    n = layout.cells_per_partition
    canvas = rows[n:].view(layout.height, layout.width, -1)
    ends = newline.expand(layout.height, 1, -1)
    return torch.cat((rows[:n], torch.cat((canvas, ends), dim=1).flatten(0, 1)))
