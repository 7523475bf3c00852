"""What the oracles of methods within a partition share: quotas, order, cosines.

In plain loops. In what is added up, `NaN` and infinities count as zero; a vector that
has any counts as zero in what is compared.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

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
    """`cells`, those of most attention first, NaN last, ties to the lower index."""

    def attention(cell: int) -> float:
        own = partition.attention[cell]
        return -math.inf if math.isnan(own) else own

    return sorted(cells, key=lambda cell: (-attention(cell), cell))


def spread(cells: list[int], count: int) -> list[int]:
    """`count` of `cells`, at even steps from the first on."""
    return [cells[i * len(cells) // count] for i in range(count)]


def finite(vector: Vector) -> Vector:
    return [x if math.isfinite(x) else 0.0 for x in vector]


def cosine(one: Vector, other: Vector) -> float:
    if not all(map(math.isfinite, [*one, *other])):
        return 0.0
    lengths = math.hypot(*one) * math.hypot(*other)
    if lengths == 0:
        return 0.0
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths


def added(one: Vector, other: Vector, weight: float = 1.0) -> Vector:
    return [a + weight * b for a, b in zip(finite(one), finite(other), strict=True)]
