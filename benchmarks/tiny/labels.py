"""Where a scene's cards lie in the partitions that the model sees."""

import torch
from torch import Tensor

from benchmarks.tiny.data import Scene
from vllm_hired.geometry import image_geometry

BACKGROUND = 10
IGNORE = -100
SEEN = 0.4
"""Of a patch that must lie on a card to be called by its digit."""
UNSEEN = 0.1
"""Below this it is background; between the two nobody should care."""


def patch_labels(
    scene: Scene, pinpoints: tuple[tuple[int, int], ...], tile: int, patch: int
) -> Tensor:
    """`[P, N]` int64: the digit on each patch, `BACKGROUND`, or `IGNORE`."""
    width, height = scene.image.size
    # In patches of one pixel, so that lengths are pixels of the canvas.
    pixels = image_geometry(height, width, pinpoints, tile, 1)
    g = tile // patch
    parts = [_covered(scene, (0, 0, tile, tile), g, g)]
    if pixels.num_tiles:
        valid = (pixels.left, pixels.top, pixels.width, pixels.height)
        canvas = _covered(scene, valid, pixels.tile_rows * g, pixels.tile_cols * g)
        canvas = canvas.unflatten(0, (-1, g)).unflatten(2, (-1, g))
        parts.extend(canvas.transpose(1, 2).flatten(0, 1))
    return torch.stack([part.flatten() for part in parts])


def _covered(
    scene: Scene, box: tuple[int, int, int, int], rows: int, cols: int
) -> Tensor:
    """Labels of `rows x cols` patches of a canvas where the scene fills `box` (left,
    top, width, height)."""
    left, top, width, height = box
    labels = torch.full((rows, cols), BACKGROUND)
    # All partitions have square patches of one size.
    patch = max(left * 2 + width, 1) / cols, max(top * 2 + height, 1) / rows
    for card in scene.cards:
        x = left + card.left * width / scene.image.width
        y = top + card.top * height / scene.image.height
        across = _overlap(x, x + card.side * width / scene.image.width, patch[0], cols)
        down = _overlap(y, y + card.side * height / scene.image.height, patch[1], rows)
        share = down[:, None] * across[None, :]
        labels[(share > UNSEEN) & (share < SEEN)] = IGNORE
        labels[share >= SEEN] = card.digit
    return labels


def _overlap(start: float, end: float, patch: float, count: int) -> Tensor:
    """Of each of `count` patches in a row, the share that lies in [start, end]."""
    edges = torch.arange(count + 1) * patch
    return (edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0) / patch
