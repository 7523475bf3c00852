"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818, from version 2 on)."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from vllm_hired.budget import split_quotas
from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.allocation import ranks
from vllm_hired.selectors.base import Selection, Selector, in_sequence
from vllm_hired.selectors.index_tables import index_tables, integer_table
from vllm_hired.selectors.partitions import first_of, score_order
from vllm_hired.selectors.settings import number
from vllm_hired.selectors.similarity import directions
from vllm_hired.towers.observation import Observation

DROPPED_AT_ONCE = 8
"""Duplicates that one round removes; in the authors' code, whatever the count."""


@dataclass(frozen=True)
class VisPrunerSelector(Selector):
    """Keeps the most attended patches, and of the others those that differ most.

    In each partition the cells of most [CLS] attention are *important*. The others form
    a list by falling attention. Round by round, the list is dealt into two halves,
    alternately; each cell of the first half is compared (cosine of features) with the
    most similar one of the second, and the 8 that are most similar are removed. The
    rest of the first half, by falling similarity, and then the second half make the
    next round's list, until as many are left as are wanted.

    Scope: each partition for itself, as the authors treat the crops of LLaVA-NeXT.
    Quotas: in proportion to valid cells; they follow from sizes alone, and so does the
    number of rounds. Half of each, rounded up, is important by default, as in the
    paper. Attention and features are those of the tower's last used layer, the second
    to last in LLaVA, as in the authors' code.

    Cost: `P * N^2 * D` multiplications once, then about `N / 8` rounds of ten small
    operators. The cosines take `4 * P * N^2` bytes, a round up to half of that.

    Differences from the authors' code: it removes as many as there are where a half
    has fewer than 8, and deals lists of odd length, on both of which that code fails.
    Padding is not compared. A feature that is not finite counts as zero.
    """

    needs = frozenset({"final_attention", "features"})
    uses_alpha = False

    important: float = number(
        0.5, 0.0, 1.0, "the share of tokens chosen by attention; the rest is diverse"
    )

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        capacities = layout.partition_capacities
        important, diverse = split_quotas(capacities, kept, self.important)
        # Where nothing diverse is wanted, nothing is compared.
        others = tuple(
            c - i if d else 0
            for c, i, d in zip(capacities, important, diverse, strict=True)
        )

        device = observation.device
        counts = integer_table((important, diverse), device)
        valid = index_tables(layout, device).valid
        order = score_order(observation.final_attention, valid)
        is_kept = ranks(order) < counts[0, :, None]
        if max(diverse) > 0:
            places = torch.arange(max(others), device=device) + counts[0, :, None]
            listed = order.gather(1, places.clamp(max=order.shape[1] - 1))
            listed = remove_duplicates(observation.features, listed, others, diverse)
            is_kept = is_kept | first_of(listed, counts[1], order.shape[1])
        return Selection(in_sequence(is_kept, layout, kept))


def remove_duplicates(
    features: Tensor, listed: Tensor, sizes: tuple[int, ...], wanted: tuple[int, ...]
) -> Tensor:
    """What the rounds leave of each partition's list.

    Args:
        features: `[P, N, D]`.
        listed: `[P, L]` int64, cells, of which the first `sizes` count.
        sizes: `P` integers, the largest of them `L`.
        wanted: `P` integers, how many shall be left.

    Returns:
        `[P, L']` int64, of which the first `wanted` count.
    """
    units = directions(features)
    cosines = units @ units.mT
    lengths = rounds(sizes, wanted)
    table = integer_table(lengths, listed.device)
    for before, after, length in zip(table, table[1:], lengths[1:], strict=False):
        listed = _round(cosines, listed, before[:, None], after[:, None], max(length))
    return listed


def _round(
    cosines: Tensor, listed: Tensor, before: Tensor, after: Tensor, length: int
) -> Tensor:
    """One round: `[P, length]` of `[P, L]`, where `before` and `after`, `[P, 1]`, say
    how many of each list count."""
    partitions, num_cells, _ = cosines.shape
    places = torch.arange(listed.shape[1], device=listed.device)
    is_missing = places >= before
    first = listed[:, ::2]
    # One more column, which is cut off, for those that a list is short of.
    second = listed[:, 1::2].masked_fill(is_missing[:, 1::2], num_cells)
    # Whole rows, of which other columns are then out of the question, are many times
    # faster to collect than single entries.
    starts = num_cells * torch.arange(partitions, device=listed.device)[:, None]
    rows = cosines.flatten(0, 1).index_select(0, (first + starts).flatten())
    others = cosines.new_full((partitions, num_cells + 1), -torch.inf)
    others = others.scatter_(1, second, 0)[:, None, :num_cells]
    closest = rows.view(partitions, -1, num_cells).add_(others).amax(dim=-1)
    closest = closest.masked_fill(is_missing[:, ::2], -torch.inf)
    order = torch.argsort(closest, dim=-1, descending=True, stable=True)
    dealt = torch.cat([first.gather(1, order), listed[:, 1::2]], dim=1)

    dropped = before - after
    first_left = (before + 1) // 2 - dropped
    places = places[:length]
    sources = torch.where(
        places < first_left, places + dropped, places - first_left + first.shape[1]
    )
    return dealt.gather(1, sources.clamp(max=dealt.shape[1] - 1))


@lru_cache(maxsize=512)
def rounds(
    sizes: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """How many are left of each list before the first round and after every one."""
    lengths = [sizes]
    while any(n > w for n, w in zip(lengths[-1], wanted, strict=True)):
        lengths.append(
            tuple(
                n - min(DROPPED_AT_ONCE, max(n - w, 0), (n + 1) // 2)
                for n, w in zip(lengths[-1], wanted, strict=True)
            )
        )
    return tuple(lengths)
