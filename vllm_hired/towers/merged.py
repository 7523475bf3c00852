"""Towers whose merger makes a cell of several patches: from patches to cells.

In Qwen-VL the patches of a cell are neighbours in memory, and cells come in row-major
order, in the layers of Qwen2.5-VL window by window. In InternVL all patches of a
partition come in row-major order.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vllm_hired.layouts.base import Layout
from vllm_hired.towers.observation import Observation, Quantity


def merged_observation(
    features: Tensor,
    measured: Mapping[Quantity, Tensor],
    layout: Layout,
    vision_config: Any,
    needs: Collection[Quantity],
) -> Observation:
    """What a method sees of one image.

    Args:
        features: `[N, D]`, of cells in row-major order.
        measured: by name `[1, patches, ...]` float32, in the order of the tower's
            layers, summed over all heads.
        layout: of the image.
        vision_config: HF's, of the tower.
        needs: of the method.
    """
    window = window_side(vision_config)
    seen: dict[Quantity, Tensor] = {
        name: cell_sums(values, layout.rows, layout.cols, window)
        for name, values in measured.items()
    }
    if "keys" in seen:
        unit = vision_config.spatial_merge_size**2
        seen["keys"] = seen["keys"] / (vision_config.num_heads * unit)
    if "features" in needs:
        seen["features"] = features[None]
    return Observation(features.device, seen)


def window_side(vision_config: Any) -> int | None:
    """Cells along a side of the windows in whose order the tower's layers run."""
    size = getattr(vision_config, "window_size", None)
    side = vision_config.patch_size * vision_config.spatial_merge_size
    return None if size is None else size // side


def cell_sums(
    patches: Tensor, rows: int, cols: int, window: int | None = None
) -> Tensor:
    """Sums over the patches of each cell, cells in row-major order.

    Args:
        patches: `[1, rows * cols * u, ...]`, `u` patches a cell.
        rows: of the grid of cells.
        cols: likewise.
        window: side in cells of the windows in whose order cells come; None where they
            are in row-major order.

    Returns:
        `[1, rows * cols, ...]`.
    """
    cells = patches.unflatten(1, (rows * cols, -1)).sum(dim=2)
    if window is None:
        return cells
    order = window_order(rows, cols, window, patches.device)
    return torch.empty_like(cells).index_copy_(1, order, cells)


def measured_cells(
    measured: Mapping[Quantity, Tensor], rows: int, cols: int, side: int
) -> dict[Quantity, Tensor]:
    """What is measured of patches, by cell: attention is summed, keys are averaged.

    Args:
        measured: by name `[B, patches or 1 + patches, ...]` float32, patches in
            row-major order.
        rows: of cells in a partition.
        cols: likewise.
        side: of a cell in patches.

    Returns:
        By name `[B, rows * cols, ...]`.
    """
    patches = rows * cols * side**2
    # A [CLS] token, where one is left, comes before the patches.
    cells: dict[Quantity, Tensor] = {
        name: block_sums(values[:, -patches:], rows, cols, side)
        for name, values in measured.items()
    }
    if "keys" in cells:
        cells["keys"] = cells["keys"] / side**2
    return cells


def block_sums(patches: Tensor, rows: int, cols: int, side: int) -> Tensor:
    """Sums over the patches of each cell, both in row-major order.

    Args:
        patches: `[B, rows * side * cols * side, ...]`.
        rows: of cells in a partition.
        cols: likewise.
        side: of a cell in patches.

    Returns:
        `[B, rows * cols, ...]`.
    """
    blocks = patches.unflatten(1, (rows, side, cols, side))
    return blocks.sum(dim=(2, 4)).flatten(1, 2)


def block_rows(patches: Tensor, rows: int, cols: int, side: int) -> Tensor:
    """The patches of each cell side by side, all in row-major order.

    Args:
        patches: `[B, rows * side * cols * side, D]`.
        rows: of cells in a partition.
        cols: likewise.
        side: of a cell in patches.

    Returns:
        `[B, rows * cols, side * side * D]`.
    """
    blocks = patches.unflatten(1, (rows, side, cols, side))
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


@lru_cache(maxsize=512)
@torch.inference_mode(False)  # cached, so it must be of use outside it as well
def window_order(rows: int, cols: int, window: int, device: torch.device) -> Tensor:
    """`[rows * cols]` int64: cells window by window, windows and the cells of each in
    row-major order."""
    row = torch.arange(rows, device="cpu")[:, None]
    col = torch.arange(cols, device="cpu")[None, :]
    per_row = -(-cols // window)
    number = row // window * per_row + col // window
    return torch.argsort(number.flatten(), stable=True).to(device)
