"""Every method's oracle, called alike: what is kept of one image, and as which rows."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from tests import oracle
from tests.methods import (
    oracle_divprune,
    oracle_fastervlm,
    oracle_globalcom2,
    oracle_scope,
    plain,
    prumerge_plus,
    visionzip,
    vispruner,
)
from tests.methods.oracle_image import Cell, Image, best, quotas


@dataclass
class Seen:
    """What may be looked at: of each partition, of each cell."""

    init_attention: list[list[float]]
    final_attention: list[list[float]]
    features: list[list[plain.Vector]]
    keys: list[list[plain.Vector]]


Rows = dict[Cell, plain.Vector]
Oracle = Callable[[Image, int, Seen], Rows]


def _as_they_are(cells: Iterable[Cell], seen: Seen) -> Rows:
    return {(p, cell): seen.features[p][cell] for p, cell in cells}


def _best(
    image: Image, seen: Seen, split: list[int], scores: list[list[float]]
) -> Rows:
    cells = [
        (p, cell)
        for p, quota in enumerate(split)
        for cell in best(scores[p], image.valid(p), quota)
    ]
    return _as_they_are(cells, seen)


def ranked(
    image: Image,
    kept: int,
    seen: Seen,
    weights: list[Fraction],
    share: Fraction,
    scores: list[list[float]],
) -> Rows:
    """In each partition those of the highest score."""
    return _best(image, seen, quotas(image, kept, weights, share), scores)


HALF = Fraction(1, 2)
"""The default of `hired_alpha`."""


def areas(image: Image) -> list[Fraction]:
    return [Fraction(len(image.valid(tile))) for tile in image.tiles()]


def _attended(image: Image, seen: Seen) -> list[Fraction]:
    whole = image.thumbnail_partition()
    assert whole is not None
    attention = seen.init_attention[whole]
    starts = range(0, len(attention), image.cols)
    return oracle.tile_weights(
        oracle.Layout(
            *(image.rows, image.tile_rows, image.tile_cols, image.top),
            *(image.top + image.height, image.left, image.left + image.width),
        ),
        [attention[start : start + image.cols] for start in starts],
    )


def hired(image: Image, kept: int, seen: Seen) -> Rows:
    weights = _attended(image, seen)
    return ranked(image, kept, seen, weights, HALF, seen.final_attention)


def thumbnail(image: Image, kept: int, seen: Seen) -> Rows:
    weights = _attended(image, seen)
    return ranked(image, kept, seen, weights, Fraction(1), seen.final_attention)


def even(image: Image, kept: int, seen: Seen) -> Rows:
    weights = [Fraction(1) for _ in image.tiles()]
    return ranked(image, kept, seen, weights, HALF, seen.final_attention)


def uniform(image: Image, kept: int, seen: Seen) -> Rows:
    """In the order of a Bayer matrix, of which each is made of the next smaller one."""

    def bayer(side: int) -> list[list[int]]:
        if side == 1:
            return [[0]]
        half = side // 2
        small, corner = bayer(half), [[0, 2], [3, 1]]
        return [
            [
                4 * small[y % half][x % half] + corner[y // half][x // half]
                for x in range(side)
            ]
            for y in range(side)
        ]

    side = 1
    while side < max(image.rows, image.cols):
        side *= 2
    order = bayer(side)
    cells = [(y, x) for y in range(image.rows) for x in range(image.cols)]
    scores = [[-float(order[y][x]) for y, x in cells]] * image.partitions()
    return ranked(image, kept, seen, areas(image), HALF, scores)


def random(image: Image, kept: int, seen: Seen) -> Rows:
    """SplitMix64, seeded by the bits of the attention, of which all must be right."""
    flat = [value for own in seen.final_attention for value in own]
    seed = sum(struct.unpack("<i", struct.pack("<f", value))[0] for value in flat)

    def number(place: int) -> float:
        state = (seed + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return float((state ^ (state >> 31)) >> 40)

    n = image.rows * image.cols
    scores = [
        [number(p * n + cell) for cell in range(n)] for p in range(image.partitions())
    ]
    return ranked(image, kept, seen, areas(image), HALF, scores)


def fastervlm(image: Image, kept: int, seen: Seen) -> Rows:
    cells = oracle_fastervlm.select(image, kept, seen.final_attention)
    return _as_they_are(cells, seen)


def globalcom2(image: Image, kept: int, seen: Seen) -> Rows:
    split = oracle_globalcom2.split(image, kept, seen.final_attention)
    scores = oracle_globalcom2.scores(image, seen.final_attention)
    return _best(image, seen, split, scores)


def first_of_best(scores: dict[Cell, float]) -> Cell:
    return max(scores, key=lambda cell: scores[cell])


def divprune(image: Image, kept: int, seen: Seen) -> Rows:
    cells = oracle_divprune.steps(image, kept, seen.features, first_of_best)
    return _as_they_are(cells, seen)


def scope(image: Image, kept: int, seen: Seen) -> Rows:
    cells = oracle_scope.steps(
        image, kept, seen.features, seen.final_attention, 1.0, first_of_best
    )
    return _as_they_are(cells, seen)


def within_partitions(
    keep: Callable[[plain.Partition, int, float], plain.Kept], share: float
) -> Oracle:
    """Of a method that treats each partition for itself, with quotas by their cells."""

    def rows(image: Image, kept: int, seen: Seen) -> Rows:
        partitions = [
            plain.Partition(
                image.valid(p), seen.final_attention[p], seen.features[p], seen.keys[p]
            )
            for p in range(image.partitions())
        ]
        split = plain.quotas([len(own.valid) for own in partitions], kept)
        return {
            (p, cell): row
            for p, quota in enumerate(split)
            for cell, row in keep(partitions[p], quota, share).items()
        }

    return rows


ORACLES: dict[str, Oracle] = {
    "hired": hired,
    "even": even,
    "thumbnail": thumbnail,
    "uniform": uniform,
    "random": random,
    "fastervlm": fastervlm,
    "globalcom2": globalcom2,
    "divprune": divprune,
    "scope": scope,
    "visionzip": within_partitions(visionzip.keep, 27 / 32),
    "prumerge_plus": within_partitions(prumerge_plus.keep, 0.25),
    "vispruner": within_partitions(vispruner.keep, 0.5),
}
"""Method -> its oracle, under default settings."""


def in_sequence(image: Image, rows: Rows) -> tuple[list[Cell], list[plain.Vector]]:
    """Cells and rows in the order in which the LLM gets them."""
    cells = [cell for cell in image.sequence() if cell in rows]
    return cells, [rows[cell] for cell in cells]
