"""Dimensions of InternVL checkpoints, and their config and processor files.

Keys are those of `OpenGVLab/InternVL3-8B`, with remote code, and of
`OpenGVLab/InternVL3_5-8B-HF`, in the format of HF transformers.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerFast

ARCHITECTURES = {
    "internvl": "InternVLForConditionalGeneration",
    "internvl_chat": "InternVLChatModel",
}
"""`model_type` -> architecture."""


@dataclass(frozen=True)
class InternVLShape:
    """Dimensions of a checkpoint; the defaults are InternVL3.5-8B's.

    Attributes:
        model_type: a key of `ARCHITECTURES`: HF's format, or that with remote code.
        tile_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        most_tiles: of an image, the thumbnail not among them.
        qk_norm: whether the tower normalises queries and keys, as the 6B one does.
        backbone: HF model type of the LLM.
    """

    model_type: str = "internvl"
    tile_size: int = 448
    patch_size: int = 14
    most_tiles: int = 12
    vision_hidden: int = 1024
    vision_intermediate: int = 4096
    vision_heads: int = 16
    vision_layers: int = 24
    qk_norm: bool = False
    backbone: str = "qwen3"
    text_hidden: int = 4096
    text_intermediate: int = 12288
    text_heads: int = 32
    text_kv_heads: int = 8
    text_layers: int = 36
    vocabulary: int = 151936
    max_positions: int = 40960

    @property
    def cells_per_tile(self) -> int:
        return (self.tile_size // self.patch_size // 2) ** 2


INTERNVL_SHAPES = {
    "internvl3.5-8b": InternVLShape(),
    "internvl3-8b": replace(
        InternVLShape(),
        model_type="internvl_chat",
        backbone="qwen2",
        text_hidden=3584,
        text_intermediate=18944,
        text_heads=28,
        text_kv_heads=4,
        text_layers=28,
        vocabulary=151674,
        max_positions=32768,
    ),
}
"""Published models' dimensions."""


def small_internvl(model_type: str, **changes: Any) -> InternVLShape:
    """A shape for tests: tiles of 6 x 6 cells, up to 6 of them."""
    is_chat = model_type == "internvl_chat"
    shape = InternVLShape(
        model_type=model_type,
        tile_size=84,
        patch_size=7,
        most_tiles=6,
        vision_hidden=64,
        vision_intermediate=96,
        vision_heads=4,
        vision_layers=4,
        qk_norm=is_chat,
        backbone="qwen2" if is_chat else "qwen3",
        text_hidden=128,
        text_intermediate=256,
        text_heads=4,
        text_kv_heads=2,
        text_layers=3,
        vocabulary=0,
        max_positions=4096,
    )
    return replace(shape, **changes)


def internvl_config(
    shape: InternVLShape, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """What config.json holds."""
    vision: dict[str, Any] = {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": shape.vision_hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.vision_intermediate,
        "layer_norm_eps": 1e-6,
        "norm_type": "rms_norm" if shape.qk_norm else "layer_norm",
        "num_attention_heads": shape.vision_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_layers,
    }
    text: dict[str, Any] = {
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "head_dim": shape.text_hidden // shape.text_heads,
        "hidden_act": "silu",
        "hidden_size": shape.text_hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.text_intermediate,
        "max_position_embeddings": shape.max_positions,
        "model_type": shape.backbone,
        "num_attention_heads": shape.text_heads,
        "num_hidden_layers": shape.text_layers,
        "num_key_value_heads": shape.text_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": max(len(tokenizer), shape.vocabulary),
    }
    common = {
        "architectures": [ARCHITECTURES[shape.model_type]],
        "downsample_ratio": 0.5,
        "model_type": shape.model_type,
        "tie_word_embeddings": False,
    }
    if shape.model_type == "internvl":
        return {
            **common,
            "image_seq_length": shape.cells_per_tile,
            "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            "projector_hidden_act": "gelu",
            "text_config": text,
            "vision_config": {
                **vision,
                "attention_bias": True,
                "hidden_dropout_prob": 0.0,
                "image_size": [shape.tile_size] * 2,
                "layer_scale_init_value": 0.1,
                "model_type": "internvl_vision",
                "patch_size": [shape.patch_size] * 2,
                "projection_dropout": 0.0,
                "use_absolute_position_embeddings": True,
                "use_mask_token": False,
                "use_mean_pooling": True,
                "use_qk_norm": shape.qk_norm,
            },
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        }
    return {
        **common,
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "dynamic_image_size": True,
        "force_image_size": shape.tile_size,
        "llm_config": {
            **text,
            "architectures": [
                {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[
                    shape.backbone
                ]
            ],
        },
        "max_dynamic_patch": shape.most_tiles,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "vision_config": {
            **vision,
            "architectures": ["InternVisionModel"],
            "drop_path_rate": 0.1,
            "image_size": shape.tile_size,
            "initializer_factor": 1.0,
            "model_type": "intern_vit_6b",
            "patch_size": shape.patch_size,
            "qk_normalization": shape.qk_norm,
            "qkv_bias": True,
        },
    }


CHAT_CONFIGURATION = '''"""Settings of an InternVLChatModel."""

from transformers import AutoConfig, PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = AutoConfig.for_model(
            **{"model_type": "qwen2", **(llm_config or {})}
        )
'''
"""The remote code that vLLM runs of an `InternVLChatModel`."""


def processor_files(shape: InternVLShape) -> dict[str, dict[str, Any]]:
    """Name of each file of HF's processor -> what it holds."""
    size = {"height": shape.tile_size, "width": shape.tile_size}
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": size,
    }
    return {
        "preprocessor_config.json": {
            **common,
            # As published: the processor cuts all the same.
            "crop_to_patches": False,
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "max_patches": shape.most_tiles,
            "min_patches": 1,
        },
        "processor_config.json": {
            "image_seq_length": shape.cells_per_tile,
            "processor_class": "InternVLProcessor",
        },
        "video_preprocessor_config.json": {
            **common,
            "video_processor_type": "InternVLVideoProcessor",
        },
    }
