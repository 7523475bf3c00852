"""VisionZip (arXiv 2412.04467), section 3, in plain loops."""

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
    """`wanted`: the share of dominant tokens."""
    dominant = by_attention(partition, partition.valid)[: share(quota, wanted)]
    others = [cell for cell in partition.valid if cell not in dominant]
    samples = spread(others, quota - len(dominant))
    taken: dict[int, list[int]] = {sample: [] for sample in samples}
    for cell in others:
        if cell not in samples and samples:
            key = partition.keys[cell]
            likeness = [cosine(key, partition.keys[sample]) for sample in samples]
            taken[samples[likeness.index(max(likeness))]].append(cell)

    rows = {cell: partition.features[cell] for cell in dominant}
    for sample, cells in taken.items():
        row = finite(partition.features[sample])
        for cell in cells:
            row = added(row, partition.features[cell], 1 / len(cells))
        rows[sample] = row
    return rows
