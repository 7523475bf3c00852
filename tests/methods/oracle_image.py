"""Where an image's cells lie, and what all oracles do with them, in plain loops.

Shares no code with vllm_hired or torch, and is in no hurry.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from tests.oracle import shares

Cell = tuple[int, int]
"""Partition and cell in it."""


@dataclass
class Image:
    """Sizes in cells; see the fields of the same names in the package's layouts."""

    rows: int
    cols: int
    tile_rows: int
    tile_cols: int
    top: int
    left: int
    height: int
    width: int
    thumbnail: str
    tile_by_tile: bool

    @classmethod
    def of(cls, layout: Any) -> "Image":
        """With the numbers of a layout of the package."""
        return cls(**{f.name: getattr(layout, f.name) for f in fields(cls)})

    def tiles(self) -> list[int]:
        """Their partitions, in row-major order."""
        first = 1 if self.thumbnail == "first" else 0
        return [first + i for i in range(self.tile_rows * self.tile_cols)]

    def thumbnail_partition(self) -> int | None:
        if self.thumbnail == "none":
            return None
        return 0 if self.thumbnail == "first" else self.tile_rows * self.tile_cols

    def partitions(self) -> int:
        return len(self.tiles()) + (self.thumbnail != "none")

    def canvas(self) -> list[tuple[Cell, tuple[int, int]]]:
        """Valid tile cells in row-major order of the canvas, and where in the valid
        rectangle each lies."""
        found = []
        for row in range(self.tile_rows * self.rows):
            for col in range(self.tile_cols * self.cols):
                y, x = row - self.top, col - self.left
                if 0 <= y < self.height and 0 <= x < self.width:
                    tile = row // self.rows * self.tile_cols + col // self.cols
                    cell = row % self.rows * self.cols + col % self.cols
                    found.append(((self.tiles()[tile], cell), (y, x)))
        return found

    def sequence(self) -> list[Cell]:
        """All cells that may be kept, as the LLM gets them."""
        canvas = [cell for cell, _ in self.canvas()]
        if self.tile_by_tile:
            canvas.sort()
        whole = self.thumbnail_partition()
        if whole is None:
            return canvas
        own = [(whole, cell) for cell in range(self.rows * self.cols)]
        return own + canvas if self.thumbnail == "first" else canvas + own

    def valid(self, partition: int) -> list[int]:
        return sorted(cell for p, cell in self.sequence() if p == partition)


def quotas(
    image: Image,
    kept: int,
    weights: Sequence[Fraction],
    share: Fraction | None = None,
) -> list[int]:
    """Of each partition: a `share`, or else one in `P`, for the thumbnail, the rest
    among the tiles by `weights`."""
    capacities = [len(image.valid(tile)) for tile in image.tiles()]
    cells = image.rows * image.cols if image.thumbnail != "none" else 0
    share = Fraction(1, image.partitions()) if share is None else share
    thumbnail = min(int(share * kept), cells)
    tiles = min(kept - thumbnail, sum(capacities))
    split = shares(list(weights), capacities, tiles)
    if image.thumbnail == "none":
        return split
    own = [kept - tiles]
    return own + split if image.thumbnail == "first" else split + own


def equal_quotas(image: Image, kept: int) -> list[int]:
    return quotas(image, kept, [Fraction(1)] * len(image.tiles()))


def best(scores: Sequence[float], among: Sequence[int], count: int) -> list[int]:
    """Of the indices `among` those of the highest score, ties to the lower."""
    return sorted(among, key=lambda cell: (-scores[cell], cell))[:count]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = sum(x * x for x in a) * sum(x * x for x in b)
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / lengths**0.5 if lengths else 0.0
