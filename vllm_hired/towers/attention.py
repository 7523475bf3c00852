"""What query and key of a vision transformer's layer say of its patches.

Each function sums over heads, so that what tensor-parallel ranks find of their own
heads adds up. Queries and keys are `[B, S, num_heads * d]`, any floating dtype, as they
enter attention; where the tower has a [CLS] token, it comes first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor, int, float], Tensor]
"""(query, key, number of heads in both, scale) -> `[B, N]` or `[B, N, d]` float32."""

CHUNK_BYTES = 2**25
"""Of the attention that `received_attention` holds at once."""


def cls_attention(query: Tensor, key: Tensor, num_heads: int, scale: float) -> Tensor:
    """Attention that [CLS] pays to each patch, summed over heads.

    `sum over heads of softmax(q_cls . K / sqrt(d))[1:]`, HiRED's section 4.1. Only the
    [CLS] row is computed: `O(N * d)` a head, never `N x N`.

    Args:
        query: `[B, 1 + N, num_heads * d]`, [CLS] first.
        key: likewise.
        num_heads: heads in `query` and `key`.
        scale: `1 / sqrt(d)`.

    Returns:
        `[B, N]` float32.
    """

    def score(query_cls: Tensor, key: Tensor) -> Tensor:
        queries = query_cls.unflatten(-1, (num_heads, -1)).float()
        keys = key.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        # One copy of the keys, not two: to float32 and to the order of the product.
        keys = keys.to(torch.float32, memory_format=torch.contiguous_format)
        logits = (keys @ queries.unsqueeze(-1)).squeeze(-1) * scale
        return logits.softmax(dim=-1).sum(dim=1)[:, 1:]

    # A few partitions at a time: float32 keys of many would leave the CPU's caches,
    # and cost memory.
    parts = zip(query[:, 0].split(4), key.split(4), strict=True)
    return torch.cat([score(*part) for part in parts])


def received_attention(
    query: Tensor, key: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Attention that each token receives from all tokens, summed over heads.

    `sum over heads and queries of softmax(q K / sqrt(d))`. Queries come in chunks
    against all keys, so that each softmax is complete and memory stays at
    `CHUNK_BYTES`; a tower without [CLS] has no shorter way.

    Args:
        query: `[B, N, num_heads * d]`.
        key: likewise.
        num_heads: heads in `query` and `key`.
        scale: `1 / sqrt(d)`.

    Returns:
        `[B, N]` float32.
    """
    tokens = query.shape[1]
    chunk = max(1, CHUNK_BYTES // (4 * num_heads * tokens))
    received = torch.zeros(query.shape[:2], dtype=torch.float32, device=query.device)
    for image, (queries, keys) in enumerate(zip(query, key, strict=True)):
        by_head = keys.unflatten(-1, (num_heads, -1)).permute(1, 2, 0).float()
        for part in queries.split(chunk):
            logits = part.unflatten(-1, (num_heads, -1)).transpose(0, 1).float()
            attention = ((logits @ by_head) * scale).softmax(dim=-1)
            received[image] += attention.sum(dim=(0, 1))
    return received


def summed_keys(query: Tensor, key: Tensor, num_heads: int, scale: float) -> Tensor:
    """Keys summed over heads, [CLS]'s too where there is one: `[B, S, d]` float32."""
    return key.unflatten(-1, (num_heads, -1)).float().sum(dim=2)
