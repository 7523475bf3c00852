"""Draws which cells of an image were kept, partition by partition."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vllm_hired.config import HiredConfig
from vllm_hired.layouts import Layout
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.tools.inspect.inspection import Inspection

GAP = 12
CAPTION = 30
LEAST_SIDE = 224
"""Pixels across a partition as drawn, so that its caption fits; narrower ones are
magnified."""

BACKGROUND = (250, 250, 248)
INK = (40, 40, 40)
PADDING = (214, 214, 210)
DIM = 0.18
"""How much of a dropped cell still shows."""


def draw_kept(
    partitions: Tensor, layout: Layout, kept: Tensor, title: str
) -> Image.Image:
    """One row: the thumbnail or the whole image, then the tiles in their grid.

    Kept cells show as they are, dropped ones fade, padding is grey.

    Args:
        partitions: `[P, 3, H, W]` in [0, 1].
        layout: of the image.
        kept: `[K]` int64 flat cell indices.
        title: a line above.
    """
    shape = (layout.num_partitions, layout.rows, layout.cols)
    is_kept = torch.zeros(layout.num_cells, dtype=torch.bool)
    is_kept[kept.cpu()] = True
    is_kept = is_kept.view(shape)
    valid = index_tables(layout, torch.device("cpu")).valid.view(shape)
    drawn_height, drawn_width = (
        side * math.ceil(LEAST_SIDE / partitions.shape[-1])
        for side in partitions.shape[-2:]
    )
    has_thumbnail = layout.thumbnail_partition is not None
    beside = GAP + has_thumbnail * (drawn_width + 2 * GAP)
    font = ImageFont.load_default(size=18)
    width = beside + layout.tile_cols * (drawn_width + GAP)
    width = max(width, math.ceil(font.getlength(title)) + 2 * GAP)
    below = drawn_height + GAP + CAPTION
    height = CAPTION + max(1, layout.tile_rows) * below + GAP
    page = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 6), title, INK, font)
    for partition, name in enumerate(layout.partition_names):
        tile = max(partition - layout.first_tile, 0)
        row, col = divmod(tile, max(layout.tile_cols, 1))
        left = beside + col * (drawn_width + GAP)
        if partition == layout.thumbnail_partition:
            row, left = 0, GAP
        top = CAPTION + row * below + GAP
        count = f"{is_kept[partition].sum()} of {valid[partition].sum()} cells"
        drawn = _faded(partitions[partition], is_kept[partition], valid[partition])
        size = (drawn_width, drawn_height)
        page.paste(drawn.resize(size, Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + drawn_height + 4), f"{name}: {count}", INK, font)
    return page


def _faded(partition: Tensor, is_kept: Tensor, valid: Tensor) -> Image.Image:
    height = partition.shape[-2] // is_kept.shape[-2]
    width = partition.shape[-1] // is_kept.shape[-1]

    def spread(mask: Tensor) -> Tensor:
        return mask.repeat_interleave(height, 0).repeat_interleave(width, 1)

    def plain(colour: Sequence[int]) -> Tensor:
        return torch.tensor(colour).view(3, 1, 1) / 255

    faded = DIM * partition + (1 - DIM) * plain(BACKGROUND)
    shown = torch.where(spread(is_kept), partition, faded)
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
                inspection.partitions,
                inspection.layout,
                inspection.select(config),
                f"{inspection.name}, hired_budget={float(config.budget)}: "
                f"{inspection.kept_count(config).tokens} of "
                f"{inspection.layout.num_stock_tokens} visual tokens",
            )
            for config in configs
        ]
    )
