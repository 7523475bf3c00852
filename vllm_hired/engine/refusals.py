"""What an image or a request cannot have while tokens are dropped."""

from collections.abc import Iterable, Mapping
from typing import Any

from PIL.Image import Image
from torch import Tensor
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems

from vllm_hired.layouts import ImageSizeError

TILE_KWARGS = (
    "crop_size",
    "data_format",
    "default_to_square",
    "do_center_crop",
    "do_pad",
    "do_resize",
    "image_grid_pinpoints",
    "image_size",
    "input_data_format",
    "pad_size",
    "size",
)
"""Arguments of HF's image processors that decide how an image becomes tiles."""

LARGEST_PIXEL = 10_000.0
"""Of normalised pixels, which a model has seen between -3 and 3. Much larger ones
overflow in the tower, and their NaN would stay in the KV cache."""

PROCESSOR_FILES = "preprocessor_config.json (or processor_config.json)"
"""Where a checkpoint says what HF's image processor does."""


def tile_kwargs(processor_kwargs: Mapping[str, object]) -> dict[str, object]:
    """Those of `TILE_KWARGS` among processor kwargs, also inside `images_kwargs`."""
    nested = processor_kwargs.get("images_kwargs")
    scopes = [processor_kwargs, nested if isinstance(nested, Mapping) else {}]
    return {key: s[key] for s in scopes for key in TILE_KWARGS if key in s}


def refuse_tile_kwargs(processor_kwargs: Mapping[str, object]) -> None:
    """Raises `VLLMValidationError` before HF's processor spends time on them."""
    for key, value in tile_kwargs(processor_kwargs).items():
        raise VLLMValidationError(
            f"{key}={value!r} in mm_processor_kwargs is not allowed: with a budget, "
            "tokens are counted by the model's own tiles; leave "
            f"{', '.join(TILE_KWARGS)} out",
            parameter="mm_processor_kwargs",
        )


def refuse_empty_images(mm_items: MultiModalDataItems) -> None:
    """Raises `ImageSizeError` for an image without pixels."""
    for items in mm_items.values():
        # An item is None where the client names a cached image by its uuid.
        for image in items.get_all() if isinstance(items, ImageProcessorItems) else ():
            shape = (
                image.size if isinstance(image, Image) else getattr(image, "shape", ())
            )
            if 0 in shape:
                raise ImageSizeError(f"an image of shape {tuple(shape)} is empty")


def refuse_extreme_pixels(images: Iterable[Tensor]) -> None:
    """Raises `VLLMValidationError` for normalised pixels that are not finite, or so
    large that a tower's arithmetic would leave the finite numbers."""
    for pixels in images:
        low, high = (float(value) for value in pixels.aminmax())
        if not (low >= -LARGEST_PIXEL and high <= LARGEST_PIXEL):
            raise VLLMValidationError(
                f"after normalisation the pixels of an image lie between {low} and "
                f"{high}, not within {LARGEST_PIXEL:.0f} of zero: look at the image's "
                "own values, and at image_mean, image_std and rescale_factor in "
                "mm_processor_kwargs",
                parameter="mm_processor_kwargs",
            )


def processor_file_problem(
    hf_config: Any, image_processor: Any, processor_kwargs: Mapping[str, object]
) -> tuple[str, object, str] | None:
    """Whether the processor cuts tiles as config.json says, as the arguments of a
    `HiredConfigError` if not.

    vLLM counts tiles by config.json, and HF's processor cuts them by its own file.

    Args:
        hf_config: of the model.
        image_processor: HF's.
        processor_kwargs: the engine's `mm_processor_kwargs`.
    """
    if kwargs := tile_kwargs(processor_kwargs):
        key, value = next(iter(kwargs.items()))
        return (
            f"mm_processor_kwargs[{key!r}]",
            value,
            "with a budget, tiles are those of the checkpoint's own config.json",
        )
    pinpoints = getattr(hf_config, "image_grid_pinpoints", None)
    if pinpoints is None:
        return None
    expected = [list(point) for point in pinpoints]
    found = [list(point) for point in image_processor.image_grid_pinpoints]
    # Of two canvases that fit equally well the first is taken, so the order counts.
    if found == expected:
        return None
    return (
        "image_grid_pinpoints",
        found,
        f"it is that of {PROCESSOR_FILES}, and config.json of the same checkpoint has "
        f"{expected}; the two must agree, so correct the wrong file",
    )
