"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: one partition of any shape, a cell for 2 x 2 patches.

HF's processor resizes an image to whole cells and within limits of pixels, and says the
grid that came out; the engine counts by that grid. Before there is one, `image_layout`
does the same arithmetic.
"""

import math
from dataclasses import dataclass
from typing import Any

from vllm_hired.layouts.base import ImageSizeError, Layout

MAX_RATIO = 200
"""Of the longer side to the shorter one; HF's processor refuses more."""


@dataclass(frozen=True)
class PixelLimits:
    """Between which an image's pixels lie after resizing, as far as whole cells allow.

    Attributes:
        least: `min_pixels`, or `size["shortest_edge"]`.
        most: `max_pixels`, or `size["longest_edge"]`.
    """

    least: int = 56 * 56
    most: int = 28 * 28 * 1280


def grid_layout(rows: int, cols: int) -> Layout:
    """Layout of a grid of cells.

    At least as many tokens stay as the longer side has cells. Text after an image is at
    the position after its longer side, so no position outruns the number of tokens.
    """
    return Layout(rows=rows, cols=cols, least_kept=max(rows, cols))


def image_layout(hf_config: Any, image_height: int, image_width: int) -> Layout:
    """Layout of an image of so many pixels, by the limits in `pixel_limits(hf_config)`.

    Raises:
        ImageSizeError: an empty image, or one that is too long and thin.
    """
    side = cell_side(hf_config)
    height, width = resized(image_height, image_width, side, pixel_limits(hf_config))
    return grid_layout(height // side, width // side)


def largest_image_sizes(hf_config: Any) -> list[tuple[int, int]]:
    """(height, width) in pixels of images near the most cells and the longest side."""
    side, limits = cell_side(hf_config), pixel_limits(hf_config)
    shorter = max(1, math.isqrt(limits.most))
    thin = max(1, math.isqrt(limits.most // MAX_RATIO))
    sizes = [(shorter, shorter), (side, min(MAX_RATIO, limits.most // side**2) * side)]
    return [*sizes, (thin, MAX_RATIO * thin)]


def pixel_limits(hf_config: Any) -> PixelLimits:
    """Those that the checkpoint's processor file has, which whoever read it put on the
    config as `pixel_limits`; else those of HF's class."""
    limits: PixelLimits = getattr(hf_config, "pixel_limits", PixelLimits())
    return limits


def cell_side(hf_config: Any) -> int:
    """Pixels along a side of a cell."""
    vision = hf_config.vision_config
    return int(vision.patch_size * vision.spatial_merge_size)


def resized(height: int, width: int, side: int, limits: PixelLimits) -> tuple[int, int]:
    """(height, width) in pixels after HF's processor, multiples of `side`.

    transformers' `smart_resize`, in the same floating-point arithmetic, without its
    module.

    Raises:
        ImageSizeError: an empty image, or one that is too long and thin.
    """
    if height < 1 or width < 1:
        raise ImageSizeError(
            f"an image of {width}x{height} pixels is empty: "
            "both sides must be at least 1"
        )
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ImageSizeError(
            f"an image of {width}x{height} pixels is too long and thin: its longer "
            f"side is more than {MAX_RATIO} times its shorter one; crop it"
        )
    rows, cols = round(height / side), round(width / side)
    if rows * cols * side**2 > limits.most:
        scale = math.sqrt((height * width) / limits.most)
        rows = max(1, math.floor(height / scale / side))
        cols = max(1, math.floor(width / scale / side))
    elif rows * cols * side**2 < limits.least:
        scale = math.sqrt(limits.least / (height * width))
        rows = math.ceil(height * scale / side)
        cols = math.ceil(width * scale / side)
    return rows * side, cols * side


def most_cells(side: int, limits: PixelLimits) -> int:
    """A bound on an image's cells.

    That of `limits.most`, but for images so thin that one row of cells is more, and for
    small ones, which are enlarged to whole cells.
    """
    least = limits.least / side**2
    enlarged = least + 1 + math.sqrt(MAX_RATIO * least) + math.sqrt(least / MAX_RATIO)
    most = limits.most // side**2
    return max(1, most, longest_side(side, limits), math.floor(enlarged))


def longest_side(side: int, limits: PixelLimits) -> int:
    """A bound on the cells along an image's longer side.

    A grid of `r` rows comes from an image of under `r + 1/2` cells' height, so it has
    at most `200 * r + 100` columns, unless the image was scaled to the limits.
    """
    most = limits.most // side**2
    as_it_is = max(
        min(most // rows, MAX_RATIO * rows + MAX_RATIO // 2)
        for rows in range(1, math.isqrt(most // MAX_RATIO) + 2)
    )
    scaled = math.sqrt(MAX_RATIO * limits.most) / side
    enlarged = math.sqrt(MAX_RATIO * limits.least) / side
    return max(1, as_it_is, math.floor(scaled), math.ceil(enlarged))
