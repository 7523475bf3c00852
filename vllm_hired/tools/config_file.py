"""A checkpoint's files, read without transformers, whose import takes seconds.

Published files leave out what equals their class's defaults. Those that counting and
costs need are stated here; a test holds them to transformers' own classes.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from vllm_hired.layouts import largest_image_sizes
from vllm_hired.layouts.internvl import TileLimits
from vllm_hired.layouts.qwen_vl import PixelLimits

_T = TypeVar("_T")

_TEXT = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {**_VISION, "patch_size": 32},
    "siglip_vision_model": {**_VISION, "patch_size": 16},
    "llama": {**_TEXT, "intermediate_size": 11008, "vocab_size": 32000},
    "mistral": {
        **_TEXT,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        **_TEXT,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
    },
    "qwen3": {
        **_TEXT,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
    "internvl_vision": {
        **_VISION,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": (448, 448),
        "patch_size": (14, 14),
    },
}
"""`model_type` of a nested config -> defaults of its class in transformers."""

_QWEN_TEXT = {
    **_TEXT,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}
_QWEN_VISION = {
    "depth": 32,
    "hidden_size": 3584,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN3_VISION = {
    **_QWEN_VISION,
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 16,
    "out_hidden_size": 3584,
    "deepstack_visual_indexes": (8, 16, 24),
}
QWEN_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_vl_text": _QWEN_TEXT,
    "qwen2_vl_vision": {**_QWEN_VISION, "embed_dim": 1280, "mlp_ratio": 4},
    "qwen2_5_vl_text": _QWEN_TEXT,
    "qwen2_5_vl_vision": {
        **_QWEN_VISION,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
    "qwen3_vl_text": {
        **_TEXT,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
    "qwen3_vl_vision": _QWEN3_VISION,
    "qwen3_vl_moe_text": {
        **_TEXT,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 151936,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
    },
    "qwen3_vl_moe_vision": _QWEN3_VISION,
}
"""`model_type` of a Qwen-VL, and which nested config -> defaults, likewise."""

_LLAVA = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}

TOP_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "internvl": {"downsample_ratio": 0.5},
}
"""`model_type` of a model -> defaults of its class, likewise."""


class PlainConfig(SimpleNamespace):
    """As much of an HF config as counting and costs need."""

    def update(self, changes: Mapping[str, object]) -> None:
        vars(self).update(changes)


def read_config_file(model: str) -> PlainConfig | None:
    """The config of a directory or cached model id; None where only transformers can
    tell, or say what is wrong.

    Args:
        model: directory with a config.json, or a model id.
    """
    try:
        data = _read(model, "config.json")
        if _is_qwen(data):
            return PlainConfig(**(data | _qwen_configs(data)))
        if data["model_type"] == "internvl_chat":
            config = PlainConfig(**(data | _chat_configs(data)))
        else:
            nested = {
                name: PlainConfig(**(DEFAULTS[data[name]["model_type"]] | data[name]))
                for name in ("vision_config", "text_config")
            }
            config = PlainConfig(**(TOP_DEFAULTS[data["model_type"]] | data | nested))
        # Does the family find all that it reads?
        largest_image_sizes(config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return config


def read_pixel_limits(model: str) -> PixelLimits | None:
    """Between which a Qwen-VL's processor file keeps an image's pixels; None where
    there is no such file.

    Args:
        model: directory, or a model id.
    """

    def limits(data: Mapping[str, Any]) -> PixelLimits:
        size = {**vars(PixelLimits()), **(data.get("size") or {})}
        least = data.get("min_pixels") or size.get("shortest_edge", size["least"])
        most = data.get("max_pixels") or size.get("longest_edge", size["most"])
        return PixelLimits(int(least), int(most))

    return _read_processor(model, limits)


def read_tile_limits(model: str) -> TileLimits | None:
    """How many tiles the processor file of an InternVL in HF's format allows; None
    where there is no such file.

    Args:
        model: directory, or a model id.
    """

    def limits(data: Mapping[str, Any]) -> TileLimits:
        least, most = TileLimits().least, TileLimits().most
        return TileLimits(
            int(data.get("min_patches", least)), int(data.get("max_patches", most))
        )

    return _read_processor(model, limits)


def _read_processor(model: str, read: Callable[[Mapping[str, Any]], _T]) -> _T | None:
    """What `read` makes of the image processor's file, in the form that is there."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            data = _read(model, name)
            return read(data.get("image_processor", data))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return None


def _is_qwen(data: Mapping[str, Any]) -> bool:
    return f"{data['model_type']}_text" in QWEN_DEFAULTS


def _chat_configs(data: Mapping[str, Any]) -> dict[str, PlainConfig]:
    """Nested configs of an `InternVLChatModel`, whose own code writes them whole."""
    return {
        "text_config": PlainConfig(**data["llm_config"]),
        "vision_config": PlainConfig(**data["vision_config"]),
    }


def _qwen_configs(data: Mapping[str, Any]) -> dict[str, PlainConfig]:
    """Nested configs, of which older files have the LLM's at the top level."""
    found = {
        "text_config": data.get("text_config") or data,
        "vision_config": data["vision_config"],
    }
    return {
        name: PlainConfig(
            **(QWEN_DEFAULTS[f"{data['model_type']}_{name.removesuffix('_config')}"])
            | {k: v for k, v in own.items() if not isinstance(v, Mapping)}
        )
        for name, own in found.items()
    }


def _read(model: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_path(model, name).read_text("utf-8"))
    return data


def _path(model: str, name: str) -> Path:
    if Path(model).is_dir():
        return Path(model) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name, local_files_only=True))
