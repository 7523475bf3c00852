"""Image size -> layout, one file a family. Adding one is one file and one row here."""

from importlib import import_module
from typing import Any, Protocol, cast

from vllm_hired.layouts.base import ImageSizeError, Layout

__all__ = [
    "FAMILIES",
    "Family",
    "FamilyError",
    "ImageSizeError",
    "Layout",
    "family_of",
    "image_layout",
    "largest_image_sizes",
]

FAMILIES = {
    "llava_next": "vllm_hired.layouts.llava_next",
    "llava": "vllm_hired.layouts.llava",
    "qwen2_vl": "vllm_hired.layouts.qwen_vl",
    "qwen2_5_vl": "vllm_hired.layouts.qwen_vl",
    "qwen3_vl": "vllm_hired.layouts.qwen_vl",
    "qwen3_vl_moe": "vllm_hired.layouts.qwen_vl",
    "internvl": "vllm_hired.layouts.internvl",
    "internvl_chat": "vllm_hired.layouts.internvl",
}
"""HF config's `model_type` -> module, imported when used."""


class FamilyError(ValueError):
    """A model of a family that has no layout here."""


class Family(Protocol):
    """What a module of this folder gives."""

    def image_layout(
        self, hf_config: Any, image_height: int, image_width: int
    ) -> Layout: ...

    def largest_image_sizes(self, hf_config: Any) -> list[tuple[int, int]]: ...


def family_of(hf_config: Any) -> Family:
    """The module for a model's HF config.

    Raises:
        FamilyError: no module is listed for its `model_type`.
    """
    model_type = hf_config.model_type
    if model_type not in FAMILIES:
        raise FamilyError(
            f"model_type={model_type!r} has no layout here; there are "
            f"{', '.join(FAMILIES)}"
        )
    return cast(Family, import_module(FAMILIES[model_type]))


def image_layout(hf_config: Any, image_height: int, image_width: int) -> Layout:
    """Layout of an image of so many pixels in a model.

    Raises:
        ImageSizeError: the image leaves nothing to select from.
    """
    return family_of(hf_config).image_layout(hf_config, image_height, image_width)


def largest_image_sizes(hf_config: Any) -> list[tuple[int, int]]:
    """(height, width) in pixels of images among which is one with most tokens,
    whatever the budget."""
    return family_of(hf_config).largest_image_sizes(hf_config)
