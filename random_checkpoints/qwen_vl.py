"""Writes Qwen-VL checkpoints with random weights, or none, in the published layout.

The dimensions are the caller's choice; see `qwen_vl_configs`.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from random_checkpoints.qwen_vl_configs import (
    IS_NESTED,
    QwenShape,
    processor_files,
    qwen_config,
)
from random_checkpoints.tokenizer import byte_level_tokenizer
from random_checkpoints.weights import random_model, save_tensors, with_prefix

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}"
    "{% elif item['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_qwen_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of a Qwen-VL checkpoint."""
    fast = byte_level_tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": [*SPECIAL_TOKENS]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_qwen_checkpoint(folder: Path, shape: QwenShape, seed: int | None = 0) -> Path:
    """Writes config, weights, tokenizer, chat template and processor.

    Args:
        folder: made if it is missing.
        shape: the dimensions.
        seed: of the random weights; None writes none, for `load_format="dummy"`.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_qwen_tokenizer()
    tokenizer.save_pretrained(folder)
    files = {"config.json": qwen_config(shape, tokenizer), **processor_files(shape)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    if seed is not None:
        model = random_model(AutoConfig.from_pretrained(folder), seed)
        save_qwen_weights(folder, model)
    return folder


def save_qwen_weights(folder: Path, model: Any) -> None:
    """Writes an HF model's weights under their published names, and those of experts
    transposed, as they are published."""
    is_third = model.config.model_type in IS_NESTED
    weights = {
        name if is_third else published_name(name): tensor.mT
        if ".experts." in name
        else tensor
        for name, tensor in model.state_dict().items()
    }
    save_tensors(folder, weights)


def published_name(name: str) -> str:
    """A weight's name in Qwen2-VL's and Qwen2.5-VL's checkpoints, from HF's in memory;
    Qwen3-VL's are the same."""
    prefixes = (("model.visual.", "visual."), ("model.language_model.", "model."))
    return with_prefix(name, prefixes)
