"""HiRED in plain loops and exact fractions, written from the paper and the design.

Shares no code with vllm_hired, torch or transformers, and is in no hurry.
"""

from dataclasses import dataclass
from fractions import Fraction

Grid = list[list[float]]


@dataclass
class Layout:
    """Tile grid and valid rectangle of an image, in patches."""

    g: int
    rows: int
    cols: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def stock_tokens(self) -> int:
        """Thumbnail, valid tile patches, one newline a row."""
        height = self.bottom - self.top
        return self.g**2 + height * (self.right - self.left) + height


def layout(
    height: int, width: int, pinpoints: list[tuple[int, int]], tile: int, patch: int
) -> Layout | None:
    """The layout of a `height` x `width` image; None if no patch is valid."""
    best: tuple[int, int] | None = None
    best_used = best_wasted = 0
    for canvas_height, canvas_width in pinpoints:
        scale = min(canvas_width / width, canvas_height / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas_height * canvas_width - used
        if (
            best is None
            or used > best_used
            or (used == best_used and wasted < best_wasted)
        ):
            best, best_used, best_wasted = (canvas_height, canvas_width), used, wasted
    assert best is not None
    g = tile // patch
    rows, cols = best[0] // tile, best[1] // tile
    full_height, full_width = rows * g, cols * g
    top = left = 0
    if width / height > full_width / full_height:
        top = (full_height - int(round(height * (full_width / width), 7))) // 2
    else:
        left = (full_width - int(round(width * (full_height / height), 7))) // 2
    bottom, right = full_height - top, full_width - left
    if bottom <= top or right <= left:
        return None
    return Layout(g, rows, cols, top, bottom, left, right)


def count(shape: Layout, rho: str, cap: int | None) -> int:
    """`K`."""
    n = shape.g**2
    selectable = n + (shape.bottom - shape.top) * (shape.right - shape.left)
    budget = Fraction(rho)
    if budget == 1 and (cap is None or cap >= shape.stock_tokens):
        return shape.stock_tokens
    k = int(budget * (shape.rows * shape.cols + 1) * n)
    k = max(1, min(k, selectable))
    return k if cap is None else min(k, cap)


def tile_capacities(shape: Layout) -> list[int]:
    """Valid patches of each tile."""
    capacities = []
    for tile_row in range(shape.rows):
        for tile_col in range(shape.cols):
            valid = 0
            for row in range(tile_row * shape.g, (tile_row + 1) * shape.g):
                for col in range(tile_col * shape.g, (tile_col + 1) * shape.g):
                    if (
                        shape.top <= row < shape.bottom
                        and shape.left <= col < shape.right
                    ):
                        valid += 1
            capacities.append(valid)
    return capacities


def tile_weights(shape: Layout, attention: Grid) -> list[Fraction]:
    """Thumbnail attention that falls on each tile, cell by cell, by area."""
    height = Fraction(shape.bottom - shape.top)
    width = Fraction(shape.right - shape.left)

    def part(low: Fraction, high: Fraction, tile: int) -> Fraction:
        """How much of [low, high] lies on the tile, as a fraction of it."""
        start, end = Fraction(tile * shape.g), Fraction((tile + 1) * shape.g)
        return max(Fraction(0), min(high, end) - max(low, start)) / (high - low)

    weights = []
    for tile_row in range(shape.rows):
        for tile_col in range(shape.cols):
            weight = Fraction(0)
            for i in range(shape.g):
                y0 = shape.top + height * i / shape.g
                y1 = shape.top + height * (i + 1) / shape.g
                for j in range(shape.g):
                    x0 = shape.left + width * j / shape.g
                    x1 = shape.left + width * (j + 1) / shape.g
                    area = part(y0, y1, tile_row) * part(x0, x1, tile_col)
                    weight += Fraction(attention[i][j]) * area
            weights.append(weight)
    return weights


def shares(weights: list[Fraction], caps: list[int], total: int) -> list[int]:
    """Capped proportional shares, rounded by the largest remainder."""
    result = [0] * len(weights)
    is_open = list(range(len(weights)))
    while True:
        left = total - sum(result)
        weight = {tile: weights[tile] for tile in is_open}
        if sum(weight.values()) == 0:
            weight = {tile: Fraction(caps[tile]) for tile in is_open}
        everything = sum(weight.values())
        exact = {
            tile: left * weight[tile] / everything if everything else Fraction(0)
            for tile in is_open
        }
        filled = [tile for tile in is_open if exact[tile] >= caps[tile]]
        if not filled:
            break
        for tile in filled:
            result[tile] = caps[tile]
            is_open.remove(tile)
    for tile in is_open:
        result[tile] = int(exact[tile])
    by_remainder = sorted(is_open, key=lambda t: (result[t] - exact[t], t))
    for tile in by_remainder[: total - sum(result)]:
        result[tile] += 1
    return result


def split(shape: Layout, kept: int, alpha: str) -> tuple[int, int]:
    """Tokens of the thumbnail and of the tiles."""
    thumbnail = min(int(Fraction(alpha) * kept), shape.g**2)
    tiles = kept - thumbnail
    capacity = sum(tile_capacities(shape))
    if tiles > capacity:
        thumbnail, tiles = thumbnail + tiles - capacity, capacity
    return thumbnail, tiles


def select(
    shape: Layout, kept: int, alpha: str, init: list[Grid], final: list[Grid]
) -> list[tuple[int, int, int]]:
    """Kept patches as (partition, row, column), in sequence order.

    `init` and `final` are one `g x g` grid a partition, the thumbnail first.
    """
    g = shape.g
    thumbnail, tiles = split(shape, kept, alpha)
    quota = [
        thumbnail,
        *shares(tile_weights(shape, init[0]), tile_capacities(shape), tiles),
    ]

    def is_valid(partition: int, row: int, col: int) -> bool:
        if partition == 0:
            return True
        canvas_row = (partition - 1) // shape.cols * g + row
        canvas_col = (partition - 1) % shape.cols * g + col
        return (
            shape.top <= canvas_row < shape.bottom
            and shape.left <= canvas_col < shape.right
        )

    chosen = set()
    for partition, scores in enumerate(final):
        patches = [
            (-scores[row][col], row * g + col, row, col)
            for row in range(g)
            for col in range(g)
            if is_valid(partition, row, col)
        ]
        for _, _, row, col in sorted(patches)[: quota[partition]]:
            chosen.add((partition, row, col))

    order = [(0, row, col) for row in range(g) for col in range(g)]
    for canvas_row in range(shape.rows * g):
        for canvas_col in range(shape.cols * g):
            partition = canvas_row // g * shape.cols + canvas_col // g + 1
            order.append((partition, canvas_row % g, canvas_col % g))
    return [patch for patch in order if patch in chosen]
