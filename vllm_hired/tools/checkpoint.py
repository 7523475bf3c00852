"""What a checkpoint says of itself, without vLLM and without its weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_hired.engine.models import MODELS
from vllm_hired.layouts.internvl import TileLimits, tile_limits
from vllm_hired.layouts.qwen_vl import PixelLimits
from vllm_hired.tools.config_file import (
    read_config_file,
    read_pixel_limits,
    read_tile_limits,
)
from vllm_hired.towers import tower_of


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, or of another kind."""


@dataclass(frozen=True)
class ImageLimits:
    """Of a request or an engine, instead of those that the checkpoint's files have.

    Attributes:
        least_pixels: of an image, in Qwen-VL.
        most_pixels: likewise.
        least_tiles: of an image, in InternVL.
        most_tiles: likewise.
    """

    least_pixels: int | None = None
    most_pixels: int | None = None
    least_tiles: int | None = None
    most_tiles: int | None = None


NO_LIMITS = ImageLimits()


def read_plain_config(model: str, asked: ImageLimits = NO_LIMITS) -> Any:
    """What `read_config` gives, as far as counting and costs need it: from config.json
    alone where that says enough, which takes no time.

    Args:
        model: directory, or a model id.
        asked: limits of images.

    Raises:
        CheckpointError
    """
    hf_config = _served(model, read_config_file(model) or read_config(model))
    return with_limits(model, hf_config, asked)


def with_limits(model: str, hf_config: Any, asked: ImageLimits) -> Any:
    """`hf_config` with `pixel_limits` or `tile_limits`, where the family has these.

    Args:
        model: directory, or a model id.
        hf_config: of it.
        asked: limits of images.

    Raises:
        CheckpointError: the family has none, or they are nowhere to be found.
    """
    limits = tower_of(hf_config).limits
    if limits != "pixels" and (asked.least_pixels or asked.most_pixels):
        raise CheckpointError(
            f"{model} resizes no image by its pixels: leave --min-pixels and "
            "--max-pixels out"
        )
    if limits != "tiles" and (asked.least_tiles or asked.most_tiles):
        raise CheckpointError(
            f"{model} has no limits of tiles: leave --min-tiles and --max-tiles out"
        )
    if limits == "pixels":
        hf_config.update({"pixel_limits": _pixel_limits(model, asked)})
    if limits == "tiles":
        hf_config.update({"tile_limits": _tile_limits(model, hf_config, asked)})
    return hf_config


def _pixel_limits(model: str, asked: ImageLimits) -> PixelLimits:
    limits = read_pixel_limits(model)
    if limits is None:
        if not (asked.least_pixels and asked.most_pixels):
            raise CheckpointError(
                f"{model} has no preprocessor_config.json that says how images are "
                "resized: give --min-pixels and --max-pixels"
            )
        limits = PixelLimits()
    return PixelLimits(
        asked.least_pixels or limits.least, asked.most_pixels or limits.most
    )


def _tile_limits(model: str, hf_config: Any, asked: ImageLimits) -> TileLimits:
    of_config = tile_limits(hf_config)
    limits = of_config if of_config.is_chat else read_tile_limits(model)
    if limits is None:
        if not (asked.least_tiles and asked.most_tiles):
            raise CheckpointError(
                f"{model} has no preprocessor_config.json that says how images are "
                "cut: give --min-tiles and --max-tiles"
            )
        limits = TileLimits()
    return replace(
        limits,
        least=asked.least_tiles or limits.least,
        most=asked.most_tiles or limits.most,
    )


def read_config(model: str) -> Any:
    """The HF config of a directory or model id that `vllm_hired` serves; what its
    config.json says where only code of the checkpoint's own would make one of it.

    Raises:
        CheckpointError
    """
    # Not before it is needed: it takes longer than all the rest.
    from transformers import CONFIG_MAPPING, AutoConfig

    plain = read_config_file(model)
    if plain is not None and plain.model_type not in CONFIG_MAPPING:
        return _served(model, plain)
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
