"""LLaVA-1.5: every image is scaled and cropped to one partition."""

from typing import Any

from vllm_hired.layouts.base import Layout


def image_layout(hf_config: Any, image_height: int, image_width: int) -> Layout:
    """The one layout, whatever the image's size."""
    vision = hf_config.vision_config
    side = vision.image_size // vision.patch_size
    return Layout(rows=side, cols=side)


def largest_image_sizes(hf_config: Any) -> list[tuple[int, int]]:
    """(height, width) in pixels of the one image size that the tower sees."""
    side = hf_config.vision_config.image_size
    return [(side, side)]
