"""DivPrune (arXiv 2503.02175), algorithm 1: greedy max-min cosine distance."""

from collections.abc import Callable, Collection
from itertools import combinations

from tests.methods.oracle_image import Cell, Image, cosine


def steps(
    image: Image,
    kept: int,
    features: list[list[list[float]]],
    pick: Callable[[dict[Cell, float]], Cell],
) -> set[Cell]:
    """`pick` sees at each step how far every candidate is, in sequence order."""
    cells = image.sequence()
    vectors = {cell: features[cell[0]][cell[1]] for cell in cells}
    apart: dict[tuple[Cell, Cell], float] = {}
    for a, b in combinations(cells, 2):
        apart[a, b] = apart[b, a] = 1 - cosine(vectors[a], vectors[b])

    def least(cell: Cell, others: Collection[Cell]) -> float:
        return min((apart[cell, o] for o in others if o != cell), default=0.0)

    chosen: set[Cell] = set()
    while len(chosen) < kept:
        others = chosen or set(cells)
        chosen.add(pick({c: least(c, others) for c in cells if c not in chosen}))
    return chosen
