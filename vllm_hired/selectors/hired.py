"""HiRED (Arif et al., AAAI 2025, arXiv 2408.10945), sections 4.2 and 4.3.

Where the authors' released code differs from their paper, this follows the paper:
the code counts the thumbnail's top patches instead of summing their attention, cuts
the thumbnail into row strips instead of quadrants, and loses what rounding leaves.
"""

from torch import Tensor

from vllm_hired.budget import weight_bits, whole_weights
from vllm_hired.geometry import Geometry, index_tables
from vllm_hired.scores import ClsScores
from vllm_hired.selectors.base import Selector


class HiredSelector(Selector):
    """Early attention shares the budget among tiles, late attention ranks patches."""

    def tile_weights(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        """Thumbnail attention on each tile's part of the valid rectangle, by area.

        `W = Oy^T A Ox`. Attention and overlaps are whole numbers, so that the sums
        are exact whatever their order.
        """
        tables = index_tables(geometry, scores.init.device)
        attention = whole_weights(scores.init[0], weight_bits(geometry))
        attention = attention.view(geometry.patch_grid, geometry.patch_grid)
        weights = tables.row_overlap.T @ attention @ tables.col_overlap
        return weights.long().flatten()

    def token_scores(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        return scores.final
