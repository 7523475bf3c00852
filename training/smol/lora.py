"""A low-rank delta of the LLM's linear layers, and how it is merged."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

Weights = dict[str, Tensor]

RANK = 32
SCALE = 2.0
"""By which `up @ down` is multiplied."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """A frozen linear layer without bias, and a delta that learns.

    Attributes:
        weight: `[out, in]`, frozen.
        down: `[RANK, in]`.
        up: `[out, RANK]`, zero at first.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.requires_grad_(False)
        down = torch.randn(RANK, linear.in_features) / math.sqrt(linear.in_features)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        small = functional.linear(inputs, self.down)
        return functional.linear(inputs, self.weight) + SCALE * functional.linear(
            small, self.up
        )


def add_lora(language: nn.Module) -> list[nn.Parameter]:
    """Replaces the linear layers in place; returns what learns."""
    found = [
        (parent, name, child)
        for parent in language.modules()
        for name, child in parent.named_children()
        if name in LAYERS and isinstance(child, nn.Linear)
    ]
    learning = []
    for parent, name, child in found:
        lora = LoraLinear(child)
        setattr(parent, name, lora)
        learning += [lora.down, lora.up]
    return learning


def merge(language: Weights, delta: Weights) -> Weights:
    """The LLM's weights with a delta of `NAME.down` and `NAME.up` added."""
    merged = dict(language)
    for name, down in delta.items():
        if name.endswith(".down"):
            layer = name.removesuffix(".down")
            added = SCALE * delta[f"{layer}.up"] @ down
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + added
    return merged
