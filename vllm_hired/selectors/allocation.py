"""The split of tokens among tiles, on the device.

In exact integers, so that every device and every tensor-parallel rank arrives at the
same split.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vllm_hired.layouts.base import Layout


def weight_bits(layout: Layout) -> int:
    """Bits to which scores are read before they become integer tile weights.

    24, the precision of float32, unless the canvas is so large that the product of
    a weight and a count would leave 63 bits.
    """
    overlaps = layout.cells_per_partition * layout.num_valid_tile_cells
    return min(24, 62 - (overlaps * layout.num_cells).bit_length())


def integer_weights(scores: Tensor, bits: int) -> Tensor:
    """Scores as integers of which the largest has `bits` bits.

    Scaled by a power of two, so that only what lies below the last bit is rounded.

    Args:
        scores: any shape, floating point, not negative; NaN counts as 0.

    Returns:
        Same shape, float64, integers up to `2 ** bits`.
    """
    scores = scores.double().nan_to_num(nan=0.0).clamp(min=0.0)
    exponent = torch.frexp(scores.amax()).exponent
    # In float64, because a power of two of tiny scores is beyond float32.
    return torch.ldexp(scores, (bits - exponent).double()).round()


def most_full(capacities: Sequence[int], total: int) -> int:
    """How many tiles `total` tokens can fill at most: the smallest ones first."""
    return sum(filled <= total for filled in accumulate(sorted(capacities)))


def allocate(weights: Tensor, capacity: Tensor, total: int, rounds: int) -> Tensor:
    """Splits `total` in proportion to `weights`, none above its capacity.

    While a tile's share of what is left reaches its capacity, every such tile is
    filled and the rest shared among the others; then largest remainder, ties to the
    lower index. Where all open weights are zero, capacities stand in for them.

    Args:
        weights: `[T]` int64, not negative, so small that `weights.sum() *
            max(total, capacity.max())` stays below `2 ** 63`.
        capacity: `[T]` int64.
        total: at most `capacity.sum()`.
        rounds: at least how many tiles can be filled; see `most_full`. On a GPU the
            operators of needless rounds cost more than their arithmetic.

    Returns:
        `[T]` int64 that sums to `total` exactly. Nothing is read back to the host.
    """
    split = torch.zeros_like(capacity)
    is_open = torch.ones_like(capacity, dtype=torch.bool)

    def open_weights() -> Tensor:
        own = weights * is_open
        return torch.where(own.sum() > 0, own, capacity * is_open)

    # Each round fills a tile or changes nothing.
    for _ in range(rounds):
        shares = open_weights()
        full = is_open & ((total - split.sum()) * shares >= capacity * shares.sum())
        split = torch.where(full, capacity, split)
        is_open = is_open & ~full

    shares = open_weights()
    left = total - split.sum()
    divisor = shares.sum().clamp(min=1)
    floors = left * shares // divisor
    remainders = left * shares % divisor
    order = torch.argsort(remainders, descending=True, stable=True)
    return split + floors + (ranks(order) < left - floors.sum())


def ranks(order: Tensor) -> Tensor:
    """Inverse of the permutations in the last dimension of `order` (int64)."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
