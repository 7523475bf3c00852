"""PruMerge+ (arXiv 2403.15388), algorithm 1, in plain loops, at a fixed count."""

import math

from tests.methods.plain import (
    Kept,
    Partition,
    added,
    by_attention,
    cosine,
    finite,
    share,
    spread,
)


def keep(partition: Partition, quota: int, wanted: float) -> Kept:
    """`wanted`: the share of outliers."""
    outliers = share(quota, wanted)
    kept = spread(partition.valid, quota - outliers)
    others = [cell for cell in partition.valid if cell not in kept]
    kept += by_attention(partition, others)[:outliers]

    attention = [max(a, 0.0) if math.isfinite(a) else 0.0 for a in partition.attention]
    total = sum(attention) or 1.0
    rows = {}
    for center in kept:
        key = partition.keys[center]
        near = [cell for cell in partition.valid if cell != center]
        near.sort(key=lambda cell: (-cosine(key, partition.keys[cell]), cell))
        row = finite(partition.features[center])
        for cell in near[:32]:
            row = added(row, partition.features[cell], attention[cell] / total)
        rows[center] = row
    return rows
