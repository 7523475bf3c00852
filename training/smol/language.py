"""SmolLM2-135M-Instruct out of its GGUF file, in transformers' parameters."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

Weights = dict[str, Tensor]

HEADS, KV_HEADS = 9, 3
VOCABULARY = 49_152
PADDED_VOCABULARY = 49_216
"""With the image's token; a multiple of 64."""
IMAGE_TOKEN = "<image>"

BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] if item['type'] != 'text' %}<image>\n"
    "{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}"
    "{{ item['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's without its system message, images before the text."""


def prompt_of(question: str) -> tuple[str, str]:
    """What stands before the picture and after it, as `CHAT_TEMPLATE` has it."""
    return (
        "<|im_start|>user\n",
        f"\n{question}<|im_end|>\n<|im_start|>assistant\n",
    )


def language_config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=64,
        vocab_size=PADDED_VOCABULARY,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def read_tokenizer(path: Path) -> Any:
    """SmolLM2's, with `IMAGE_TOKEN` as the first token behind its own."""
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == VOCABULARY
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def read_smollm2(path: Path) -> Weights:
    """Its parameters dequantised to float32, named as `LlamaForCausalLM` names them.

    The embedding is the output layer, too. New tokens are the mean of the others.
    """
    from gguf import GGUFReader, dequantize

    weights = {}
    for tensor in GGUFReader(str(path)).tensors:
        values = np.array(dequantize(tensor.data, tensor.tensor_type))
        matrix = torch.tensor(values.reshape(tensor.shape.tolist()[::-1]))
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, kind = name.split(".")
            if kind in ("attn_q", "attn_k"):
                matrix = _as_halves(matrix, HEADS if kind == "attn_q" else KV_HEADS)
            name = f"model.layers.{layer}.{BLOCK[kind]}"
        else:
            name = OUTSIDE[name]
        weights[f"{name}.weight"] = matrix
    embedding = weights["model.embed_tokens.weight"]
    new = embedding.mean(dim=0).expand(PADDED_VOCABULARY - len(embedding), -1)
    weights["model.embed_tokens.weight"] = torch.cat((embedding, new))
    return weights


def _as_halves(matrix: Tensor, heads: int) -> Tensor:
    """GGUF interleaves the two halves of a head that RoPE rotates together."""
    pairs = matrix.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).reshape(matrix.shape)
