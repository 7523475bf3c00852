"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467)."""

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


@dataclass(frozen=True)
class VisionZipSelector(Selector):
    """Keeps what late attention ranks first and merges the rest into even samples.

    In each partition the cells of most [CLS] attention, summed over heads, are
    *dominant* and stay as they are. Of the others, samples at even steps become
    *contextual*; each other cell is assigned to the sample with the most similar key
    (cosine), and a sample's row is its own feature plus the mean of those assigned.

    Scope: each partition for itself, as the authors treat the crops of LLaVA-NeXT.
    Quotas: in proportion to valid cells. They follow from sizes alone. The dominant
    share of each, rounded up, is 27/32 by default: the paper's 54 of 64 and 108 of 128.
    Attention, keys and features are those of the tower's last used layer, the second
    to last in LLaVA, as in the authors' code; keys are averaged over heads before the
    cosine, as there.

    Cost: `P * A * N * (d + D)` multiplications, where `A` is the largest number of
    samples of a partition, and `4 * P * N * (A + D)` bytes a few times over.

    Differences from the authors' code: they count the [CLS] token itself as a dominant
    one, which has no cell here, so one more patch takes its place. Their step between
    samples is rounded down, which leaves the end of a partition without samples;
    here samples spread over the whole. They append contextual tokens at the end; here
    each stands at its sample's place. Padding is neither kept nor merged in. Values
    that are not finite count as zero in what is merged.
    """

    needs = frozenset({"final_attention", "keys", "features"})
    uses_alpha = False

    dominant: float = number(
        27 / 32, 0.0, 1.0, "the share of tokens that are kept by attention, unmerged"
    )

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        capacities = layout.partition_capacities
        dominant, samples = split_quotas(capacities, kept, self.dominant)
        others = tuple(c - d for c, d in zip(capacities, dominant, strict=True))

        device = observation.device
        counts = integer_table((dominant, others, samples), device)
        valid = index_tables(layout, device).valid
        is_dominant = highest(observation.final_attention, valid, counts[0])
        is_other = valid & ~is_dominant
        is_sample = evenly_spaced(is_other, counts[1], counts[2])
        cells = in_sequence(is_dominant | is_sample, layout, kept)
        if max(samples) == 0:
            return Selection(cells)

        features = observation.features
        sample_cells = chosen_cells(is_sample, max(samples))
        assigned = assign(
            directions(observation.keys), sample_cells, counts[2], is_other & ~is_sample
        )
        merged = merge(finite(features), sample_cells, assigned)
        rows = torch.where(
            is_sample.flatten()[cells].unsqueeze(-1),
            rows_at(saturated(merged, features.dtype), is_sample, cells),
            features.flatten(0, 1)[cells],
        )
        return Selection(cells, rows)


def assign(
    keys: Tensor, sample_cells: Tensor, counts: Tensor, is_merged: Tensor
) -> Tensor:
    """Which cells each sample takes in: `[P, A, N]` bool, ties to the first sample.

    Args:
        keys: `[P, N, d]` at length 1.
        sample_cells: `[P, A]` int64.
        counts: `[P]` int64, how many of `sample_cells` are samples.
        is_merged: `[P, N]` bool, the cells that are taken in by one.
    """
    numbers = torch.arange(sample_cells.shape[1], device=keys.device)
    similarity = keys @ take(keys, sample_cells).mT
    is_sample = numbers < counts[:, None]
    similarity = similarity.masked_fill(~is_sample[:, None], -torch.inf)
    nearest = similarity.argmax(dim=-1)
    return (nearest[:, None] == numbers[:, None]) & is_merged[:, None]


def merge(values: Tensor, sample_cells: Tensor, assigned: Tensor) -> Tensor:
    """Each sample's value plus the mean of those assigned to it: `[P, A, D]`.

    Args:
        values: `[P, N, D]` float32, finite.
        sample_cells: `[P, A]` int64.
        assigned: `[P, A, N]` bool.
    """
    # Weights that sum to 1, so that no sum outgrows the values.
    weights = assigned / assigned.sum(dim=-1, keepdim=True).clamp(min=1)
    return take(values, sample_cells) + weights @ values
