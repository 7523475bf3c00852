"""LLaVA-NeXT: a thumbnail, then tiles on a padded canvas, with newline tokens."""

from functools import lru_cache
from typing import Any

from vllm_hired.layouts.base import ImageSizeError, Layout


def image_layout(hf_config: Any, image_height: int, image_width: int) -> Layout:
    """Layout of an image of so many pixels.

    Raises:
        ImageSizeError: see `anyres_layout`.
    """
    vision = hf_config.vision_config
    return anyres_layout(
        image_height,
        image_width,
        tuple(map(tuple, hf_config.image_grid_pinpoints)),
        vision.image_size,
        vision.patch_size,
    )


def largest_image_sizes(hf_config: Any) -> list[tuple[int, int]]:
    """(height, width) in pixels of images that fill a canvas each."""
    return [tuple(point) for point in hf_config.image_grid_pinpoints]


@lru_cache(maxsize=4096)
def anyres_layout(
    image_height: int,
    image_width: int,
    pinpoints: tuple[tuple[int, int], ...],
    tile_size: int,
    patch_size: int,
) -> Layout:
    """What transformers' `get_anyres_image_grid_shape` and `unpad_image` give.

    In the same floating-point arithmetic, without their modules, which take seconds to
    import.

    Args:
        image_height: pixels of the original image.
        image_width: likewise.
        pinpoints: the model's `image_grid_pinpoints`, (height, width) in pixels.
        tile_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.

    Raises:
        ImageSizeError: an empty image, or one so long and thin that no row or
            column of its patches is left after unpadding.
    """
    if image_height < 1 or image_width < 1:
        raise ImageSizeError(
            f"an image of {image_width}x{image_height} pixels is empty: "
            "both sides must be at least 1"
        )
    g = tile_size // patch_size

    def fit(canvas: tuple[int, int]) -> tuple[int, int]:
        """Pixels of the image that the canvas shows, and (negative) those it wastes."""
        scale = min(canvas[1] / image_width, canvas[0] / image_height)
        shown = int(image_width * scale) * int(image_height * scale)
        shown = min(shown, image_width * image_height)
        return shown, shown - canvas[0] * canvas[1]

    tile_rows, tile_cols = (side // tile_size for side in max(pinpoints, key=fit))
    height, width = tile_rows * g, tile_cols * g
    top = left = 0
    if image_width / image_height > width / height:
        top = (height - _rounded(image_height * (width / image_width))) // 2
    else:
        left = (width - _rounded(image_width * (height / image_height))) // 2
    if 2 * top >= height or 2 * left >= width:
        raise ImageSizeError(
            f"an image of {image_width}x{image_height} pixels is too long and thin: "
            f"its shorter side is under one patch of the canvas of {width}x{height} "
            "patches; crop it"
        )
    return Layout(
        rows=g,
        cols=g,
        tile_rows=tile_rows,
        tile_cols=tile_cols,
        top=top,
        left=left,
        height=height - 2 * top,
        width=width - 2 * left,
        # One newline token ends each row of the canvas.
        num_separators=height - 2 * top,
    )


def _rounded(patches: float) -> int:
    """Whole patches; rounded first, so that 11.999999999 counts as 12."""
    return int(round(patches, 7))
