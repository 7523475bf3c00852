"""A layout's lookup tables on a device."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vllm_hired.layouts.base import Layout


@dataclass(frozen=True)
class IndexTables:
    """Tables of one layout on one device.

    Attributes:
        sequence: `[N + V_sub]` int64, flat cell indices in the order in which the LLM
            gets them.
        valid: `[P, N]` bool, cells that may be kept.
        tile_capacity: `[R * C]` int64, valid cells of each tile.
        row_overlap: `[rows, R]` float64; see `Layout.row_overlap`.
        col_overlap: `[cols, C]` float64; see `Layout.col_overlap`.
    """

    sequence: Tensor
    valid: Tensor
    tile_capacity: Tensor
    row_overlap: Tensor
    col_overlap: Tensor


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # cached, so it must be of use outside it as well
def index_tables(layout: Layout, device: torch.device) -> IndexTables:
    """The tables of `layout` on `device`, copied there when first asked for."""
    with torch.device("cpu"):
        sequence = _sequence(layout)
        valid = torch.zeros(layout.num_cells, dtype=torch.bool)
        valid[sequence] = True
        capacity = torch.tensor(layout.tile_capacities, dtype=torch.int64)
    return IndexTables(
        sequence=sequence.to(device),
        valid=valid.view(-1, layout.cells_per_partition).to(device),
        tile_capacity=capacity.to(device),
        row_overlap=_table(layout.row_overlap, device),
        col_overlap=_table(layout.col_overlap, device),
    )


@lru_cache(maxsize=512)
@torch.inference_mode(False)
def integer_table(values: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """`values` as int64 on `device`, copied there when first asked for.

    A copy waits for the device, so what follows from sizes alone is not copied twice.
    """
    return torch.tensor(values, dtype=torch.int64, device=device)


def _sequence(layout: Layout) -> Tensor:
    n = layout.cells_per_partition
    rows = torch.arange(layout.top, layout.top + layout.height)[:, None]
    cols = torch.arange(layout.left, layout.left + layout.width)[None, :]
    tiles = rows // layout.rows * layout.tile_cols + cols // layout.cols
    in_tile = rows % layout.rows * layout.cols + cols % layout.cols
    canvas = ((tiles + layout.first_tile) * n + in_tile).flatten()
    if layout.tile_by_tile:
        canvas = canvas.sort().values
    if layout.thumbnail_partition is None:
        return canvas
    thumbnail = torch.arange(n) + layout.thumbnail_partition * n
    parts = (thumbnail, canvas) if layout.thumbnail == "first" else (canvas, thumbnail)
    return torch.cat(parts)


def _table(values: list[list[int]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
