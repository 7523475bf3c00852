"""What a selection method may look at: filled only with what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Quantity = Literal["init_attention", "final_attention", "features", "keys"]
"""A name of something that can be observed."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True)
class Observation:
    """Of one image, in the order of the tower's output.

    Attributes:
        device: where its tensors are, and where the selection belongs.
        quantities: what was asked for, by name.
    """

    device: torch.device
    quantities: Mapping[Quantity, Tensor]

    @property
    def init_attention(self) -> Tensor:
        """`[P, N]` float32: attention that each cell receives in the init layer."""
        return self.quantities["init_attention"]

    @property
    def final_attention(self) -> Tensor:
        """`[P, N]` float32: attention that each cell receives in the final layer."""
        return self.quantities["final_attention"]

    @property
    def features(self) -> Tensor:
        """`[P, N, D]`: what the tower gives to the projector, in the model's dtype."""
        return self.quantities["features"]

    @property
    def keys(self) -> Tensor:
        """`[P, N, d]` float32: keys of the final layer, averaged over its heads."""
        return self.quantities["keys"]
