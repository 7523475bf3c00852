"""Where a scene's cards lie in the partitions that the model sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.tiny.data import Scene
from vllm_hired.layouts.llava_next import anyres_layout

BACKGROUND = 10
IGNORE = -100
SEEN = 0.4
"""Of a patch that must lie on a card to be called by its digit."""
UNSEEN = 0.1
"""Below this it is background; between the two nobody should care."""


@dataclass(frozen=True)
class Labels:
    """What a tower is to say of each patch.

    Attributes:
        digits: `[P, N]` int64: the digit on it, `BACKGROUND`, or `IGNORE`.
        middles: `[P, N]` bool: whether the middle of a card lies on it.
    """

    digits: Tensor
    middles: Tensor


def patch_labels(
    scene: Scene, pinpoints: tuple[tuple[int, int], ...], tile: int, patch: int
) -> Labels:
    """Labels of a scene's partitions, as the image processor makes them."""
    width, height = scene.image.size
    # In patches of one pixel, so that lengths are pixels of the canvas.
    pixels = anyres_layout(height, width, pinpoints, tile, 1)
    g = tile // patch
    parts = [_label(scene, (0, 0, tile, tile), g, g)]
    if pixels.num_tiles:
        valid = (pixels.left, pixels.top, pixels.width, pixels.height)
        canvas = _label(scene, valid, pixels.tile_rows * g, pixels.tile_cols * g)
        canvas = canvas.unflatten(1, (-1, g)).unflatten(3, (-1, g))
        parts.extend(canvas.permute(1, 3, 0, 2, 4).flatten(0, 1))
    digits, middles = torch.stack(parts).flatten(2).unbind(1)
    return Labels(digits, middles.bool())


def _label(
    scene: Scene, box: tuple[int, int, int, int], rows: int, cols: int
) -> Tensor:
    """`[2, rows, cols]`: digits and middles on the patches of a canvas where the scene
    fills `box` (left, top, width, height)."""
    left, top, width, height = box
    digits = torch.full((rows, cols), BACKGROUND)
    middles = torch.zeros_like(digits)
    # All partitions have square patches of one size.
    patch = max(left * 2 + width, 1) / cols, max(top * 2 + height, 1) / rows
    for card in scene.cards:
        x = left + card.left * width / scene.image.width
        y = top + card.top * height / scene.image.height
        end_x = x + card.side * width / scene.image.width
        end_y = y + card.side * height / scene.image.height
        across = _overlap(x, end_x, patch[0], cols)
        down = _overlap(y, end_y, patch[1], rows)
        share = down[:, None] * across[None, :]
        digits[(share > UNSEEN) & (share < SEEN)] = IGNORE
        digits[share >= SEEN] = card.digit
        middle = int((y + end_y) / 2 / patch[1]), int((x + end_x) / 2 / patch[0])
        middles[middle] = 1
    return torch.stack((digits, middles))


def _overlap(start: float, end: float, patch: float, count: int) -> Tensor:
    """Of each of `count` patches in a row, the share that lies in [start, end]."""
    edges = torch.arange(count + 1) * patch
    return (edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0) / patch
