"""Writes LLaVA checkpoints with random weights, or none, in the published layout.

HF transformers and vLLM load them like any other checkpoint. The dimensions are the
caller's choice, up to the real ones; the weights mean nothing.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from random_checkpoints.tokenizer import byte_level_tokenizer
from random_checkpoints.weights import random_model, save_tensors, with_prefix

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    # Images first, whatever a client's order, as published LLaVA templates have it.
    "{% for item in message['content'] if item['type'] != 'text' %}<image>{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}"
    # An expression: transformers renders with trim_blocks, which eats a plain newline.
    "{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

REAL_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclass(frozen=True)
class Shape:
    """Dimensions of a checkpoint; the defaults are LLaVA-NeXT's vision layout.

    Attributes:
        architecture: HF model type: "llava_next", or "llava" (LLaVA-1.5).
        tower: "clip"; of a "llava" also "siglip" and "pixtral", which have no [CLS].
        tile_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        pinpoints: canvas sizes, (height, width) in pixels.
        vision_intermediate: twice the hidden size where it is 0; text_intermediate too.
        text_kv_heads: as many as heads where it is 0.
        vocabulary: at least the tokenizer's.
        vision_layers: layers of the whole tower; the feature layer is -2.
        backbone: HF model type of the LLM.
        feature_layer: which of the tower's layers gives the features.
        feature_strategy: "default" (patches) or "full" (with [CLS]).
    """

    architecture: str = "llava_next"
    tower: str = "clip"
    tile_size: int = 336
    patch_size: int = 14
    pinpoints: tuple[tuple[int, int], ...] = REAL_PINPOINTS
    vision_hidden: int = 64
    vision_intermediate: int = 0
    vision_heads: int = 4
    vision_layers: int = 4
    text_hidden: int = 128
    text_intermediate: int = 0
    text_kv_heads: int = 0
    vocabulary: int = 0
    text_layers: int = 2
    text_heads: int = 4
    max_positions: int = 8192
    backbone: str = "llama"
    feature_layer: int = -2
    feature_strategy: str = "default"


def small(**changes: Any) -> Shape:
    """A shape for tests: tiles of 8 x 8 patches, canvases up to 2 x 2 and 1 x 3."""
    tile = 56
    pinpoints = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    defaults: dict[str, Any] = {
        "tile_size": tile,
        "patch_size": 7,
        "pinpoints": tuple((rows * tile, cols * tile) for rows, cols in pinpoints),
        "max_positions": 2048,
    }
    return Shape(**(defaults | changes))


_CLIP_LARGE = Shape(
    vision_hidden=1024,
    vision_intermediate=4096,
    vision_heads=16,
    vision_layers=24,
    vocabulary=32064,
)
_SEVEN_B = replace(
    _CLIP_LARGE,
    text_hidden=4096,
    text_heads=32,
    text_layers=32,
    text_intermediate=11008,
)

SHAPES = {
    "llava-1.5-7b": replace(_SEVEN_B, architecture="llava"),
    "llava-next-7b": _SEVEN_B,
    "llava-next-13b": replace(
        _CLIP_LARGE,
        text_hidden=5120,
        text_heads=40,
        text_layers=40,
        text_intermediate=13824,
    ),
    "llava-next-mistral-7b": replace(
        _SEVEN_B, text_intermediate=14336, text_kv_heads=8, backbone="mistral"
    ),
    "tiny": Shape(
        vision_hidden=256,
        vision_layers=6,
        text_hidden=512,
        text_heads=8,
        text_layers=8,
    ),
    "small": small(),
}
"""Published models' dimensions, one that a laptop can run, and that of the tests."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """That of a LLaVA or a Pixtral checkpoint."""
    fast = byte_level_tokenizer(
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={
            "image_token": "<image>",
            "image_break_token": "<break>",
            "image_end_token": "<end>",
        },
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _tower_config(shape: Shape) -> Any:
    configs: dict[str, tuple[Any, dict[str, Any]]] = {
        "clip": (CLIPVisionConfig, {"projection_dim": shape.vision_hidden}),
        "siglip": (SiglipVisionConfig, {"vision_use_head": False}),
        "pixtral": (PixtralVisionConfig, {}),
    }
    config, options = configs[shape.tower]
    return config(
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_intermediate or shape.vision_hidden * 2,
        num_attention_heads=shape.vision_heads,
        num_hidden_layers=shape.vision_layers,
        image_size=shape.tile_size,
        patch_size=shape.patch_size,
        **options,
    )


def make_config(
    shape: Shape, tokenizer: PreTrainedTokenizerFast
) -> LlavaConfig | LlavaNextConfig:
    """The HF config of `shape`."""
    text = AutoConfig.for_model(
        shape.backbone,
        hidden_size=shape.text_hidden,
        intermediate_size=shape.text_intermediate or shape.text_hidden * 2,
        num_attention_heads=shape.text_heads,
        num_key_value_heads=shape.text_kv_heads or shape.text_heads,
        head_dim=shape.text_hidden // shape.text_heads,
        num_hidden_layers=shape.text_layers,
        max_position_embeddings=shape.max_positions,
        vocab_size=max(len(tokenizer), shape.vocabulary),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    options: dict[str, Any] = {
        "vision_config": _tower_config(shape),
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": shape.feature_layer,
        "vision_feature_select_strategy": shape.feature_strategy,
    }
    if shape.architecture == "llava":
        return LlavaConfig(architectures=["LlavaForConditionalGeneration"], **options)
    return LlavaNextConfig(
        architectures=["LlavaNextForConditionalGeneration"],
        image_grid_pinpoints=[list(point) for point in shape.pinpoints],
        **options,
    )


def make_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The HF processor of `shape`."""
    side = {"height": shape.tile_size, "width": shape.tile_size}
    if shape.tower == "pixtral":
        return PixtralProcessor(
            image_processor=PixtralImageProcessor(
                size={"longest_edge": shape.tile_size},
                patch_size={"height": shape.patch_size, "width": shape.patch_size},
            ),
            tokenizer=tokenizer,
            patch_size=shape.patch_size,
            chat_template=CHAT_TEMPLATE,
            image_token="<image>",
            image_break_token="<break>",
            image_end_token="<end>",
        )
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": shape.patch_size,
        "vision_feature_select_strategy": shape.feature_strategy,
        "num_additional_image_tokens": int(shape.tower == "clip"),
        "chat_template": CHAT_TEMPLATE,
    }
    size = {"size": {"shortest_edge": shape.tile_size}, "crop_size": side}
    if shape.architecture == "llava":
        return LlavaProcessor(image_processor=CLIPImageProcessor(**size), **options)
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            image_grid_pinpoints=[list(point) for point in shape.pinpoints], **size
        ),
        **options,
    )


def write_checkpoint(folder: Path, shape: Shape, seed: int | None = 0) -> Path:
    """Writes config, weights, tokenizer, chat template and processor.

    Args:
        folder: made if it is missing.
        shape: the dimensions.
        seed: of the random weights; None writes none, for `load_format="dummy"`.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    config = make_config(shape, tokenizer)
    if seed is not None:
        save_weights(folder, random_model(config, seed))
    config.save_pretrained(folder)
    make_processor(shape, tokenizer).save_pretrained(folder)
    return folder


def save_weights(folder: Path, model: Any) -> None:
    """Writes an HF model's weights under their published names."""
    tower = model.config.vision_config.model_type
    weights = {
        published_name(name, tower): tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_tensors(folder, weights)


def published_name(name: str, tower: str) -> str:
    """A weight's name in published LLaVA checkpoints, from HF's in memory."""
    level = "" if tower == "pixtral" else "vision_model."
    prefixes = (
        ("vision_tower.vision_model.", "vision_tower.vision_model."),
        ("vision_tower.", f"vision_tower.{level}"),
        ("language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
    return with_prefix(name.removeprefix("model."), prefixes)
