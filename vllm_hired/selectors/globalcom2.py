"""GlobalCom2 (Liu et al., "Global Compression Commander", arXiv 2501.05179)."""

from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.allocation import integer_weights, weight_bits
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.towers.observation import Observation

TEMPERATURE = 10.0


class GlobalCom2Selector(ScoreSelector):
    """The thumbnail's late attention guides how many and which patches tiles keep.

    A tile `j` of `v_j` valid cells has the weight `v_j * (1 + s_j - mean(s))`, where
    `s = softmax(S / 10)` over the tiles and `S_j` is the thumbnail's final-layer [CLS]
    attention, summed over heads and over the part of the thumbnail that shows the tile.
    Within a tile the score is its own [CLS] attention plus the thumbnail's, upsampled
    bilinearly to the canvas; each of the two is divided by its L2 norm over the tile's
    valid cells. The thumbnail is ranked by its own attention.

    Scope: per partition. Quotas: `floor(K / P)` for the thumbnail, which is the rate
    itself, and the rest by the weights above. Needs the final attention. Costs one
    resampling of the thumbnail's `N` scores, in float64. Without a thumbnail tiles
    share by their valid cells and are ranked by their own attention.

    Differences from the authors' code: it reads logits before the softmax, averaged
    over heads, of the very last layer, which towers with `vision_feature_layer = -2` do
    not run; this reads the attention itself, of the last layer that runs. It cuts the
    whole thumbnail by the tile grid, as if padding were shown; here the thumbnail shows
    the valid rectangle, and a cell counts for each tile by area. It rounds each quota
    down on its own; here they sum to `K` exactly.
    """

    needs = frozenset({"final_attention"})
    uses_alpha = False

    def thumbnail_share(self, layout: Layout, alpha: Fraction) -> Fraction:
        return Fraction(1, layout.num_partitions)

    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        tables = index_tables(layout, observation.device)
        if layout.thumbnail_partition is None or layout.num_tiles == 0:
            return tables.tile_capacity
        attention = _finite(observation.final_attention[layout.thumbnail_partition])
        by_tile = (
            tables.row_overlap.T
            @ attention.view(layout.rows, layout.cols)
            @ tables.col_overlap
        ).flatten() / layout.num_valid_tile_cells
        share = torch.softmax(by_tile / TEMPERATURE, dim=0)
        weights = tables.tile_capacity * (1 + share - share.mean())
        return integer_weights(weights, weight_bits(layout)).long()

    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        if layout.thumbnail_partition is None or layout.num_tiles == 0:
            return observation.final_attention
        valid = index_tables(layout, observation.device).valid
        attention = _finite(observation.final_attention)
        guide = _on_tiles(attention[layout.thumbnail_partition], layout)
        last = layout.num_partitions - layout.num_tiles - layout.first_tile
        guide = pad(guide, (0, 0, layout.first_tile, last))
        scores = (_normalised(attention, valid) + _normalised(guide, valid)).float()
        # The thumbnail may show the cell; its own attention still says nothing.
        return scores.masked_fill(observation.final_attention.isnan(), torch.nan)


def _finite(attention: Tensor) -> Tensor:
    """As float64, in which no sum of squares overflows; what is not finite is 0."""
    return attention.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _on_tiles(thumbnail: Tensor, layout: Layout) -> Tensor:
    """`[N]` of the thumbnail, upsampled to the tiles: `[R * C, N]`, 0 on padding."""
    canvas = interpolate(
        thumbnail.view(1, 1, layout.rows, layout.cols),
        size=(layout.height, layout.width),
        mode="bilinear",
        align_corners=False,
    )
    right = layout.tile_cols * layout.cols - layout.left - layout.width
    bottom = layout.tile_rows * layout.rows - layout.top - layout.height
    canvas = pad(canvas, (layout.left, right, layout.top, bottom))
    tiles = canvas.view(layout.tile_rows, layout.rows, layout.tile_cols, layout.cols)
    return tiles.transpose(1, 2).reshape(layout.num_tiles, -1)


def _normalised(scores: Tensor, valid: Tensor) -> Tensor:
    """`[P, N]`, each row over the L2 norm of its valid cells."""
    norm = scores.masked_fill(~valid, 0).norm(dim=-1, keepdim=True)
    return scores / norm.clamp(min=torch.finfo(norm.dtype).tiny)
