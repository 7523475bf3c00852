"""What methods share that rank, choose and combine within each partition."""

import torch
from torch import Tensor

from vllm_hired.selectors.allocation import ranks


def score_order(scores: Tensor, among: Tensor) -> Tensor:
    """`[P, N]` int64: cells of each partition, those of the highest score first.

    NaN ranks with minus infinity, below all numbers. Ties go to the lower index. Cells
    that are not in `among` come after all others.

    Args:
        scores: `[P, N]` floating point.
        among: `[P, N]` bool.
    """
    scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).min)
    scores = scores.masked_fill(~among, -torch.inf)
    return torch.argsort(scores, dim=-1, descending=True, stable=True)


def highest(scores: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """`[P, N]` bool: the `counts` cells of highest score in each partition.

    Args:
        scores: `[P, N]` floating point; see `score_order`.
        among: `[P, N]` bool, the cells to choose from.
        counts: `[P]` int64, none above the number of cells in `among`.
    """
    return ranks(score_order(scores, among)) < counts[:, None]


def first_of(listed: Tensor, counts: Tensor, num_cells: int) -> Tensor:
    """`[P, N]` bool: the cells among the first `counts` of each partition's list.

    Args:
        listed: `[P, L]` int64, cells, none twice.
        counts: `[P]` int64, at most `L`.
        num_cells: `N`.
    """
    places = torch.arange(listed.shape[1], device=listed.device)
    # The rest goes to one more column, which is cut off.
    cells = listed.where(places < counts[:, None], num_cells)
    found = cells.new_zeros((len(cells), num_cells + 1), dtype=torch.bool)
    return found.scatter(1, cells, True)[:, :num_cells]


def evenly_spaced(among: Tensor, sizes: Tensor, counts: Tensor) -> Tensor:
    """`[P, N]` bool: cells at even steps among others, in row-major order.

    Of `M` cells those at the places `floor(i * M / c)` for `i` below `c`.

    Args:
        among: `[P, N]` bool, the cells to choose from.
        sizes: `[P]` int64, `M`, how many these are.
        counts: `[P]` int64, `c`, at most `M`.
    """
    places = among.cumsum(dim=-1) - 1
    sizes, counts = sizes.clamp(min=1)[:, None], counts[:, None]
    # Place p is floor(i * M / c) for some i exactly where a multiple of M lies in
    # [p * c, (p + 1) * c).
    return among & ((-places * counts) % sizes < counts)


def chosen_cells(is_chosen: Tensor, count: int) -> Tensor:
    """`[P, count]` int64: the chosen cells of each partition, then some others.

    Args:
        is_chosen: `[P, N]` bool.
        count: of the partition with most.
    """
    return torch.argsort(~is_chosen, dim=-1, stable=True)[:, :count]


def take(values: Tensor, cells: Tensor) -> Tensor:
    """`[P, Q, D]`: of `values`, `[P, N, D]`, those of `cells`, `[P, Q]`."""
    return values.gather(1, cells.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def rows_at(rows: Tensor, is_chosen: Tensor, cells: Tensor) -> Tensor:
    """`[K, D]`: the rows of `cells`; of those that were not chosen, any row.

    Args:
        rows: `[P, Q, D]`, in the order of `chosen_cells`.
        is_chosen: `[P, N]` bool.
        cells: `[K]` int64 flat cell indices.
    """
    partitions, most, _ = rows.shape
    first = most * torch.arange(partitions, device=rows.device)[:, None]
    places = (first + is_chosen.cumsum(dim=-1) - 1).clamp(min=0)
    return rows.flatten(0, 1)[places.flatten()[cells]]


def finite(values: Tensor) -> Tensor:
    """`values` in float32; what is not finite counts as zero."""
    return values.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def saturated(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`rows` in `dtype`, and as large as it allows where they are larger."""
    limits = torch.finfo(dtype)
    return rows.clamp(limits.min, limits.max).to(dtype)
