"""[CLS] attention of chosen layers of a running CLIP tower.

Only the [CLS] row of the attention is computed: `O(N * d)` a head, never `N x N`.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPAttention, CLIPVisionModel


def cls_attention(query: Tensor, key: Tensor, num_heads: int, scale: float) -> Tensor:
    """Attention that [CLS] pays to each patch, summed over heads.

    `sum over heads of softmax(q_cls . K / sqrt(d))[1:]`, paper section 4.1.

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


@contextmanager
def capture_cls_attention(
    tower: CLIPVisionModel, layers: Collection[int]
) -> Iterator[dict[int, Tensor]]:
    """Scores of one forward of the tower, inside the `with` block.

    Reads query and key where they enter `self_attn.attn`, after LoRA, dequantisation
    and any QK norm, whatever the attention backend. The hooks leave with the block,
    also when a forward fails, so no score outlives its image.

    Args:
        tower: vLLM's CLIP tower.
        layers: indices of the layers to read.

    Yields:
        Layer -> `[B, N]` float32, summed over the heads of all tensor-parallel ranks;
        empty until the forward.
    """
    scores: dict[int, Tensor] = {}

    def watch(layer: int, self_attn: CLIPAttention) -> RemovableHandle:
        def record(attn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            query, key, *_ = inputs
            local = cls_attention(
                query, key, self_attn.num_heads_per_partition, self_attn.scale
            )
            if self_attn.tp_size > 1:
                # A rank sees its own heads; ranks that disagreed on one index would
                # corrupt the output silently.
                local = tensor_model_parallel_all_reduce(local.contiguous())
            scores[layer] = local

        return self_attn.attn.register_forward_pre_hook(record)

    with ExitStack() as hooks:
        for layer in layers:
            self_attn = tower.vision_model.encoder.layers[layer].self_attn
            hooks.enter_context(watch(layer, self_attn))
        yield scores
