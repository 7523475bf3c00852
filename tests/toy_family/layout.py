"""LLaVA-pair: two tiles, one after another, then a thumbnail."""

from dataclasses import replace
from typing import Any

from vllm_hired.layouts import Layout, llava_next

largest_image_sizes = llava_next.largest_image_sizes


def image_layout(hf_config: Any, image_height: int, image_width: int) -> Layout:
    """Tiles are cut and padded as LLaVA-NeXT's.

    Raises:
        ImageSizeError: see `llava_next.anyres_layout`.
    """
    return replace(
        llava_next.image_layout(hf_config, image_height, image_width),
        thumbnail="last",
        tile_by_tile=True,
        num_separators=0,
    )
