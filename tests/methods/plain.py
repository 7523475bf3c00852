"""What the oracles share, in plain loops: cells, quotas, order, cosines.

Of the package it uses a layout's integers alone. `NaN` and infinities count as zero.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

from vllm_hired.layouts import Layout

Vector = list[float]


@dataclass
class Partition:
    """One partition's cells, as a method sees them.

    Attributes:
        valid: numbers of the cells that may be kept, ascending.
        attention: of each cell.
        features: of each cell.
        keys: of each cell.
    """

    valid: list[int]
    attention: list[float]
    features: list[Vector]
    keys: list[Vector] = field(default_factory=list)


Kept = dict[int, Vector]
"""Of one partition: cell -> its row."""


def sequence(layout: Layout) -> list[tuple[int, int]]:
    """(partition, cell) of every valid cell, in the order of the LLM's tokens."""
    tiles = []
    for y in range(layout.top, layout.top + layout.height):
        for x in range(layout.left, layout.left + layout.width):
            tile = (y // layout.rows) * layout.tile_cols + x // layout.cols
            cell = (y % layout.rows) * layout.cols + x % layout.cols
            tiles.append((tile + (layout.thumbnail == "first"), cell))
    if layout.tile_by_tile:
        tiles.sort()
    number = 0 if layout.thumbnail == "first" else layout.num_tiles
    whole = [(number, cell) for cell in range(layout.rows * layout.cols)]
    if layout.thumbnail == "none":
        return tiles
    return whole + tiles if layout.thumbnail == "first" else tiles + whole


def quotas(capacities: list[int], kept: int) -> list[int]:
    """In proportion to capacities, by largest remainder, ties to the lower index."""
    exact = [Fraction(kept * c, sum(capacities)) for c in capacities]
    counts = [math.floor(e) for e in exact]
    while sum(counts) < kept:
        gaps = [e - n for e, n in zip(exact, counts, strict=True)]
        counts[gaps.index(max(gaps))] += 1
    return counts


def share(quota: int, wanted: float) -> int:
    return math.ceil(Fraction(str(wanted)) * quota)


def by_attention(partition: Partition, cells: list[int]) -> list[int]:
    """`cells`, those of most attention first, ties to the lower index."""

    def attention(cell: int) -> float:
        own = partition.attention[cell]
        return 0.0 if math.isnan(own) else own

    return sorted(cells, key=lambda cell: (-attention(cell), cell))


def spread(cells: list[int], count: int) -> list[int]:
    """`count` of `cells`, at even steps from the first on."""
    return [cells[i * len(cells) // count] for i in range(count)]


def finite(vector: Vector) -> Vector:
    return [x if math.isfinite(x) else 0.0 for x in vector]


def cosine(one: Vector, other: Vector) -> float:
    one, other = finite(one), finite(other)
    lengths = math.hypot(*one) * math.hypot(*other)
    if lengths == 0:
        return 0.0
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths


def added(one: Vector, other: Vector, weight: float = 1.0) -> Vector:
    return [a + weight * b for a, b in zip(finite(one), finite(other), strict=True)]
