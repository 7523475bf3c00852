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
from vllm_hired.selectors.base import Selection, Selector, in_sequence, partition_quota
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.settings import number
from vllm_hired.selectors.similarity import unit_features
from vllm_hired.towers.observation import Observation


@dataclass(frozen=True)
class ScopeSelector(Selector):
    """Patches that together cover the image's content, the salient ones first.

    A set `S` of cells covers its partition by `sum over cells j of max(0, max over i in
    S of cos(i, j))`. Greedy: each next cell is the one with the greatest `gain *
    saliency ** alpha`, where the gain is what it adds to the coverage and the saliency
    is its final-layer [CLS] attention. Ties go to the lower index. Features and
    attention that are not finite count as 0.

    Scope: per partition, with the same quotas as `fastervlm`: `floor(K / P)` for the
    thumbnail and equal parts for the tiles. Needs the features and the final attention.
    Memory: twice the `P x N x N` similarities in float32, 13 MB for 5 partitions of
    576. Costs as many steps as the largest quota, each three passes over these numbers.

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

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        (selection,) = self.select_each(observation, layout, [kept], alpha)
        return selection

    @override
    def select_each(
        self,
        observation: Observation,
        layout: Layout,
        counts: Sequence[int],
        alpha: Fraction,
    ) -> Iterator[Selection]:
        valid = index_tables(layout, observation.device).valid
        units = unit_features(observation.features).masked_fill(~valid[..., None], 0)
        saliency = _relative(observation.final_attention).pow(self.alpha)
        quotas = [equal_quota(layout, kept, observation.device) for kept in counts]
        steps = max(steps for _, steps in quotas)
        places = greedy_coverage(units @ units.mT, saliency, valid, steps)
        for kept, (quota, _) in zip(counts, quotas, strict=True):
            yield Selection(in_sequence(places < quota[:, None], layout, kept))


def greedy_coverage(
    similarity: Tensor, saliency: Tensor, valid: Tensor, steps: int
) -> Tensor:
    """`[P, N]` int64: the step, from 0, that selects each valid cell; `steps` where
    none does.

    Args:
        similarity: `[P, N, N]`, finite, 0 for padding.
        saliency: `[P, N]` in [0, 1].
        valid: `[P, N]` bool.
        steps: how many cells to select in each partition, or all where it has fewer.
    """
    covered = torch.zeros_like(saliency)[:, None, :]
    gains = torch.empty_like(similarity)
    places = torch.full_like(valid, steps, dtype=torch.int64)
    cells = torch.arange(valid.shape[-1], device=valid.device)
    for step in range(steps):
        torch.sub(similarity, covered, out=gains).clamp_(min=0)
        is_open = valid & (places == steps)
        score = (gains.sum(dim=-1) * saliency).masked_fill(~is_open, -1)
        best = score.argmax(dim=-1, keepdim=True)
        covered = torch.maximum(covered, similarity.take_along_dim(best[..., None], 1))
        places.masked_fill_(is_open & (cells == best), step)
    return places


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
