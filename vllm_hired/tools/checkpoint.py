"""What a checkpoint says of itself, without vLLM and without its weights."""

from pathlib import Path
from typing import Any

from vllm_hired.engine.models import MODELS
from vllm_hired.layouts.qwen_vl import PixelLimits
from vllm_hired.tools.config_file import read_config_file, read_pixel_limits
from vllm_hired.towers import tower_of


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, or of another kind."""


def read_plain_config(
    model: str, least_pixels: int | None = None, most_pixels: int | None = None
) -> Any:
    """What `read_config` gives, as far as counting and costs need it: from config.json
    alone where that says enough, which takes no time.

    Args:
        model: directory, or a model id.
        least_pixels: of an image, instead of those in the processor's file.
        most_pixels: likewise.

    Raises:
        CheckpointError
    """
    hf_config = _served(model, read_config_file(model) or read_config(model))
    return with_pixel_limits(model, hf_config, least_pixels, most_pixels)


def with_pixel_limits(
    model: str, hf_config: Any, least_pixels: int | None, most_pixels: int | None
) -> Any:
    """`hf_config` with `pixel_limits`, where the family resizes images by these.

    Args:
        model: directory, or a model id.
        hf_config: of it.
        least_pixels: of an image, instead of those in the processor's file.
        most_pixels: likewise.

    Raises:
        CheckpointError: the family has none, or they are nowhere to be found.
    """
    if tower_of(hf_config).has_tiles:
        if least_pixels or most_pixels:
            raise CheckpointError(
                f"{model} resizes no image by its pixels: leave --min-pixels and "
                "--max-pixels out"
            )
        return hf_config
    limits = read_pixel_limits(model)
    if limits is None:
        if not (least_pixels and most_pixels):
            raise CheckpointError(
                f"{model} has no preprocessor_config.json that says how images are "
                "resized: give --min-pixels and --max-pixels"
            )
        limits = PixelLimits()
    hf_config.update(
        {
            "pixel_limits": PixelLimits(
                least_pixels or limits.least, most_pixels or limits.most
            )
        }
    )
    return hf_config


def read_config(model: str) -> Any:
    """The HF config of a directory or model id that `vllm_hired` serves.

    Raises:
        CheckpointError
    """
    # Not before it is needed: it takes longer than all the rest.
    from transformers import AutoConfig

    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise CheckpointError(f"{model} is no checkpoint: it has no config.json")
    try:
        hf_config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{model} is neither a directory with a config.json that transformers can "
            f"read nor the id of a model that can be found: {reason}"
        ) from error
    return _served(model, hf_config)


def _served(model: str, hf_config: Any) -> Any:
    architectures = getattr(hf_config, "architectures", None) or ["no architecture"]
    if architectures[0] not in MODELS:
        raise CheckpointError(
            f"{model} is {architectures[0]}; vllm_hired serves {', '.join(MODELS)}"
        )
    return hf_config
