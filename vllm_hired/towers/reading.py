"""What is read of which layer, so that a method sees what it needs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vllm_hired.towers.attention import (
    Measure,
    cls_attention,
    received_attention,
    summed_keys,
)
from vllm_hired.towers.observation import Observation, Quantity

ATTENTIONS: dict[str, Measure] = {"cls": cls_attention, "received": received_attention}
"""Values of `hired_attention`."""


@dataclass(frozen=True)
class Reading:
    """One quantity, from query and key of one layer.

    Attributes:
        layer: of the tower.
        measure: what is computed of query and key, adding up over heads.
    """

    layer: int
    measure: Measure


def readings_for(
    needs: Collection[Quantity], attention: str, init_layer: int, final_layer: int
) -> dict[Quantity, Reading]:
    """How to get what a method needs of the layers; features are the tower's output.

    Args:
        needs: of the method.
        attention: a name in `ATTENTIONS`.
        init_layer: of the tower.
        final_layer: likewise.
    """
    measure = ATTENTIONS[attention]
    every: dict[Quantity, Reading] = {
        "init_attention": Reading(init_layer, measure),
        "final_attention": Reading(final_layer, measure),
        "keys": Reading(final_layer, summed_keys),
    }
    return {name: reading for name, reading in every.items() if name in needs}


def observations(
    features: Tensor,
    measured: Mapping[Quantity, Tensor],
    num_heads: int,
    needs: Collection[Quantity],
    partitions: Sequence[int],
) -> list[Observation]:
    """What a method sees of each image of a tower forward.

    Args:
        features: `[B, N, D]`, patches alone.
        measured: by name `[B, N or 1 + N, ...]` float32, summed over all heads.
        num_heads: of a layer.
        needs: of the method.
        partitions: of each image; they sum to `B`.
    """
    patches = features.shape[1]
    # A [CLS] token, where one is left, comes before the patches.
    seen = {name: values[:, -patches:] for name, values in measured.items()}
    if "keys" in seen:
        seen["keys"] = seen["keys"] / num_heads
    if "features" in needs:
        seen["features"] = features
    split = {name: values.split(partitions) for name, values in seen.items()}
    return [
        Observation(features.device, {name: parts[i] for name, parts in split.items()})
        for i in range(len(partitions))
    ]
