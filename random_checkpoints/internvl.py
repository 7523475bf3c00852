"""Writes InternVL checkpoints with random weights, or none, in the published layouts.

The dimensions are the caller's choice; see `internvl_configs`. The weights of the two
formats are the same where all but the format is.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from random_checkpoints.internvl_configs import (
    CHAT_CONFIGURATION,
    InternVLShape,
    internvl_config,
    processor_files,
)
from random_checkpoints.tokenizer import byte_level_tokenizer
from random_checkpoints.weights import random_model, save_tensors, with_prefix

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}"
    "{% elif item['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ 'IMAGE\n' }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

IMAGE_TEXT = {"internvl": "<IMG_CONTEXT>", "internvl_chat": "<image>"}
"""What stands for an image in a prompt, by `model_type`."""


def make_internvl_tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of an InternVL checkpoint."""
    fast = byte_level_tokenizer(
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "context_image_token": "<IMG_CONTEXT>",
            "end_image_token": "</img>",
            "start_image_token": "<img>",
            "video_token": "<video>",
        },
    )
    names = ["<|im_start|>", "<|video_pad|>"]
    fast.add_tokens(names, special_tokens=True)
    fast.chat_template = CHAT_TEMPLATE.replace("IMAGE", IMAGE_TEXT[model_type])
    return fast


def write_internvl_checkpoint(
    folder: Path, shape: InternVLShape, seed: int | None = 0
) -> Path:
    """Writes config, weights, tokenizer, chat template, and processor or remote code.

    Args:
        folder: made if it is missing.
        shape: the dimensions.
        seed: of the random weights; None writes none, for `load_format="dummy"`.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_internvl_tokenizer(shape.model_type)
    tokenizer.save_pretrained(folder)
    files = {"config.json": internvl_config(shape, tokenizer)}
    if shape.model_type == "internvl":
        files |= processor_files(shape)
    else:
        path = folder / "configuration_internvl_chat.py"
        path.write_text(CHAT_CONFIGURATION)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    if seed is not None:
        in_hf_format = replace(shape, model_type="internvl")
        settings = internvl_config(in_hf_format, tokenizer)
        settings.pop("architectures")
        model = random_model(AutoConfig.for_model(**settings), seed)
        save_internvl_weights(folder, model, shape.model_type)
    return folder


def save_internvl_weights(folder: Path, model: Any, model_type: str) -> None:
    """Writes an HF model's weights under their published names."""
    weights = {
        published_name(name): tensor for name, tensor in model.state_dict().items()
    }
    if model_type == "internvl_chat":
        weights = chat_weights(weights)
    save_tensors(folder, weights)


def published_name(name: str) -> str:
    """A weight's name in published checkpoints of HF's format, from HF's in memory."""
    prefixes = (
        ("language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    return with_prefix(name.removeprefix("model."), prefixes)


CHAT_NAMES = (
    (r"vision_tower\.", "vision_model."),
    (r"\.cls_token", ".class_embedding"),
    (r"\.position_embeddings", ".position_embedding"),
    (r"\.patch_embeddings\.projection", ".patch_embedding"),
    (r"\.encoder\.layer\.", ".encoder.layers."),
    (r"\.lambda_", ".ls"),
    (r"\.attention\.projection_layer", ".attn.proj"),
    (r"\.attention\.", ".attn."),
    (r"\.layernorm_before", ".norm1"),
    (r"\.layernorm_after", ".norm2"),
    (r"multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"multi_modal_projector\.linear_1", "mlp1.1"),
    (r"multi_modal_projector\.linear_2", "mlp1.3"),
)
"""Parts of names in HF's format -> those with remote code."""


def chat_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in HF's format as checkpoints with remote code have them: under other
    names, queries, keys and values in one."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith("language_model."):
            for pattern, published in CHAT_NAMES:
                name = re.sub(pattern, published, name)
        renamed[name] = tensor
    for name in [*renamed]:
        if ".attn.q_proj." in name:
            parts = [renamed.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
            renamed[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return renamed
