"""InternVL: tiles one after another, a thumbnail behind them, a cell for 2 x 2 patches.

The processor stretches an image to the grid of tiles whose aspect ratio is nearest to
its own, so there is no padding. An image of one tile has no thumbnail beside it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vllm_hired.layouts.base import (
    ImageSizeError,
    Layout,
    merge_side,
    partition_side,
    patches_per_side,
)


@dataclass(frozen=True)
class TileLimits:
    """What the processor does with an image's tiles.

    Attributes:
        least: fewest tiles of an image.
        most: most of them.
        has_thumbnail: whether an image of several tiles gets a thumbnail, too.
        is_chat: whether the processor is vLLM's own, of `InternVLChatModel`, and not
            HF's. Of two grids of as many tiles that fit equally well, each may take
            another one.
    """

    least: int = 1
    most: int = 12
    has_thumbnail: bool = True
    is_chat: bool = False


def image_layout(hf_config: Any, image_height: int, image_width: int) -> Layout:
    """Layout of an image of so many pixels, by the limits in `tile_limits(hf_config)`.

    Raises:
        ImageSizeError: an empty image.
    """
    limits = tile_limits(hf_config)
    return layout_within(limits, hf_config, image_height, image_width)


def largest_image_sizes(hf_config: Any) -> list[tuple[int, int]]:
    """(height, width) in pixels of an image for each grid of tiles."""
    return sizes_within(tile_limits(hf_config), hf_config)


def layout_within(
    limits: TileLimits, hf_config: Any, image_height: int, image_width: int
) -> Layout:
    """Layout of an image of so many pixels, by given limits."""
    side = partition_side(hf_config)
    rows, cols = tile_grid(image_height, image_width, side, limits)
    thumbnails = int(limits.has_thumbnail and rows * cols > 1)
    return tiles_layout(hf_config, rows, cols, rows * cols + thumbnails)


def sizes_within(limits: TileLimits, hf_config: Any) -> list[tuple[int, int]]:
    """What `largest_image_sizes` gives, by given limits."""
    side = partition_side(hf_config)
    return [(rows * side, cols * side) for cols, rows in _grids(limits)]


def tile_limits(hf_config: Any) -> TileLimits:
    """Those that whoever read the checkpoint's processor put on the config as
    `tile_limits`; else those of config.json, as `InternVLChatModel` has them, or of
    HF's class."""
    limits: TileLimits | None = getattr(hf_config, "tile_limits", None)
    if limits is not None:
        return limits
    if hf_config.model_type != "internvl_chat":
        return TileLimits()
    is_cut = hf_config.dynamic_image_size
    return TileLimits(
        least=hf_config.min_dynamic_patch if is_cut else 1,
        most=hf_config.max_dynamic_patch if is_cut else 1,
        has_thumbnail=hf_config.use_thumbnail,
        is_chat=True,
    )


def tiles_layout(hf_config: Any, rows: int, cols: int, partitions: int) -> Layout:
    """Layout of an image of `rows x cols` tiles.

    Args:
        hf_config: of the model.
        rows: of tiles.
        cols: likewise.
        partitions: as many as tiles, or one more where there is a thumbnail.

    Raises:
        ImageSizeError: another number of partitions.
    """
    if partitions - rows * cols not in ((0, 1) if rows * cols > 1 else (0,)):
        raise ImageSizeError(
            f"an image of {rows} x {cols} tiles became {partitions} partitions"
        )
    side = patches_per_side(hf_config) // merge_side(hf_config)
    return _tiles_layout(side, rows, cols, partitions > rows * cols)


@lru_cache(maxsize=512)
def _tiles_layout(side: int, rows: int, cols: int, has_thumbnail: bool) -> Layout:
    if rows * cols == 1:
        return Layout(rows=side, cols=side)
    return Layout(
        rows=side,
        cols=side,
        tile_rows=rows,
        tile_cols=cols,
        height=rows * side,
        width=cols * side,
        thumbnail="last" if has_thumbnail else "none",
        tile_by_tile=True,
    )


def tile_grid(
    image_height: int, image_width: int, tile_side: int, limits: TileLimits
) -> tuple[int, int]:
    """(rows, columns) of the tiles of an image of so many pixels.

    What transformers' `get_optimal_tiled_canvas` and vLLM's `find_closest_aspect_ratio`
    give, in the same floating-point arithmetic, without their modules.

    Args:
        image_height: pixels.
        image_width: likewise.
        tile_side: pixels.
        limits: of the processor.

    Raises:
        ImageSizeError: an empty image.
    """
    if image_height < 1 or image_width < 1:
        raise ImageSizeError(
            f"an image of {image_width}x{image_height} pixels is empty: "
            "both sides must be at least 1"
        )
    ratio, area = image_width / image_height, image_width * image_height
    best, least_difference = (1, 1), float("inf")
    for cols, rows in _grids(limits):
        difference = abs(ratio - cols / rows)
        # Of grids that fit equally well the larger one, if the image fills over half.
        fills = area > 0.5 * tile_side * tile_side * cols * rows
        if difference < least_difference or (difference == least_difference and fills):
            best, least_difference = (rows, cols), difference
    return best


@lru_cache(maxsize=64)
def _grids(limits: TileLimits) -> tuple[tuple[int, int], ...]:
    """(columns, rows) in the order in which the processor tries them."""
    least, most = limits.least, limits.most
    if limits.is_chat:
        # Through a set, whose order vLLM keeps among grids of as many tiles.
        grids = {
            (cols, rows)
            for tiles in range(least, most + 1)
            for cols in range(1, tiles + 1)
            for rows in range(1, tiles + 1)
            if least <= cols * rows <= most
        }
        return tuple(sorted(grids, key=_tiles))
    listed = [
        (cols, rows)
        for cols in range(1, most + 1)
        for rows in range(1, most // cols + 1)
        if cols * rows >= least
    ]
    return tuple(sorted(listed, key=_tiles))


def _tiles(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
