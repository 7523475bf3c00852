"""Quantises a checkpoint's linear layers, and HF transformers to match.

Weights go into the compressed-tensors format, as llm-compressor writes it. The
reference is the same checkpoint with the weights that the stored numbers stand for.
Where a scheme quantises activations too, the inputs of HF's layers are rounded so.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.reference import Reference

GROUP = 32
"""Input channels that share a scale in 4 bits."""

LINEAR = re.compile(
    r"(vision_tower\.vision_model\.encoder|language_model\.model)\.layers\.\d+\."
    r"(self_attn|mlp)\.\w+"
)
"""The layers that are quantised: all of tower and LLM; the projector stays as it is."""


@dataclass(frozen=True)
class Scheme:
    """One kind of quantised checkpoint.

    Attributes:
        format: compressed-tensors' name of how weights are stored.
        weights: how they are quantised, in compressed-tensors' words.
        quantise: `[out, in]` -> tensors by the suffixes of their names, and the
            `[out, in]` float32 that they stand for.
        round_inputs: what happens to activations `[..., in]`; None leaves them.
        activations: the same in compressed-tensors' words.
    """

    format: str
    weights: dict[str, Any]
    quantise: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
    round_inputs: Callable[[Tensor], Tensor] | None = None
    activations: dict[str, Any] | None = None


def _scale(values: Tensor, largest: float) -> Tensor:
    """`[..., 1]`: what makes the largest of the last dimension `largest`."""
    return values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest


def _int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    # A few steps of the range of 8 bits: so coarse that what is kept changes. And from
    # 64 on, a CPU without VNNI, which adds pairs of products in 16 bits, saturates.
    scale = _scale(weight, 7)
    values = (weight / scale).round()
    return {"weight": values.to(torch.int8), "weight_scale": scale}, values * scale


def _round_to_int8(inputs: Tensor) -> Tensor:
    scale = _scale(inputs, 127)
    return (inputs / scale).round() * scale


def _int4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    groups = weight.unflatten(-1, (-1, GROUP))
    scale = _scale(groups, 7)
    values = (groups / scale).round()
    # Eight to an int32, the first in the lowest bits, each moved to 0..15.
    nibbles = (values.flatten(-2).long() + 8).unflatten(-1, (-1, 8))
    packed = (nibbles << torch.arange(0, 32, 4)).sum(dim=-1)
    tensors = {
        "weight_packed": packed.to(torch.uint32).view(torch.int32),
        "weight_scale": scale.squeeze(-1),
        "weight_shape": torch.tensor(weight.shape),
    }
    return tensors, (values * scale).flatten(-2)


def _fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = _scale(weight, 448)
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def _round_to_fp8(inputs: Tensor) -> Tensor:
    scale = _scale(inputs, 448)
    return (inputs / scale).to(torch.float8_e4m3fn).float() * scale


_PER_TOKEN = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}

SCHEMES = {
    "w8a8-int8": Scheme(
        "int-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        _int8,
        _round_to_int8,
        {"type": "int"} | _PER_TOKEN,
    ),
    "w4a16": Scheme(
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
        _int4,
    ),
    "w8a8-fp8": Scheme(
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        _fp8,
        _round_to_fp8,
        {"type": "float"} | _PER_TOKEN,
    ),
}


def quantise_checkpoint(
    checkpoint: Path, folder: Path, scheme: Scheme
) -> tuple[Path, Reference]:
    """Writes a quantised copy of `checkpoint`; the copy, and HF's model equal to it."""
    quantised, dequantised = folder / "quantised", folder / "dequantised"
    shutil.copytree(checkpoint, quantised)
    shutil.copytree(checkpoint, dequantised)
    stored: dict[str, Tensor] = {}
    meant = load_file(checkpoint / "model.safetensors")
    for name, weight in meant.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and LINEAR.fullmatch(layer):
            tensors, meant[name] = scheme.quantise(weight)
            stored |= {f"{layer}.{suffix}": t for suffix, t in tensors.items()}
        else:
            stored[name] = weight
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, dequantised / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "quantization_status": "compressed",
        "ignore": ["re:.*multi_modal_projector.*", "re:.*lm_head.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"symmetric": True, "dynamic": False} | scheme.weights,
                "input_activations": scheme.activations,
            }
        },
    }
    (quantised / "config.json").write_text(json.dumps(config))
    reference = Reference(dequantised)
    round_inputs = scheme.round_inputs
    if round_inputs is not None:
        model = reference.model.model
        for part in (model.vision_tower, model.language_model):
            for name, module in part.named_modules():
                if ".layers." in f".{name}" and isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(
                        lambda _, inputs: (round_inputs(inputs[0]),)
                    )
    return quantised, reference
