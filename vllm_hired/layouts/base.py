"""Where an image's tokens lie, in integers: partitions, tiles, the valid rectangle.

A *cell* is what becomes one token of the LLM: a patch in LLaVA, a few merged patches in
other families. Nothing here imports torch, and nothing depends on an image's content.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal


class ImageSizeError(ValueError):
    """An image of a size that leaves nothing to select from."""


@dataclass(frozen=True)
class Layout:
    """Where one image's cells lie. Sizes in cells; rows before columns.

    The vision tower encodes an image as `P` partitions of equal size: tiles in
    row-major order, and a thumbnail before or after them. A *flat cell index* is
    `partition * N + cell`, in the order of the tower's output. An image that is encoded
    in one piece is a thumbnail without tiles.

    Attributes:
        rows: rows of one partition.
        cols: columns of one partition; `N = rows * cols`.
        tile_rows: `R`; 0 where there are no tiles.
        tile_cols: `C`, likewise.
        top: first canvas row of the valid rectangle.
        left: first canvas column of the valid rectangle.
        height: rows of the valid rectangle.
        width: columns of the valid rectangle.
        thumbnail: where it stands among the partitions, in the tower's output and in
            the sequence: "first", "last" or "none".
        tile_by_tile: whether the sequence takes tiles one after another; otherwise it
            takes the rows of the whole canvas.
        num_separators: tokens that stock vLLM adds to the cells (LLaVA-NeXT's newline
            tokens), which dropping leaves out.
        least_kept: the fewest tokens that an image may keep.
    """

    rows: int
    cols: int
    tile_rows: int = 0
    tile_cols: int = 0
    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0
    thumbnail: Literal["first", "last", "none"] = "first"
    tile_by_tile: bool = False
    num_separators: int = 0
    least_kept: int = 1

    @property
    def cells_per_partition(self) -> int:
        """`N`."""
        return self.rows * self.cols

    @property
    def num_tiles(self) -> int:
        """`R * C`."""
        return self.tile_rows * self.tile_cols

    @property
    def num_partitions(self) -> int:
        """`P`: `R * C`, and one where there is a thumbnail."""
        return self.num_tiles + (self.thumbnail != "none")

    @property
    def partition_names(self) -> list[str]:
        """What people read, by partition: tiles are numbered from 1, row by row.

        An image that is encoded in one piece is no thumbnail of anything.
        """
        if self.num_partitions == 1:
            return ["image"]
        tiles = [f"tile {i + 1}" for i in range(self.num_tiles)]
        thumbnail = ["thumbnail"] if self.thumbnail != "none" else []
        return tiles + thumbnail if self.thumbnail == "last" else thumbnail + tiles

    @property
    def num_cells(self) -> int:
        """`P * N`, padding included: what a budget rate is a fraction of."""
        return self.num_partitions * self.cells_per_partition

    @property
    def thumbnail_partition(self) -> int | None:
        """The thumbnail's number among the partitions."""
        return {"first": 0, "last": self.num_tiles, "none": None}[self.thumbnail]

    @property
    def num_thumbnail_cells(self) -> int:
        """`N`, or 0 where there is no thumbnail."""
        return 0 if self.thumbnail == "none" else self.cells_per_partition

    @property
    def first_tile(self) -> int:
        """The first tile's number among the partitions."""
        return int(self.thumbnail == "first")

    @property
    def num_valid_tile_cells(self) -> int:
        """`V_sub`: cells in the valid rectangle."""
        return self.height * self.width

    @property
    def num_selectable(self) -> int:
        """`N + V_sub`: the most tokens that dropping can keep."""
        return self.num_thumbnail_cells + self.num_valid_tile_cells

    @property
    def num_stock_tokens(self) -> int:
        """Visual tokens without dropping."""
        return self.num_selectable + self.num_separators

    @cached_property
    def tile_capacities(self) -> tuple[int, ...]:
        """Valid cells of each tile, row-major; they sum to `V_sub`."""
        columns = _lengths(self.tile_cols, self.cols, self.left, self.width)
        return tuple(
            rows * cols
            for rows in _lengths(self.tile_rows, self.rows, self.top, self.height)
            for cols in columns
        )

    @property
    def partition_capacities(self) -> tuple[int, ...]:
        """Valid cells of each partition, in the tower's order."""
        tiles = self.tile_capacities
        if self.thumbnail == "none":
            return tiles
        whole = (self.num_thumbnail_cells,)
        return whole + tiles if self.thumbnail == "first" else tiles + whole

    @property
    def row_overlap(self) -> list[list[int]]:
        """`Oy`: `rows x R` lengths, thumbnail rows by tile rows, in `1/rows` cell."""
        return _overlap(self.rows, self.tile_rows, self.top, self.height)

    @property
    def col_overlap(self) -> list[list[int]]:
        """`Ox`: `cols x C` lengths, thumbnail columns by tile columns, in `1/cols`
        cell."""
        return _overlap(self.cols, self.tile_cols, self.left, self.width)

    def flat_index(self, row: int, col: int) -> int:
        """Flat cell index of a canvas position."""
        tile = row // self.rows * self.tile_cols + col // self.cols
        cell = row % self.rows * self.cols + col % self.cols
        return (self.first_tile + tile) * self.cells_per_partition + cell


def partition_side(hf_config: Any) -> int:
    """Pixels along a side of a partition, where these are squares."""
    return side_of(hf_config.vision_config.image_size)


def patches_per_side(hf_config: Any) -> int:
    """Patches along a side of such a partition."""
    return partition_side(hf_config) // side_of(hf_config.vision_config.patch_size)


def merge_side(hf_config: Any) -> int:
    """Patches along a side of a cell; 1 in models that merge none."""
    return round(1 / getattr(hf_config, "downsample_ratio", 1))


def side_of(square: Any) -> int:
    """Of a square, of which HF's InternVL names both sides."""
    return int(square if isinstance(square, int) else square[0])


def _lengths(tiles: int, side: int, start: int, length: int) -> list[int]:
    """How much of `[start, start + length)` lies on each of `tiles` in a row."""
    ends = (min(start + length, (tile + 1) * side) for tile in range(tiles))
    return [max(0, end - max(start, t * side)) for t, end in enumerate(ends)]


def _overlap(side: int, tiles: int, start: int, length: int) -> list[list[int]]:
    """The thumbnail shows the valid rectangle without padding, so of its `side` cells
    cell `i` covers the fraction `[i/side, (i+1)/side]`. In `1/side` cell all lengths
    are whole numbers, and sums weighted by whole numbers are exact."""
    return [
        [
            max(
                0,
                min((cell + 1) * length, ((tile + 1) * side - start) * side)
                - max(cell * length, (tile * side - start) * side),
            )
            for tile in range(tiles)
        ]
        for cell in range(side)
    ]
