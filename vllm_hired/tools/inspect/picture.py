"""Draws which patches of an image were kept: the thumbnail, and each tile."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vllm_hired.config import HiredConfig
from vllm_hired.geometry import Geometry, index_tables
from vllm_hired.inspect.tower import Inspection

GAP = 12
CAPTION = 30
LEAST_SIDE = 224
"""Pixels of a tile as drawn, so that its caption fits; smaller ones are magnified."""

BACKGROUND = (250, 250, 248)
INK = (40, 40, 40)
PADDING = (214, 214, 210)
DIM = 0.18
"""How much of a dropped patch still shows."""


def draw_kept(
    tiles: Tensor, geometry: Geometry, kept: Tensor, title: str
) -> Image.Image:
    """One row: the thumbnail, then the tiles in their grid.

    Kept patches show as they are, dropped ones fade, padding is grey.

    Args:
        tiles: `[P, 3, H, W]` in [0, 1], the thumbnail first.
        geometry: of the image.
        kept: `[K]` int64 flat patch indices.
        title: a line above.
    """
    n, g = geometry.patches_per_partition, geometry.patch_grid
    is_kept = torch.zeros(geometry.num_partitions * n, dtype=torch.bool)
    is_kept[kept.cpu()] = True
    is_kept = is_kept.view(-1, g, g)
    valid = index_tables(geometry, torch.device("cpu")).valid.view(-1, g, g)
    side = tiles.shape[-1] * math.ceil(LEAST_SIDE / tiles.shape[-1])
    height = CAPTION + max(1, geometry.tile_rows) * (side + GAP + CAPTION) + GAP
    width = GAP + (1 + geometry.tile_cols) * (side + GAP) + 2 * GAP
    font = ImageFont.load_default(size=18)
    width = max(width, math.ceil(font.getlength(title)) + 2 * GAP)
    page = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 6), title, INK, font)
    for partition in range(geometry.num_partitions):
        row, col = divmod(max(partition - 1, 0), max(geometry.tile_cols, 1))
        left = GAP if partition == 0 else 3 * GAP + (col + 1) * (side + GAP) - GAP
        top = CAPTION + row * (side + GAP + CAPTION) + GAP
        name = geometry.partition_names[partition]
        count = f"{is_kept[partition].sum()} of {valid[partition].sum()} patches"
        tile = _faded(tiles[partition], is_kept[partition], valid[partition])
        page.paste(tile.resize((side, side), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + side + 4), f"{name}: {count}", INK, font)
    return page


def _faded(tile: Tensor, is_kept: Tensor, valid: Tensor) -> Image.Image:
    patch = tile.shape[-1] // is_kept.shape[-1]

    def spread(mask: Tensor) -> Tensor:
        return mask.repeat_interleave(patch, 0).repeat_interleave(patch, 1)

    def plain(colour: Sequence[int]) -> Tensor:
        return torch.tensor(colour).view(3, 1, 1) / 255

    faded = DIM * tile + (1 - DIM) * plain(BACKGROUND)
    shown = torch.where(spread(is_kept), tile, faded)
    shown = torch.where(spread(valid), shown, plain(PADDING))
    pixels = (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """One below the other."""
    width = max(picture.width for picture in pictures)
    page = Image.new("RGB", (width, sum(p.height for p in pictures)), BACKGROUND)
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    return page


def draw_inspection(
    inspection: Inspection, configs: Sequence[HiredConfig]
) -> Image.Image:
    """`draw_kept` for each of the settings."""
    return stack(
        [
            draw_kept(
                inspection.tiles,
                inspection.geometry,
                inspection.select(config),
                f"{inspection.name}, hired_budget={float(config.budget)}: "
                f"{inspection.kept_count(config)} of "
                f"{inspection.geometry.num_stock_tokens} visual tokens",
            )
            for config in configs
        ]
    )
