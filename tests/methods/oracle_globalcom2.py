"""GlobalCom2 (arXiv 2501.05179), sections on retention ratios and on crops."""

import math
from fractions import Fraction

from tests.methods.oracle_image import Image, quotas


def split(image: Image, kept: int, attention: list[list[float]]) -> list[int]:
    """Tokens of each partition."""
    tiles = image.tiles()
    whole = image.thumbnail_partition()
    capacities = [len(image.valid(tile)) for tile in tiles]
    if whole is None or not tiles:
        return quotas(image, kept, [Fraction(cells) for cells in capacities])
    sums = [0.0 for _ in tiles]
    for row in range(image.rows):
        for col in range(image.cols):
            for i in range(len(tiles)):
                area = _overlap(
                    (row, image.rows),
                    (i // image.tile_cols, image.rows),
                    (image.top, image.height),
                ) * _overlap(
                    (col, image.cols),
                    (i % image.tile_cols, image.cols),
                    (image.left, image.width),
                )
                sums[i] += attention[whole][row * image.cols + col] * float(area)
    powers = [math.exp(s / 10) for s in sums]
    softmax = [power / sum(powers) for power in powers]
    weights = [
        cells * (1 + part - sum(softmax) / len(softmax))
        for cells, part in zip(capacities, softmax, strict=True)
    ]
    # What is equal but for rounding is equal.
    return quotas(image, kept, [Fraction(round(w * 10**9)) for w in weights])


def _overlap(
    cell: tuple[int, int], tile: tuple[int, int], valid: tuple[int, int]
) -> Fraction:
    """Of a thumbnail cell (number, of how many) the part that shows a tile (number,
    side), along one axis on which the thumbnail shows `valid` (start, length)."""
    number, cells = cell
    start, length = valid
    low = start + Fraction(number * length, cells)
    high = start + Fraction((number + 1) * length, cells)
    tile_low, tile_high = tile[0] * tile[1], (tile[0] + 1) * tile[1]
    shown = min(high, Fraction(tile_high)) - max(low, Fraction(tile_low))
    return max(shown, Fraction(0)) / (high - low)


def scores(image: Image, attention: list[list[float]]) -> list[list[float]]:
    """What ranks the cells of each partition."""
    whole = image.thumbnail_partition()
    ranked = [list(own) for own in attention]
    if whole is None:
        return ranked
    guide = [[0.0] * len(own) for own in attention]
    for (tile, cell), (y, x) in image.canvas():
        guide[tile][cell] = _bilinear(image, attention[whole], y, x)
    for tile in image.tiles():
        valid = image.valid(tile)
        own = _length([attention[tile][cell] for cell in valid])
        shared = _length([guide[tile][cell] for cell in valid])
        for cell in valid:
            ranked[tile][cell] = (
                attention[tile][cell] / own + guide[tile][cell] / shared
            )
    return ranked


def _bilinear(image: Image, thumbnail: list[float], y: int, x: int) -> float:
    """The thumbnail, as large as the valid rectangle, at the centre of a cell of it."""
    row = max((y + 0.5) * image.rows / image.height - 0.5, 0.0)
    col = max((x + 0.5) * image.cols / image.width - 0.5, 0.0)
    top, left = int(row), int(col)
    value = 0.0
    for i, by_row in ((top, 1 - (row - top)), (top + 1, row - top)):
        for j, by_col in ((left, 1 - (col - left)), (left + 1, col - left)):
            y0, x0 = min(i, image.rows - 1), min(j, image.cols - 1)
            value += by_row * by_col * thumbnail[y0 * image.cols + x0]
    return value


def _length(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values)) or 1.0
