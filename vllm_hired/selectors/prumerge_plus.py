"""PruMerge+ (Shang et al., ICCV 2025, arXiv 2403.15388), at a fixed count."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from vllm_hired.budget import split_quotas
from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.base import Selection, Selector, in_sequence
from vllm_hired.selectors.index_tables import index_tables, integer_table
from vllm_hired.selectors.partitions import (
    chosen_cells,
    evenly_spaced,
    finite,
    highest,
    rows_at,
    saturated,
    take,
)
from vllm_hired.selectors.settings import number
from vllm_hired.selectors.similarity import directions
from vllm_hired.towers.observation import Observation

NEIGHBORS = 32
"""Cells merged into each kept one; in the authors' code, whatever the count."""


@dataclass(frozen=True)
class PruMergePlusSelector(Selector):
    """Keeps even samples and the most attended patches, adding neighbors to each.

    In each partition samples at even steps stay, and the cells of most [CLS] attention
    among the others. To the feature of each kept cell the features of its 32 nearest
    cells (cosine of keys; kept cells are among them, and one cell may be added to
    several) are added, weighted by attention: `y_p + sum of a_j * y_j`. `a` is the
    [CLS] attention, scaled to sum to 1 over the partition, padding included.

    Scope: each partition for itself. Quotas: in proportion to valid cells. They follow
    from sizes alone. The authors' count follows the image: `m` outliers of [CLS]
    attention (above `Q3 + 1.5 IQR`), and in their code samples at steps of `N / 3m`,
    about three to an outlier. Here the count is fixed and split in that proportion: a
    quarter for attention, rounded up, the rest for samples. Where a sample is an
    outlier itself, the next by attention comes in, so that the count is exact.
    Attention, keys and features are those of the tower's last used layer, the second
    to last in LLaVA, as in the paper.

    Cost: `P * Q * N * (d + D)` multiplications and `P * Q` sorts of `N` numbers, where
    `Q` is the largest quota, and about `24 * P * Q * N` bytes.

    Differences from the authors' code: it reads keys and attention of the layer after,
    which the tower does not run here, compares keys of all heads side by side (here:
    averaged over heads), and takes attention as of one head (here: summed over heads).
    It appends the weighted sum of all cells that were not kept as one more token, which
    has no cell here. It knows one partition without padding; here padding is neither
    kept nor added. Values that are not finite count as zero in what is added.
    """

    needs = frozenset({"final_attention", "keys", "features"})
    uses_alpha = False

    outliers: float = number(
        0.25, 0.0, 1.0, "the share of tokens chosen by attention; the rest is sampled"
    )

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        capacities = layout.partition_capacities
        outliers, samples = split_quotas(capacities, kept, self.outliers)

        device = observation.device
        counts = integer_table((capacities, outliers, samples), device)
        valid = index_tables(layout, device).valid
        attention = observation.final_attention
        is_sample = evenly_spaced(valid, counts[0], counts[2])
        is_outlier = highest(attention, valid & ~is_sample, counts[1])
        is_kept = is_sample | is_outlier
        cells = in_sequence(is_kept, layout, kept)

        features = observation.features
        largest = max(o + s for o, s in zip(outliers, samples, strict=True))
        centers = chosen_cells(is_kept, largest)
        is_near = nearest(directions(observation.keys), centers, valid)
        values = finite(features)
        weights = is_near * attention_weights(attention)[:, None]
        rows = saturated(take(values, centers) + weights @ values, features.dtype)
        return Selection(cells, rows_at(rows, is_kept, cells))


def nearest(keys: Tensor, centers: Tensor, valid: Tensor) -> Tensor:
    """Which cells are added to each center: `[P, Q, N]` bool, ties to the lower index.

    Args:
        keys: `[P, N, d]` at length 1.
        centers: `[P, Q]` int64.
        valid: `[P, N]` bool, the cells to choose from.
    """
    similarity = take(keys, centers) @ keys.mT
    cells = torch.arange(valid.shape[1], device=keys.device)
    may_be_near = valid[:, None] & (cells != centers.unsqueeze(-1))
    similarity = similarity.masked_fill(~may_be_near, -torch.inf)
    order = torch.argsort(similarity, dim=-1, descending=True, stable=True)
    is_near = torch.zeros_like(may_be_near)
    # Where there are fewer than wanted, others stand at the end of the order.
    return is_near.scatter(-1, order[..., :NEIGHBORS], True) & may_be_near


def attention_weights(attention: Tensor) -> Tensor:
    """`[P, N]` float32, not negative, which sum to 1 in each partition, or to less
    where they are too large or too small to be summed in float32."""
    attention = finite(attention).clamp(min=0.0)
    total = attention.sum(dim=-1, keepdim=True)
    return attention / total.clamp(min=torch.finfo(total.dtype).tiny)
