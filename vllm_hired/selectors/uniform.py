"""Evenly spaced patches, whatever the image shows; the paper's "spatial" dropping."""

import torch
from torch import Tensor

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.towers.observation import Observation


class UniformSelector(ScoreSelector):
    """Patches spread evenly, whatever the image shows; tiles share by their area.

    In the order of an ordered-dither (Bayer) matrix, of which any first `k` places are
    spread evenly.
    """

    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        return index_tables(layout, observation.device).tile_capacity

    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        device = observation.device
        rows = torch.arange(layout.rows, device=device)[:, None]
        cols = torch.arange(layout.cols, device=device)[None, :]
        order = torch.zeros_like(rows ^ cols)
        # The lowest bits decide first: neighbours are far apart in the order.
        for bit in range((max(layout.rows, layout.cols) - 1).bit_length()):
            order = 4 * order + 2 * ((rows ^ cols) >> bit & 1) + (rows >> bit & 1)
        return -order.flatten().float().expand(layout.num_partitions, -1)
