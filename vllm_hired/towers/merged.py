"""Towers whose merger makes a cell of several patches: from patches to cells.

In Qwen-VL the patches of a cell are neighbours in memory, and cells come in row-major
order, in the layers of Qwen2.5-VL window by window. In InternVL all patches of a
partition come in row-major order.
"""

from functools import lru_cache

import torch
from torch import Tensor


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
