"""Tile features and kept indices -> one row per kept token, in sequence order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_hired.geometry import Geometry


def gather_kept(
    features: Tensor, kept: Sequence[Tensor], geometries: Sequence[Geometry]
) -> Tensor:
    """The kept patches' features of a batch of images.

    Args:
        features: `[sum of P, N, D]`, the partitions of all images, one after another.
        kept: per image `[K]` int64, flat patch indices in sequence order.
        geometries: per image.

    Returns:
        `[sum of K, D]`, image by image.
    """
    offset = 0
    rows = []
    for indices, geometry in zip(kept, geometries, strict=True):
        rows.append(indices + offset)
        offset += geometry.num_partitions * geometry.patches_per_partition
    return features.flatten(0, 1)[torch.cat(rows)]
