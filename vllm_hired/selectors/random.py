"""Patches at random: what any method must beat."""

import torch
from torch import Tensor

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.towers import Tower
from vllm_hired.towers.observation import Observation, Quantity

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): the
# increment and the two multipliers of SplitMix64, as signed 64-bit integers.
_INCREMENT, *_MULTIPLIERS = (
    number - 2**64
    for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class RandomSelector(ScoreSelector):
    """Patches at random, seeded by the image; tiles share by their area.

    The seed is the bits of the image's attention, or of its features where the tower
    has no [CLS], so that no state is shared and one image loses the same patches
    wherever its bits are the same.
    """

    needs = frozenset({"final_attention"})

    def needs_on(self, tower: Tower) -> frozenset[Quantity]:
        return self.needs if tower.has_cls else frozenset({"features"})

    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        return index_tables(layout, observation.device).tile_capacity

    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        if "final_attention" in observation.quantities:
            seed = observation.final_attention
        else:
            seed = observation.features.float().sum(dim=-1)
        bits = seed.contiguous().view(torch.int32)
        places = torch.arange(bits.numel(), device=bits.device).view_as(bits)
        # All arithmetic wraps at 64 bits.
        state = bits.sum() + (places + 1) * _INCREMENT
        for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
            state = (state ^ _logical_shift(state, shift)) * multiplier
        return (_logical_shift(state ^ _logical_shift(state, 31), 40)).float()


def _logical_shift(values: Tensor, bits: int) -> Tensor:
    return values >> bits & (2 ** (64 - bits) - 1)
