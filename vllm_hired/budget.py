"""How many tokens to keep: of an image, and of its thumbnail. Integers alone.

They are known before any pixel is encoded. Only the split among tiles depends on
content; `vllm_hired.selectors.allocation` has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vllm_hired.layouts.base import Layout


@dataclass(frozen=True)
class KeptCount:
    """What an image hands to the LLM.

    Attributes:
        tokens: `K`, an exact number of embeddings.
        is_undropped: whether these are stock vLLM's, separators included.
    """

    tokens: int
    is_undropped: bool


def kept_count(layout: Layout, budget: Fraction, token_cap: int | None) -> KeptCount:
    """`K` of an image.

    `floor(rho * P * N)`, at most `token_cap`, then between `least_kept` and
    `N + V_sub`. At `rho = 1` the image stays as it is in stock vLLM, unless the cap is
    lower.
    """
    cap = layout.num_stock_tokens if token_cap is None else token_cap
    if budget == 1 and layout.num_stock_tokens <= cap:
        return KeptCount(layout.num_stock_tokens, is_undropped=True)
    wanted = budget.numerator * layout.num_cells // budget.denominator
    kept = min(max(min(wanted, cap), layout.least_kept), layout.num_selectable)
    return KeptCount(kept, is_undropped=False)


def split_thumbnail(layout: Layout, kept: int, alpha: Fraction) -> tuple[int, int]:
    """`(K_thumb, K_sub)`: tokens of the thumbnail and of all tiles together.

    What the tiles cannot hold goes back to the thumbnail.
    """
    thumbnail = min(
        alpha.numerator * kept // alpha.denominator, layout.num_thumbnail_cells
    )
    tiles = min(kept - thumbnail, layout.num_valid_tile_cells)
    return kept - tiles, tiles


def proportional_quotas(capacities: Sequence[int], total: int) -> tuple[int, ...]:
    """Splits `total` in proportion to `capacities`, none above its capacity.

    Largest remainder, ties to the lower index.

    Args:
        capacities: valid cells of each partition, say.
        total: at most the sum of `capacities`.

    Returns:
        As many integers as `capacities`, which sum to `total`.
    """
    whole = max(1, sum(capacities))
    quotas = [total * capacity // whole for capacity in capacities]
    remainders = [total * capacity % whole for capacity in capacities]
    order = sorted(range(len(quotas)), key=lambda i: -remainders[i])
    for i in order[: total - sum(quotas)]:
        quotas[i] += 1
    return tuple(quotas)


def split_quotas(
    capacities: Sequence[int], total: int, share: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Proportional quotas, each in two parts: `share` of it, rounded up, and the rest.

    For methods that choose some cells of a partition in one way and some in another.

    Args:
        capacities: see `proportional_quotas`.
        total: likewise.
        share: in [0, 1].
    """
    quotas = proportional_quotas(capacities, total)
    first = tuple(share_of(quota, share) for quota in quotas)
    return first, tuple(q - f for q, f in zip(quotas, first, strict=True))


def share_of(count: int, share: float) -> int:
    """`share` of `count`, rounded up. The share is the decimal that the user wrote."""
    exact = Fraction(str(share))
    return -(-exact.numerator * count // exact.denominator)
