"""HiRED's dropping without its budget distribution, the paper's "even" ablation."""

import torch
from torch import Tensor

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.towers.observation import Observation


class EvenSelector(ScoreSelector):
    """Every tile gets the same; late attention ranks patches.

    Quotas: the thumbnail's by `hired_alpha`. Ranking is within each partition.
    """

    needs = frozenset({"final_attention"})

    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        return torch.ones(
            layout.num_tiles, dtype=torch.int64, device=observation.device
        )

    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        return observation.final_attention
