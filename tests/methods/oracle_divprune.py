"""DivPrune (arXiv 2503.02175), algorithm 1: greedy max-min cosine distance."""

from collections.abc import Callable, Collection

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
    apart = {
        (a, b): 1 - cosine(vectors[a], vectors[b])
        for a in cells
        for b in cells
        if a != b
    }

    def least(cell: Cell, others: Collection[Cell]) -> float:
        return min((apart[cell, o] for o in others if o != cell), default=0.0)

    chosen: set[Cell] = set()
    while len(chosen) < kept:
        others = chosen or set(cells)
        chosen.add(pick({c: least(c, others) for c in cells if c not in chosen}))
    return chosen
