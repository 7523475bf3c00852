"""Image size -> tile grid and valid rectangle, as HF and vLLM find them.

Nothing here depends on an image's content, so all of it is cached.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


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
    def partition_names(self) -> list[str]:
        """What people read: tiles are numbered from 1, row by row."""
        return ["thumbnail", *(f"tile {i + 1}" for i in range(self.num_tiles))]

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

    What transformers' `get_anyres_image_grid_shape` and `unpad_image` give, in the same
    floating-point arithmetic, without their modules, which take seconds to import.

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

    def fit(canvas: tuple[int, int]) -> tuple[int, int]:
        """Pixels of the image that the canvas shows, and (negative) those it wastes."""
        scale = min(canvas[1] / image_width, canvas[0] / image_height)
        shown = int(image_width * scale) * int(image_height * scale)
        shown = min(shown, image_width * image_height)
        return shown, shown - canvas[0] * canvas[1]

    tile_rows, tile_cols = (side // tile_size for side in max(pinpoints, key=fit))
    height, width = tile_rows * g, tile_cols * g
    top = left = 0
    if image_width / image_height > width / height:
        top = (height - _rounded(image_height * (width / image_width))) // 2
    else:
        left = (width - _rounded(image_width * (height / image_height))) // 2
    if 2 * top >= height or 2 * left >= width:
        raise ImageSizeError(
            f"an image of {image_width}x{image_height} pixels is too long and thin: "
            f"its shorter side is under one patch of the canvas of {width}x{height} "
            "patches; crop it"
        )
    return Geometry(
        g, tile_rows, tile_cols, top, left, height - 2 * top, width - 2 * left
    )


def _rounded(patches: float) -> int:
    """Whole patches; rounded first, so that 11.999999999 counts as 12."""
    return int(round(patches, 7))


def model_geometry(hf_config: Any, image_height: int, image_width: int) -> Geometry:
    """Geometry of an image in a model: tiles where it has `image_grid_pinpoints`
    (LLaVA-NeXT), one partition whatever the size where it has not (LLaVA-1.5).

    Raises:
        ImageSizeError: see `image_geometry`.
    """
    vision = hf_config.vision_config
    pinpoints = getattr(hf_config, "image_grid_pinpoints", None)
    if pinpoints is None:
        return Geometry(vision.image_size // vision.patch_size)
    return image_geometry(
        image_height,
        image_width,
        tuple(map(tuple, pinpoints)),
        vision.image_size,
        vision.patch_size,
    )


def input_geometries(hf_config: Any, inputs: Mapping[str, Any]) -> list[Geometry]:
    """Geometry of each image of HF's processed `inputs`: from `image_sizes`, (height,
    width) a row, on the CPU, where the model has them."""
    side = hf_config.vision_config.image_size
    sizes = inputs.get("image_sizes")
    if sizes is None:
        sizes = [(side, side)] * len(inputs["pixel_values"])
    return [model_geometry(hf_config, int(h), int(w)) for h, w in sizes]


def item_geometry(hf_config: Any, item: Mapping[str, Any]) -> Geometry:
    """Geometry of one image, of whose fields vLLM holds each with its `data`."""
    (geometry,) = input_geometries(
        hf_config, {key: [field.data] for key, field in item.items()}
    )
    return geometry


def largest_image_sizes(hf_config: Any) -> list[tuple[int, int]]:
    """(height, width) of images that fill a canvas each, with all its patches."""
    side = hf_config.vision_config.image_size
    pinpoints = getattr(hf_config, "image_grid_pinpoints", None)
    return [(side, side)] if pinpoints is None else [tuple(p) for p in pinpoints]


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # cached, so it must be of use outside it as well
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
