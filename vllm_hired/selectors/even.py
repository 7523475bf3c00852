"""HiRED's dropping without its budget distribution, the paper's "even" ablation."""

import torch
from torch import Tensor

from vllm_hired.geometry import Geometry
from vllm_hired.scores import ClsScores
from vllm_hired.selectors.hired import HiredSelector


class EvenSelector(HiredSelector):
    """Every tile gets the same; late attention ranks patches."""

    def tile_weights(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        return torch.ones(
            geometry.num_tiles, dtype=torch.int64, device=scores.init.device
        )
