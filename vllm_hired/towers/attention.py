"""[CLS] attention of a vision transformer's layers."""

import torch
from torch import Tensor


def cls_attention(query: Tensor, key: Tensor, num_heads: int, scale: float) -> Tensor:
    """Attention that [CLS] pays to each patch, summed over heads.

    `sum over heads of softmax(q_cls . K / sqrt(d))[1:]`, paper section 4.1. Only the
    [CLS] row is computed: `O(N * d)` a head, never `N x N`.

    Args:
        query: `[B, 1 + N, num_heads * d]`, any floating dtype; [CLS] comes first.
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
