"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175), algorithm 1."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor
from typing_extensions import override

from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.base import GreedySelector, Selection
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.similarity import directions, is_finite
from vllm_hired.towers.observation import Observation

BEYOND_ANY_SIMILARITY = 2.0


class DivPruneSelector(GreedySelector):
    """Patches as different from one another as possible, whatever is looked at.

    Greedy for the max-min diversity problem with the cosine distance: the first cell is
    the one whose nearest neighbour is farthest, and each next one is the cell whose
    least distance to those selected is greatest. Ties go to the lower place in
    sequence. Cells with a feature that is not finite come last.

    Scope: per image, over all valid cells; there are no quotas. Needs the features.
    Memory: the `V x V` similarities of the `V` valid cells in float32, 33 MB for 2,880.
    Costs their `V * V * D` products and `K` steps of three operators over `V` numbers.

    The authors compare tokens after the projector, newline tokens among them. Here they
    are compared before it, since only what is kept is projected, and newline tokens are
    dropped.
    """

    needs = frozenset({"features"})
    uses_alpha = False

    @override
    def select_each(
        self,
        observation: Observation,
        layout: Layout,
        counts: Sequence[int],
        alpha: Fraction,
    ) -> Iterator[Selection]:
        sequence = index_tables(layout, observation.device).sequence
        features = observation.features.flatten(0, 1).index_select(0, sequence)
        units = directions(features)
        last = torch.where(is_finite(features), -torch.inf, BEYOND_ANY_SIMILARITY)
        order = farthest_first(units @ units.T, last, max(counts))
        for kept in counts:
            yield Selection(sequence[order[:kept].sort().values])


def farthest_first(similarity: Tensor, least: Tensor, kept: int) -> Tensor:
    """`[kept]` int64: greedy max-min distance, ties to the lower index.

    Args:
        similarity: `[V, V]` float, finite; its diagonal is overwritten.
        least: `[V]`, a lower bound on how near each is to those selected.
        kept: at least 1 and at most `V`.
    """
    diagonal = similarity.diagonal()
    diagonal.fill_(-torch.inf)
    # Both ways, because products round: two that are each other's nearest are to tie.
    neighbour = torch.maximum(similarity.amax(dim=0), similarity.amax(dim=1))
    order = torch.empty(kept, dtype=torch.int64, device=similarity.device)
    torch.argmin(torch.maximum(neighbour, least), dim=0, keepdim=True, out=order[:1])
    # A cell is infinitely near to itself, so that none is selected again.
    diagonal.fill_(torch.inf)
    nearest = least
    for place in range(1, kept):
        latest = order[place - 1 : place]
        nearest = torch.maximum(nearest, similarity.index_select(0, latest)[0])
        torch.argmin(nearest, dim=0, keepdim=True, out=order[place : place + 1])
    return order
