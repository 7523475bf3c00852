"""Cosine similarity of cells."""

from torch import Tensor
from torch.nn.functional import normalize


def directions(vectors: Tensor) -> Tensor:
    """Vectors at length 1, `[..., D]` float32: their products are cosines.

    A vector with an entry that is not finite counts as zero, and so does one whose
    length is beyond float32. A zero vector stays zero: its similarity to all is 0.
    """
    vectors = vectors.float()
    vectors = vectors.masked_fill(~is_finite(vectors)[..., None], 0)
    return normalize(vectors, dim=-1)


def is_finite(vectors: Tensor) -> Tensor:
    """`[..., D]` -> `[...]` bool: whether all entries of a vector are finite."""
    # NaN and infinities all show in the extremes, which one pass finds.
    low, high = vectors.aminmax(dim=-1)
    return low.isfinite() & high.isfinite()
