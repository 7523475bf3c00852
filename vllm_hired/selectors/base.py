"""What all selection methods share: masks, exact counts and sequence order."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from vllm_hired.budget import split_thumbnail
from vllm_hired.layouts.base import Layout
from vllm_hired.selectors.allocation import allocate, most_full
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.partitions import highest
from vllm_hired.towers import Tower
from vllm_hired.towers.observation import Observation, Quantity


@dataclass(frozen=True)
class Selection:
    """What is kept of one image.

    Attributes:
        cells: `[K]` int64 flat cell indices in sequence order.
        rows: `[K, D]` features where a method combines cells, one for each of `cells`;
            None where the kept cells' own features go on.
    """

    cells: Tensor
    rows: Tensor | None = None

    def rows_of(self, features: Tensor) -> Tensor:
        """`[K, D]` of the features `[P * N, D]` of all cells of the image."""
        return features[self.cells] if self.rows is None else self.rows


class Selector(ABC):
    """A selection method.

    The first line of a method's docstring is how `vllm-hired inspect` presents it.

    Attributes:
        needs: what must be observed for it; nothing else is.
        version: raised whenever the method keeps other cells than before at the same
            settings; it enters the hash of an image.
        uses_alpha: whether `hired_alpha` means anything to it.
    """

    needs: ClassVar[frozenset[Quantity]] = frozenset()
    version: ClassVar[int] = 1
    uses_alpha: ClassVar[bool] = True

    def needs_on(self, tower: Tower) -> frozenset[Quantity]:
        """What must be observed on a kind of tower; `needs` unless overridden."""
        return self.needs

    @abstractmethod
    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        """Chooses exactly `kept` cells of one image.

        Sizes are known beforehand, so nothing is read back to the host.

        Args:
            observation: of this image, with all of `needs`.
            layout: of this image.
            kept: `K`, at most `layout.num_selectable`.
            alpha: the thumbnail's share.
        """

    def select_each(
        self,
        observation: Observation,
        layout: Layout,
        counts: Sequence[int],
        alpha: Fraction,
    ) -> Iterator[Selection]:
        """`select` for each of several counts of the same image.

        A `GreedySelector` answers all with one order of its cells.

        Args:
            observation: as in `select`.
            layout: as in `select`.
            counts: `K` of each, at least one.
            alpha: as in `select`.
        """
        for kept in counts:
            yield self.select(observation, layout, kept, alpha)


class GreedySelector(Selector):
    """A method that takes cells one after another, so that one order of them answers
    all counts."""

    @override
    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        (selection,) = self.select_each(observation, layout, [kept], alpha)
        return selection

    @override
    @abstractmethod
    def select_each(
        self,
        observation: Observation,
        layout: Layout,
        counts: Sequence[int],
        alpha: Fraction,
    ) -> Iterator[Selection]:
        """Chooses as many as the largest count asks for, once."""


class ScoreSelector(Selector):
    """A method that gives tile weights and token scores; the rest is common.

    Weights and scores do not depend on the budget.
    """

    @abstractmethod
    def tile_weights(self, observation: Observation, layout: Layout) -> Tensor:
        """How the tiles' budget is shared: `[R * C]` int64, not negative.

        Bounded as `allocation.allocate` says; see `integer_weights` there.
        """

    @abstractmethod
    def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
        """What ranks the cells within each partition: `[P, N]` floating point."""

    def thumbnail_share(self, layout: Layout, alpha: Fraction) -> Fraction:
        """The thumbnail's share of the budget; `hired_alpha` unless overridden."""
        return alpha

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        """In each partition the valid cells of highest score stay; NaN is the lowest,
        and ties go to the lower index."""
        tables = index_tables(layout, observation.device)
        alpha = self.thumbnail_share(layout, alpha)
        thumbnail, tiles = split_thumbnail(layout, kept, alpha)
        split = allocate(
            self.tile_weights(observation, layout),
            tables.tile_capacity,
            tiles,
            most_full(layout.tile_capacities, tiles),
        )
        quota = partition_quota(layout, thumbnail, split)
        scores = self.token_scores(observation, layout)
        is_kept = highest(scores, tables.valid, quota)
        return Selection(in_sequence(is_kept, layout, kept))


def partition_quota(layout: Layout, thumbnail: int, split: Tensor) -> Tensor:
    """`[P]` int64: tokens of each partition, from the thumbnail's and `[R * C]`."""
    if layout.thumbnail == "none":
        return split
    sides = (1, 0) if layout.thumbnail == "first" else (0, 1)
    return torch.nn.functional.pad(split, sides, value=thumbnail)


def in_sequence(is_kept: Tensor, layout: Layout, kept: int) -> Tensor:
    """`[kept]` int64 flat cell indices in sequence order.

    Args:
        is_kept: `[P, N]` bool with `kept` valid cells.
        layout: of the image.
        kept: `K`.
    """
    sequence = index_tables(layout, is_kept.device).sequence
    is_dropped = ~is_kept.flatten()[sequence]
    return sequence[torch.argsort(is_dropped, stable=True)[:kept]]


def kept_rows(
    features: Tensor, selections: Sequence[Selection], layouts: Sequence[Layout]
) -> Tensor:
    """What a batch of images hands to the projector.

    Args:
        features: `[sum of P, N, D]`, the partitions of all images, one after another.
        selections: per image.
        layouts: per image.

    Returns:
        `[sum of K, D]`, image by image.
    """
    if any(selection.rows is not None for selection in selections):
        partitions = features.split([layout.num_partitions for layout in layouts])
        return torch.cat(
            [
                selection.rows_of(own.flatten(0, 1))
                for own, selection in zip(partitions, selections, strict=True)
            ]
        )
    offset = 0
    cells = []
    for selection, layout in zip(selections, layouts, strict=True):
        cells.append(selection.cells + offset)
        offset += layout.num_cells
    return features.flatten(0, 1)[torch.cat(cells)]
