"""Arithmetic of a request's cost: floating-point operations and KV-cache bytes.

Matrix products alone, a multiplication and an addition each counting one; what is
linear in the width (norms, activations, softmax, rotations) is left out.
"""

from dataclasses import dataclass
from typing import Any

from vllm_hired.budget import KeptCount
from vllm_hired.layouts import Layout
from vllm_hired.layouts.base import merge_side, patches_per_side, side_of
from vllm_hired.tools.grid_cost import grid_flops
from vllm_hired.towers import tower_of
from vllm_hired.towers.support import num_tower_layers

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
"""Bytes of a number in the KV cache."""


@dataclass(frozen=True)
class PrefillCost:
    """Floating-point operations up to the first token."""

    tower: int
    projector: int
    llm: int

    @property
    def total(self) -> int:
        return self.tower + self.projector + self.llm


def prefill_cost(
    hf_config: Any, layout: Layout, kept: KeptCount, text_tokens: int
) -> PrefillCost:
    """Of a request with one image that keeps `kept` tokens and with a text.

    Stock vLLM projects all cells, padding too; with dropping, kept ones alone. A tower
    that merges patches into cells merges all of them either way.
    """
    if not tower_of(hf_config).has_tiles:
        tower, projector = grid_flops(hf_config.vision_config, layout)
    else:
        tower = layout.num_partitions * partition_flops(hf_config)
        projector = projector_flops(
            hf_config, layout.num_cells if kept.is_undropped else kept.tokens
        )
    return PrefillCost(
        tower=tower,
        projector=projector,
        llm=llm_flops(hf_config.text_config, kept.tokens + text_tokens),
    )


def partition_flops(hf_config: Any) -> int:
    """The vision tower on one thumbnail or tile, as far as its layers run."""
    vision = hf_config.vision_config
    patches = patches_per_side(hf_config) ** 2
    tokens, hidden = patches + 1, vision.hidden_size
    values = vision.num_channels * side_of(vision.patch_size) ** 2
    embedding = 2 * patches * values * hidden
    products = 8 * tokens * hidden**2 + 4 * tokens * hidden * vision.intermediate_size
    attention = 4 * tokens**2 * hidden
    return embedding + num_tower_layers(hf_config) * (products + attention)


def projector_flops(hf_config: Any, tokens: int) -> int:
    """The two-layer projector on so many tokens."""
    text = hf_config.text_config.hidden_size
    cell = hf_config.vision_config.hidden_size * merge_side(hf_config) ** 2
    return 2 * tokens * (cell * text + text**2)


def llm_flops(text_config: Any, tokens: int) -> int:
    """A causal prefill of so many tokens, and the logits of the last one.

    Where there are experts, every layer has them, as in all published Qwen3-VL.
    """
    hidden, heads, kv_heads, head_size = attention_shape(text_config)
    projections = hidden * head_size * (2 * heads + 2 * kv_heads)
    mlp = 3 * hidden * text_config.intermediate_size
    if experts := getattr(text_config, "num_experts_per_tok", None):
        mlp = 3 * hidden * text_config.moe_intermediate_size * experts
        mlp += hidden * text_config.num_experts
    pairs = tokens * (tokens + 1) // 2
    layer = 2 * tokens * (projections + mlp) + 4 * pairs * heads * head_size
    return text_config.num_hidden_layers * layer + 2 * hidden * text_config.vocab_size


def kv_bytes_per_token(text_config: Any, dtype: str) -> int:
    """Keys and values of all layers; `dtype` is a key of `BYTES`."""
    _, _, kv_heads, head_size = attention_shape(text_config)
    return 2 * text_config.num_hidden_layers * kv_heads * head_size * BYTES[dtype]


def attention_shape(text_config: Any) -> tuple[int, int, int, int]:
    """(Hidden size, heads, KV heads, head size) of a dense decoder."""
    heads: int = text_config.num_attention_heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    head_size = getattr(text_config, "head_dim", None)
    head_size = head_size or text_config.hidden_size // heads
    return text_config.hidden_size, heads, kv_heads, head_size
