"""A checkpoint's config.json, read without transformers, whose import takes seconds.

Published files leave out what equals their class's defaults. Those that counting and
costs need are stated here; a test holds them to transformers' own classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm_hired.layouts import largest_image_sizes

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
}
"""`model_type` of a nested config -> defaults of its class in transformers."""

LLAVA_DEFAULTS: dict[str, Any] = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


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
        data = json.loads(_path(model).read_text("utf-8"))
        nested = {
            name: PlainConfig(**(DEFAULTS[data[name]["model_type"]] | data[name]))
            for name in ("vision_config", "text_config")
        }
        config = PlainConfig(**(LLAVA_DEFAULTS | data | nested))
        # Does the family find all that it reads?
        largest_image_sizes(config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return config


def _path(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model) / "config.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "config.json", local_files_only=True))
