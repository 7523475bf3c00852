"""Cosine similarity of cells."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def unit_features(features: Tensor) -> Tensor:
    """Features of length 1, `[..., D]` float32.

    A vector with an entry that is not finite counts as zero, and so does one whose
    length is beyond float32. A zero vector stays zero: its similarity to all is 0.
    """
    features = features.float()
    features = features.masked_fill(~is_finite(features)[..., None], 0)
    return normalize(features, dim=-1)


def is_finite(features: Tensor) -> Tensor:
    """`[..., D]` -> `[...]` bool: whether all entries of a vector are finite."""
    return torch.isfinite(features).all(dim=-1)
