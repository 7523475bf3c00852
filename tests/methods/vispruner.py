"""VisPruner (arXiv 2412.01818), section 4, in plain loops."""

from tests.methods.plain import Kept, Partition, by_attention, cosine, share


def keep(partition: Partition, quota: int, wanted: float) -> Kept:
    """`wanted`: the share of important tokens."""
    important = share(quota, wanted)
    diverse = quota - important
    order = by_attention(partition, partition.valid)
    kept, rest = order[:important], order[important:]
    while diverse and len(rest) > diverse:
        first, second = rest[0::2], rest[1::2]
        drop = min(8, len(rest) - diverse, len(first))
        closest = {
            cell: max(
                cosine(partition.features[cell], partition.features[other])
                for other in second
            )
            for cell in first
        }
        # Sorting is stable: ties keep the order of the list.
        first.sort(key=lambda cell: -closest[cell])
        rest = first[drop:] + second
    kept += rest[:diverse]
    return {cell: partition.features[cell] for cell in kept}
