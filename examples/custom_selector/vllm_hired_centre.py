"""Photographers put the subject in the middle. How far does that go?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_hired.layouts import Layout
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.settings import number
from vllm_hired.towers.observation import Observation


@dataclass(frozen=True)
class CentreSelector(ScoreSelector):
    """Cells near the middle of each partition; tiles share by their area.

    Scope: each partition alone. Quotas: the thumbnail's by `hired_alpha`, the tiles' by
    their valid cells.
    """

    stretch: float = number(1.0, 0.1, 10.0, "how much a column counts against a row")

    # Raise it when the method keeps other cells than before.
    version = 1

    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        return index_tables(layout, observation.device).tile_capacity

    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        rows = torch.arange(layout.rows, device=observation.device)[:, None]
        cols = torch.arange(layout.cols, device=observation.device)[None, :]
        down = (rows - (layout.rows - 1) / 2) / layout.rows
        across = (cols - (layout.cols - 1) / 2) / layout.cols * self.stretch
        distance = (down**2 + across**2).flatten().float()
        return -distance.expand(layout.num_partitions, -1)
