"""Image size -> tile grid and valid rectangle, by the functions that HF and vLLM use.

Nothing here depends on an image's content, so all of it is cached.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)


class ImageSizeError(ValueError):
    """An image of a size that leaves nothing to select from."""


@dataclass(frozen=True)
class Geometry:
    """Where an image's patches lie. Sizes in patches; rows before columns.

    Partitions are numbered 0 (thumbnail), then tiles in row-major order; a *flat
    patch index* is `partition * N + patch`, as the vision tower returns them.

    Attributes:
        patch_grid: `g`, patches along one side of a partition; `N = g * g`.
        tile_rows: `R`; 0 where there is a thumbnail alone (LLaVA-1.5).
        tile_cols: `C`, likewise.
        top: first canvas row of the valid rectangle.
        left: first canvas column of the valid rectangle.
        height: rows of the valid rectangle.
        width: columns of the valid rectangle.
    """

    patch_grid: int
    tile_rows: int = 0
    tile_cols: int = 0
    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0

    @property
    def patches_per_partition(self) -> int:
        """`N`."""
        return self.patch_grid * self.patch_grid

    @property
    def num_tiles(self) -> int:
        """`R * C`."""
        return self.tile_rows * self.tile_cols

    @property
    def num_partitions(self) -> int:
        """`P = R * C + 1`."""
        return self.num_tiles + 1

    @property
    def num_valid_tile_patches(self) -> int:
        """`V_sub`: patches in the valid rectangle."""
        return self.height * self.width

    @property
    def num_selectable(self) -> int:
        """`N + V_sub`: the most tokens that dropping can keep."""
        return self.patches_per_partition + self.num_valid_tile_patches

    @property
    def num_stock_tokens(self) -> int:
        """Visual tokens without dropping: one newline token a canvas row more."""
        return self.num_selectable + self.height

    @property
    def tile_capacities(self) -> list[int]:
        """Valid patches of each tile, row-major; they sum to `V_sub`."""
        g = self.patch_grid

        def lengths(tiles: int, start: int, length: int) -> list[int]:
            ends = (min(start + length, (tile + 1) * g) for tile in range(tiles))
            return [max(0, e - max(start, t * g)) for t, e in enumerate(ends)]

        columns = lengths(self.tile_cols, self.left, self.width)
        return [
            rows * cols
            for rows in lengths(self.tile_rows, self.top, self.height)
            for cols in columns
        ]

    @property
    def row_overlap(self) -> list[list[int]]:
        """`Oy`: `g x R` lengths, thumbnail rows by tile rows, in `1/g` patch."""
        return self._overlap(self.tile_rows, self.top, self.height)

    @property
    def col_overlap(self) -> list[list[int]]:
        """`Ox`: `g x C` lengths, thumbnail columns by tile columns, in `1/g` patch."""
        return self._overlap(self.tile_cols, self.left, self.width)

    def _overlap(self, tiles: int, start: int, length: int) -> list[list[int]]:
        """The thumbnail shows the valid rectangle without padding, so cell `i` covers
        its fraction `[i/g, (i+1)/g]`. In `1/g` patch all lengths are whole numbers,
        and sums weighted by whole numbers are exact."""
        g = self.patch_grid
        return [
            [
                max(
                    0,
                    min((cell + 1) * length, ((tile + 1) * g - start) * g)
                    - max(cell * length, (tile * g - start) * g),
                )
                for tile in range(tiles)
            ]
            for cell in range(g)
        ]


@dataclass(frozen=True)
class IndexTables:
    """A geometry's lookup tables on one device.

    Attributes:
        sequence: `[N + V_sub]` int64, flat patch indices in sequence order: the
            thumbnail row-major, then the valid rectangle row-major.
        valid: `[P, N]` bool, patches that may be kept.
        tile_capacity: `[R * C]` int64, valid patches of each tile.
        row_overlap: `[g, R]` float64.
        col_overlap: `[g, C]` float64.
    """

    sequence: Tensor
    valid: Tensor
    tile_capacity: Tensor
    row_overlap: Tensor
    col_overlap: Tensor


@lru_cache(maxsize=4096)
def image_geometry(
    image_height: int,
    image_width: int,
    pinpoints: tuple[tuple[int, int], ...],
    tile_size: int,
    patch_size: int,
) -> Geometry:
    """Geometry of a LLaVA-NeXT image.

    Args:
        image_height: pixels of the original image.
        image_width: likewise.
        pinpoints: the model's `image_grid_pinpoints`, (height, width) in pixels.
        tile_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.

    Raises:
        ImageSizeError: an empty image, or one so long and thin that no row or
            column of its patches is left after unpadding.
    """
    if image_height < 1 or image_width < 1:
        raise ImageSizeError(
            f"an image of {image_width}x{image_height} pixels is empty: "
            "both sides must be at least 1"
        )
    g = tile_size // patch_size
    tile_rows, tile_cols = get_anyres_image_grid_shape(
        (image_height, image_width), [list(point) for point in pinpoints], tile_size
    )
    canvas_width = tile_cols * g
    # On the CPU whatever the caller's default device, so that nothing synchronises.
    canvas = torch.arange(tile_rows * g * canvas_width, device="cpu")
    canvas = canvas.view(1, -1, canvas_width)
    valid = unpad_image(canvas, (image_height, image_width))[0]
    if valid.numel() == 0:
        raise ImageSizeError(
            f"an image of {image_width}x{image_height} pixels is too long and thin: "
            f"its shorter side is under one patch of the canvas of {canvas_width}x"
            f"{tile_rows * g} patches; crop it"
        )
    top, left = divmod(int(valid[0, 0]), canvas_width)
    return Geometry(g, tile_rows, tile_cols, top, left, *valid.shape)


@lru_cache(maxsize=512)
def index_tables(geometry: Geometry, device: torch.device) -> IndexTables:
    """The tables of `geometry` on `device`, copied there when first asked for."""
    g, n = geometry.patch_grid, geometry.patches_per_partition
    with torch.device("cpu"):
        rows = torch.arange(geometry.top, geometry.top + geometry.height)[:, None]
        cols = torch.arange(geometry.left, geometry.left + geometry.width)[None, :]
        tiles = rows // g * geometry.tile_cols + cols // g
        in_tile = rows % g * g + cols % g
        sequence = torch.cat((torch.arange(n), ((tiles + 1) * n + in_tile).flatten()))
        valid = torch.zeros(geometry.num_partitions * n, dtype=torch.bool)
        valid[sequence] = True
        valid = valid.view(-1, n)
    return IndexTables(
        sequence=sequence.to(device),
        valid=valid.to(device),
        tile_capacity=valid[1:].sum(dim=1).to(device),
        row_overlap=_table(geometry.row_overlap, device),
        col_overlap=_table(geometry.col_overlap, device),
    )


def _table(values: list[list[int]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
