"""Evenly spaced patches, whatever the image shows; the paper's "spatial" dropping."""

import torch
from torch import Tensor

from vllm_hired.geometry import Geometry, index_tables
from vllm_hired.scores import ClsScores
from vllm_hired.selectors.base import Selector


class UniformSelector(Selector):
    """Patches spread evenly, whatever the image shows; tiles share by their area.

    In the order of an ordered-dither (Bayer) matrix, of which any first `k` places are
    spread evenly.
    """

    def tile_weights(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        return index_tables(geometry, scores.init.device).tile_capacity

    def token_scores(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        places = torch.arange(geometry.patch_grid, device=scores.final.device)
        rows, cols = places[:, None], places[None, :]
        order = torch.zeros_like(rows ^ cols)
        # The lowest bits decide first: neighbours are far apart in the order.
        for bit in range((geometry.patch_grid - 1).bit_length()):
            order = 4 * order + 2 * ((rows ^ cols) >> bit & 1) + (rows >> bit & 1)
        return -order.flatten().float().expand_as(scores.final)
