"""DINOv2-S/14 as a CLIP vision tower: the same function, in CLIP's parameters.

DINOv2's block is CLIP's block with LayerScale, a bias of the patch embedding, and no
`pre_layrnorm`. All three can be expressed exactly:

- LayerScale goes into the output projections, the patch bias into the position
  embeddings.
- LayerNorm ignores a constant that is added to all channels, so whatever is written to
  the residual stream is centred first, and its mean stays 0.
- The hidden size grows from 384 to 432: 6 heads of 72 channels, of which 64 are used,
  with queries scaled by sqrt(72 / 64). The 48 new channels hold +-`LIFT` before
  `pre_layrnorm`, so that this norm divides all positions by nearly the same number,
  which its weight undoes, and 0 after it.
- A LayerNorm over 432 channels of which 48 are 0 divides by sqrt(384 / 432) less, which
  is folded into its weight and epsilon.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig

Weights = dict[str, Tensor]

CHANNELS, HEADS, LAYERS, PATCH = 384, 6, 12, 14
HEAD, WIDE_HEAD = CHANNELS // HEADS, 72
HIDDEN = HEADS * WIDE_HEAD
NEW = HIDDEN - CHANNELS
LIFT = 1000.0
OWN_GRID = 37
"""Patches a side for which DINOv2 has position embeddings (518 pixels)."""


def read_dino(path: Path) -> Weights:
    """DINOv2's parameters, float32, under their names in transformers.

    The exporter has transposed and renamed the matrices, and added the position of
    [CLS] to its embedding: `cls` is `[1, 1, 384]`, `pos` `[1, 37 * 37, 384]`.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    raw = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    found = {
        name.removeprefix(prefix): array
        for name, array in raw.items()
        if name.startswith(prefix)
    }
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        layer = node.name.strip("/").removeprefix("backbone/").removesuffix("/MatMul")
        for name in node.input:
            if name in raw:
                found[layer.replace("/", ".") + ".weight"] = raw[name].T
    unnamed = {
        array.shape: array
        for name, array in raw.items()
        if name.startswith("onnx::") and array.ndim == 3
    }
    found["cls"] = unnamed[1, 1, CHANNELS]
    found["pos"] = unnamed[1, OWN_GRID**2, CHANNELS]
    return {name: torch.tensor(array) for name, array in found.items()}


def tower_config(image_size: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=image_size,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-6 * CHANNELS / HIDDEN,
        projection_dim=HIDDEN,
    )


def clip_weights(dino: Weights, image_size: int) -> Weights:
    """Parameters of a `CLIPVisionTransformer` of `tower_config`, float32."""
    weights = _embeddings(dino, image_size // PATCH)
    for layer in range(LAYERS):
        old, new = f"encoder.layer.{layer}.", f"encoder.layers.{layer}."
        own = {
            name.removeprefix(old): tensor
            for name, tensor in dino.items()
            if name.startswith(old)
        }
        weights |= {new + name: tensor for name, tensor in _block(own).items()}
    weights |= _norm("post_layernorm", dino, "layernorm")
    return weights


def _embeddings(dino: Weights, grid: int) -> Weights:
    own = dino["pos"].view(1, OWN_GRID, OWN_GRID, CHANNELS).permute(0, 3, 1, 2)
    # As transformers' Dinov2Embeddings resizes them.
    size = (grid, grid)
    fitted = functional.interpolate(own, size, mode="bicubic", align_corners=False)
    places = fitted.flatten(2).squeeze(0).T
    bias = dino["embeddings.patch_embeddings.projection.bias"]
    positions = torch.zeros(grid * grid + 1, HIDDEN)
    positions[1:, :CHANNELS] = _centred(places + bias)
    positions[:, CHANNELS : CHANNELS + NEW // 2] = LIFT
    positions[:, CHANNELS + NEW // 2 :] = -LIFT
    kernel = dino["embeddings.patch_embeddings.projection.weight"]
    lifted = torch.full((CHANNELS,), LIFT * math.sqrt(NEW / HIDDEN))
    return {
        "embeddings.patch_embedding.weight": _outputs(kernel - kernel.mean(dim=0)),
        "embeddings.position_embedding.weight": positions,
        "embeddings.class_embedding": _inputs(_centred(dino["cls"].flatten())),
        "pre_layrnorm.weight": _inputs(lifted),
        "pre_layrnorm.bias": torch.zeros(HIDDEN),
    }


def _block(own: Weights) -> Weights:
    """One layer, its names without their prefix."""
    weights = _norm("layer_norm1", own, "norm1") | _norm("layer_norm2", own, "norm2")
    for name, scale in (
        ("query", math.sqrt(WIDE_HEAD / HEAD)),
        ("key", 1),
        ("value", 1),
    ):
        new = f"self_attn.{name[0]}_proj"
        old = f"attention.attention.{name}"
        weights[f"{new}.weight"] = _inputs(_wide_heads(own[f"{old}.weight"] * scale))
        weights[f"{new}.bias"] = _wide_heads(own[f"{old}.bias"] * scale)
    for old, new, scaling in (
        ("attention.output.dense", "self_attn.out_proj", "layer_scale1"),
        ("mlp.fc2", "mlp.fc2", "layer_scale2"),
    ):
        scales = own[f"{scaling}.lambda1"]
        matrix = own[f"{old}.weight"] * scales[:, None]
        matrix = matrix - matrix.mean(dim=0)
        if new == "self_attn.out_proj":
            matrix = _wide_heads(matrix.T).T
        weights[f"{new}.weight"] = _outputs(matrix)
        weights[f"{new}.bias"] = _inputs(_centred(own[f"{old}.bias"] * scales))
    weights["mlp.fc1.weight"] = _inputs(own["mlp.fc1.weight"])
    weights["mlp.fc1.bias"] = own["mlp.fc1.bias"]
    return weights


def _norm(new: str, weights: Weights, old: str) -> Weights:
    scale = math.sqrt(CHANNELS / HIDDEN)
    return {
        f"{new}.weight": _inputs(weights[f"{old}.weight"] * scale),
        f"{new}.bias": _inputs(weights[f"{old}.bias"]),
    }


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def _inputs(tensor: Tensor) -> Tensor:
    """`[..., 384]` -> `[..., 432]`, zeros behind."""
    return functional.pad(tensor, (0, NEW))


def _outputs(tensor: Tensor) -> Tensor:
    """`[384, ...]` -> `[432, ...]`, zeros behind."""
    return torch.cat((tensor, tensor.new_zeros(NEW, *tensor.shape[1:])))


def _wide_heads(tensor: Tensor) -> Tensor:
    """`[384, ...]` -> `[432, ...]`, zeros behind each head's channels."""
    wide = tensor.new_zeros(HEADS, WIDE_HEAD, *tensor.shape[1:])
    wide[:, :HEAD] = tensor.unflatten(0, (HEADS, HEAD))
    return wide.flatten(0, 1)
