"""Dimensions of Qwen-VL checkpoints, and their config and processor files.

Keys are those of `Qwen/Qwen2-VL-7B-Instruct`, `Qwen/Qwen2.5-VL-7B-Instruct`,
`Qwen/Qwen3-VL-8B-Instruct` and `Qwen/Qwen3-VL-30B-A3B-Instruct`.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerFast

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
"""HF `model_type` -> architecture."""

IS_NESTED = {"qwen3_vl", "qwen3_vl_moe"}
"""Those that publish the LLM's settings in a `text_config`."""


@dataclass(frozen=True)
class QwenShape:
    """Dimensions of a checkpoint.

    Attributes:
        model_type: a key of `ARCHITECTURES`.
        patch_size: side of a patch in pixels.
        least_pixels: of an image, after resizing.
        most_pixels: likewise.
        full_attention_layers: of Qwen2.5's tower; the others attend within windows.
        window_size: of these in pixels.
        deepstack_layers: of Qwen3's tower, whose features go to deeper layers of the
            LLM.
        position_side: of Qwen3's learned positions.
        mrope_section: how many frequencies each of time, row and column has.
        rope_theta: of the LLM.
        experts: of Qwen3 MoE, and how many of them a token sees.
        has_tied_embeddings: whether the LLM's head is its embedding of tokens.
    """

    model_type: str = "qwen2_5_vl"
    patch_size: int = 14
    least_pixels: int = 56 * 56
    most_pixels: int = 28 * 28 * 16384
    vision_hidden: int = 1280
    vision_intermediate: int = 3420
    vision_heads: int = 16
    vision_layers: int = 32
    full_attention_layers: tuple[int, ...] = (7, 15, 23, 31)
    window_size: int = 112
    deepstack_layers: tuple[int, ...] = (8, 16, 24)
    position_side: int = 48
    text_hidden: int = 3584
    text_intermediate: int = 18944
    text_heads: int = 28
    text_kv_heads: int = 4
    text_head_size: int = 128
    text_layers: int = 28
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    rope_theta: float = 1e6
    vocabulary: int = 152064
    max_positions: int = 128000
    experts: tuple[int, int] = (128, 8)
    expert_intermediate: int = 768
    has_tied_embeddings: bool = False


_QWEN3 = QwenShape(
    model_type="qwen3_vl",
    patch_size=16,
    least_pixels=256 * 256,
    most_pixels=4096 * 4096,
    vision_hidden=1152,
    vision_intermediate=4304,
    vision_layers=27,
    text_hidden=4096,
    text_intermediate=12288,
    text_heads=32,
    text_kv_heads=8,
    text_layers=36,
    mrope_section=(24, 20, 20),
    rope_theta=5e6,
    vocabulary=151936,
    max_positions=262144,
)

QWEN_SHAPES = {
    "qwen2.5-vl-7b": QwenShape(),
    "qwen2.5-vl-3b": replace(
        QwenShape(),
        text_hidden=2048,
        text_intermediate=11008,
        text_heads=16,
        text_kv_heads=2,
        text_layers=36,
        vocabulary=151936,
        has_tied_embeddings=True,
    ),
    "qwen2-vl-7b": replace(QwenShape(), model_type="qwen2_vl", max_positions=32768),
    "qwen3-vl-8b": _QWEN3,
    "qwen3-vl-30b-a3b": replace(
        _QWEN3,
        model_type="qwen3_vl_moe",
        text_hidden=2048,
        text_intermediate=6144,
        text_kv_heads=4,
        text_layers=48,
    ),
    "qwen2.5-vl-tiny": replace(
        QwenShape(),
        vision_hidden=320,
        vision_intermediate=640,
        vision_heads=4,
        vision_layers=8,
        full_attention_layers=(3, 7),
        text_hidden=512,
        text_intermediate=1024,
        text_heads=4,
        text_kv_heads=2,
        text_layers=4,
        vocabulary=0,
    ),
}
"""Published models' dimensions, and one that a laptop can run."""


def small_qwen(model_type: str, **changes: Any) -> QwenShape:
    """A shape for tests: images of up to 400 cells, windows of 4 x 4 cells."""
    is_third = model_type in IS_NESTED
    side = 32 if is_third else 28
    shape = QwenShape(
        model_type=model_type,
        patch_size=side // 2,
        least_pixels=4 * side**2,
        most_pixels=400 * side**2,
        vision_hidden=64,
        vision_intermediate=96,
        vision_heads=4,
        vision_layers=4,
        full_attention_layers=(1, 3),
        deepstack_layers=(0, 2),
        position_side=8,
        text_hidden=128,
        text_intermediate=256,
        text_heads=4,
        text_kv_heads=2,
        text_head_size=32,
        text_layers=3,
        mrope_section=(6, 5, 5) if is_third else (4, 6, 6),
        # So low that a step of one row or column changes what a random model says.
        rope_theta=100.0,
        vocabulary=0,
        max_positions=4096,
        experts=(4, 2),
        # Unlike the hidden size, so that nobody mistakes one side for the other.
        expert_intermediate=48,
    )
    return replace(shape, **changes)


def qwen_config(shape: QwenShape, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What config.json holds."""

    def token(name: str) -> Any:
        return tokenizer.convert_tokens_to_ids(name)

    is_third = shape.model_type in IS_NESTED
    text: dict[str, Any] = {
        "attention_dropout": 0.0,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": shape.text_hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.text_intermediate,
        "max_position_embeddings": shape.max_positions,
        "num_attention_heads": shape.text_heads,
        "num_hidden_layers": shape.text_layers,
        "num_key_value_heads": shape.text_kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": shape.rope_theta,
        "use_cache": True,
        "vocab_size": max(len(tokenizer), shape.vocabulary),
    }
    vision: dict[str, Any] = {
        "depth": shape.vision_layers,
        "num_heads": shape.vision_heads,
        "patch_size": shape.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    section = [*shape.mrope_section]
    if is_third:
        text |= {
            "attention_bias": False,
            "head_dim": shape.text_head_size,
            "model_type": f"{shape.model_type}_text",
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": section,
                "rope_type": "default",
            },
        }
        if shape.model_type == "qwen3_vl_moe":
            text |= {
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "moe_intermediate_size": shape.expert_intermediate,
                "norm_topk_prob": True,
                "num_experts": shape.experts[0],
                "num_experts_per_tok": shape.experts[1],
                "router_aux_loss_coef": 0.001,
            }
        vision |= {
            "deepstack_visual_indexes": [*shape.deepstack_layers],
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": shape.vision_hidden,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": shape.vision_intermediate,
            "model_type": shape.model_type,
            "num_position_embeddings": shape.position_side**2,
            "out_hidden_size": shape.text_hidden,
        }
    else:
        text |= {
            "max_window_layers": shape.text_layers,
            "rope_scaling": {"mrope_section": section, "type": "mrope"},
            "sliding_window": 32768,
            "use_sliding_window": False,
        }
        if shape.model_type == "qwen2_5_vl":
            vision |= {
                "fullatt_block_indexes": [*shape.full_attention_layers],
                "hidden_act": "silu",
                "hidden_size": shape.vision_hidden,
                "in_chans": 3,
                "intermediate_size": shape.vision_intermediate,
                "out_hidden_size": shape.text_hidden,
                "spatial_patch_size": shape.patch_size,
                "tokens_per_second": 2,
                "window_size": shape.window_size,
            }
        else:
            vision |= {
                "embed_dim": shape.vision_hidden,
                "hidden_size": shape.text_hidden,
                "in_chans": 3,
                "mlp_ratio": 4,
                "spatial_patch_size": shape.patch_size,
            }
    return {
        "architectures": [ARCHITECTURES[shape.model_type]],
        "image_token_id": token("<|image_pad|>"),
        "model_type": shape.model_type,
        "tie_word_embeddings": shape.has_tied_embeddings,
        "video_token_id": token("<|video_pad|>"),
        "vision_config": vision,
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        **({"text_config": text} if is_third else text),
    }


def processor_files(shape: QwenShape) -> dict[str, dict[str, Any]]:
    """Name of each file of the processor -> what it holds."""
    common: dict[str, Any] = {
        "merge_size": 2,
        "patch_size": shape.patch_size,
        "temporal_patch_size": 2,
    }
    if shape.model_type not in IS_NESTED:
        return {
            "preprocessor_config.json": {
                **common,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_processor_type": "Qwen2VLImageProcessor",
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "max_pixels": shape.most_pixels,
                "min_pixels": shape.least_pixels,
                "processor_class": "Qwen2VLProcessor"
                if shape.model_type == "qwen2_vl"
                else "Qwen2_5_VLProcessor",
            }
        }
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    size = {"longest_edge": shape.most_pixels, "shortest_edge": shape.least_pixels}
    return {
        "preprocessor_config.json": {
            **common,
            **half,
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
            "size": size,
        },
        "video_preprocessor_config.json": {
            **common,
            **half,
            "processor_class": "Qwen3VLProcessor",
            "size": {"longest_edge": shape.most_pixels * 2, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    }
