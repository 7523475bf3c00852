"""HiRED (Arif et al., AAAI 2025, arXiv 2408.10945), sections 4.2 and 4.3.

Where the authors' released code differs from their paper, this follows the paper:
the code counts the thumbnail's top patches instead of summing their attention, cuts
the thumbnail into row strips instead of quadrants, and loses what rounding leaves.
"""

from torch import Tensor

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.allocation import integer_weights, weight_bits
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.towers import Tower
from vllm_hired.towers.observation import Observation, Quantity


class HiredSelector(ScoreSelector):
    """Early attention shares the budget among tiles, late attention ranks patches.

    Quotas: the thumbnail's by `hired_alpha`, the tiles' by the init layer's attention
    over the thumbnail. Ranking is within each partition.
    """

    needs = frozenset({"init_attention", "final_attention"})

    def needs_on(self, tower: Tower) -> frozenset[Quantity]:
        """Without tiles nothing is shared among them."""
        return self.needs if tower.has_tiles else frozenset({"final_attention"})

    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        """Thumbnail attention on each tile's part of the valid rectangle, by area.

        `W = Oy^T A Ox`. Attention and overlaps are integers, so that the sums are
        exact whatever their order. Without a thumbnail tiles share by their area.
        """
        tables = index_tables(layout, observation.device)
        if layout.thumbnail_partition is None or layout.num_tiles == 0:
            return tables.tile_capacity
        attention = observation.init_attention[layout.thumbnail_partition]
        attention = integer_weights(attention, weight_bits(layout))
        attention = attention.view(layout.rows, layout.cols)
        weights = tables.row_overlap.T @ attention @ tables.col_overlap
        return weights.long().flatten()

    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        return observation.final_attention
