"""What all selection methods share: masks, exact counts and sequence order."""

from abc import ABC, abstractmethod
from fractions import Fraction

import torch
from torch import Tensor

from vllm_hired.budget import allocate, most_full, ranks, split_thumbnail
from vllm_hired.geometry import Geometry, index_tables
from vllm_hired.scores import ClsScores


class Selector(ABC):
    """A method gives tile weights and token scores; the rest is common.

    The first line of a method's docstring is how `vllm-hired inspect` presents it.
    Weights and scores do not depend on the budget.

    Attributes:
        fixed_alpha: the thumbnail's share where a method does not leave it to
            `hired_alpha`.
    """

    fixed_alpha: Fraction | None = None

    @abstractmethod
    def tile_weights(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        """How the tiles' budget is shared: `[R * C]` int64, not negative.

        Bounded as `vllm_hired.budget.allocate` says; see `whole_weights` there.
        """

    @abstractmethod
    def token_scores(self, scores: ClsScores, geometry: Geometry) -> Tensor:
        """What ranks the patches within each partition: `[P, N]` floating point."""

    def select(
        self, scores: ClsScores, geometry: Geometry, kept: int, alpha: Fraction
    ) -> Tensor:
        """Chooses exactly `kept` patches of one image.

        In each partition the valid patches of highest score stay, ties to the lower
        index. Sizes are known beforehand, so nothing is read back to the host.

        Args:
            scores: of this image's `P` partitions.
            geometry: of this image.
            kept: `K`, at most `geometry.num_selectable`.
            alpha: the thumbnail's share.

        Returns:
            `[kept]` int64 flat patch indices in sequence order.
        """
        device = scores.final.device
        tables = index_tables(geometry, device)
        alpha = alpha if self.fixed_alpha is None else self.fixed_alpha
        thumbnail, tiles = split_thumbnail(geometry, kept, alpha)
        split = allocate(
            self.tile_weights(scores, geometry),
            tables.tile_capacity,
            tiles,
            most_full(geometry.tile_capacities, tiles),
        )
        quota = torch.nn.functional.pad(split, (1, 0), value=thumbnail)

        token_scores = self.token_scores(scores, geometry).nan_to_num(nan=0.0)
        token_scores = token_scores.masked_fill(~tables.valid, -torch.inf)
        order = torch.argsort(token_scores, dim=-1, descending=True, stable=True)
        dropped = ranks(order) >= quota[:, None]

        in_sequence = dropped.flatten()[tables.sequence]
        return tables.sequence[torch.argsort(in_sequence, stable=True)[:kept]]
