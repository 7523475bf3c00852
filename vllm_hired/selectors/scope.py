"""SCOPE (Deng et al., "Saliency-Coverage Oriented Token Pruning", NeurIPS 2025,
arXiv 2510.24214)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from typing_extensions import override

from vllm_hired.budget import split_thumbnail
from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.allocation import allocate, most_full
from vllm_hired.selectors.base import (
    GreedySelector,
    Selection,
    in_sequence,
    partition_quota,
)
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.partitions import first_of
from vllm_hired.selectors.settings import number
from vllm_hired.selectors.similarity import directions, is_finite
from vllm_hired.towers.observation import Observation


@dataclass(frozen=True)
class ScopeSelector(GreedySelector):
    """Patches that together cover the image's content, the salient ones first.

    A set `S` of cells covers its partition by `sum over cells j of max(0, max over i in
    S of cos(i, j))`. Greedy: each next cell is the one with the greatest `gain *
    saliency ** alpha`, where the gain is what it adds to the coverage and the saliency
    is its final-layer [CLS] attention. Ties go to the lower index. Cells with a feature
    or an attention that is not finite come last.

    Scope: per partition, with the same quotas as `fastervlm`: `floor(K / P)` for the
    thumbnail and equal parts for the tiles. Needs the features and the final attention.
    Memory: the `P x N x N` similarities in float32, 7 MB for 5 partitions of 576.
    Costs as many steps as the largest quota, each three passes over these numbers.

    Differences from the authors' code: padding is neither kept nor covered, and quotas
    sum to `K`.

    Attributes:
        alpha: weight of saliency; the authors run with 1.
    """

    needs = frozenset({"features", "final_attention"})
    uses_alpha = False

    alpha: float = number(
        1.0, low=0.0, high=10.0, about="How much [CLS] attention weighs in SCOPE."
    )

    @override
    def select_each(
        self,
        observation: Observation,
        layout: Layout,
        counts: Sequence[int],
        alpha: Fraction,
    ) -> Iterator[Selection]:
        valid = index_tables(layout, observation.device).valid
        features, attention = observation.features, observation.final_attention
        units = directions(features).masked_fill(~valid[..., None], 0)
        saliency = _relative(attention).pow(self.alpha)
        is_usual = is_finite(features) & attention.isfinite()
        last = torch.where(is_usual, 0.0, -1.0).masked_fill(~valid, -torch.inf)
        quotas = [equal_quota(layout, kept, observation.device) for kept in counts]
        steps = max(steps for _, steps in quotas)
        order = greedy_coverage(units @ units.mT, saliency, last, steps)
        for kept, (quota, _) in zip(counts, quotas, strict=True):
            is_kept = first_of(order, quota, valid.shape[1])
            yield Selection(in_sequence(is_kept, layout, kept))


def greedy_coverage(
    similarity: Tensor, saliency: Tensor, last: Tensor, steps: int
) -> Tensor:
    """`[P, steps]` int64: cells of each partition in the order in which they are taken.

    Args:
        similarity: `[P, N, N]`, finite, 0 for padding; it is overwritten.
        saliency: `[P, N]` in [0, 1].
        last: `[P, N]`: 0, or less for cells that are to come after the others; it is
            overwritten.
        steps: how many to take.
    """
    # What each cell would add to the coverage of each other.
    gains = similarity.clamp_(min=0)
    saliency = saliency.where(last == 0, 0)
    order = []
    for _ in range(steps):
        scores = torch.addcmul(last, gains.sum(dim=-1), saliency)
        best = scores.argmax(dim=-1, keepdim=True)
        added = gains.gather(1, best[..., None].expand(-1, -1, gains.shape[-1]))
        gains.sub_(added).clamp_(min=0)
        # It is not taken again.
        last.scatter_(1, best, -torch.inf)
        order.append(best)
    return torch.cat(order, dim=1)


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # cached, so it must be of use outside it as well
def equal_quota(layout: Layout, kept: int, device: torch.device) -> tuple[Tensor, int]:
    """Equal shares of `kept`: `[P]` int64 on `device`, and the largest as an integer.

    They depend on sizes alone, so they are computed on the host, which has to know how
    many steps to take.
    """
    thumbnail, tiles = split_thumbnail(layout, kept, Fraction(1, layout.num_partitions))
    capacity = torch.tensor(layout.tile_capacities, dtype=torch.int64, device="cpu")
    rounds = most_full(layout.tile_capacities, tiles)
    split = allocate(torch.ones_like(capacity), capacity, tiles, rounds)
    quota = partition_quota(layout, thumbnail, split)
    return quota.to(device), max(quota.tolist())


def _relative(attention: Tensor) -> Tensor:
    """`[P, N]`, over the greatest of its partition, so that no power overflows."""
    attention = attention.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    greatest = attention.amax(dim=-1, keepdim=True)
    return attention / greatest.clamp(min=torch.finfo(attention.dtype).tiny)
