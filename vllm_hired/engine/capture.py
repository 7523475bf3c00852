"""Reads chosen layers of vLLM's running vision tower."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.siglip import SiglipVisionModel

from vllm_hired.towers.observation import Quantity
from vllm_hired.towers.reading import Reading


@dataclass(frozen=True)
class LayerAttention:
    """Where query and key of a tower's layer meet.

    Attributes:
        module: its forward gets `query` and `key`, `[B, S, num_heads * d]` or
            `[B, S, num_heads, d]`, after LoRA, dequantisation and any QK norm.
        num_heads: of this tensor-parallel rank.
        scale: of the logits.
        is_sharded: whether other ranks have other heads.
    """

    module: nn.Module
    num_heads: int
    scale: float
    is_sharded: bool


LayerAttentionOf = Callable[[Any, int], LayerAttention]
"""(tower, layer) -> where its query and key meet."""


def clip_attention(
    tower: CLIPVisionModel | SiglipVisionModel, layer: int
) -> LayerAttention:
    self_attn = tower.vision_model.encoder.layers[layer].self_attn
    return LayerAttention(
        module=self_attn.attn,
        num_heads=self_attn.num_heads_per_partition,
        scale=self_attn.scale,
        is_sharded=self_attn.tp_size > 1,
    )


@contextmanager
def capture(
    tower: nn.Module,
    readings: Mapping[Quantity, Reading],
    attention_of: LayerAttentionOf = clip_attention,
    lengths: Sequence[int] | None = None,
) -> Iterator[dict[Quantity, Tensor]]:
    """Measures query and key in one forward of the tower, inside the `with` block.

    Reads them where they enter attention, whatever the attention backend. The hooks
    leave with the block, also when a forward fails, so nothing that was read outlives
    its image.

    Args:
        tower: vLLM's.
        readings: what to measure, by name.
        attention_of: where the tower's layers have it.
        lengths: of images that the tower encodes as one sequence; they sum to `S`.
            Each is measured for itself.

    Yields:
        Name -> what the reading's measure gives, float32, summed over the heads of all
        tensor-parallel ranks; empty until the forward.
    """
    measured: dict[Quantity, Tensor] = {}

    def watch(
        name: Quantity, reading: Reading, attention: LayerAttention
    ) -> RemovableHandle:
        def record(
            module: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]
        ) -> None:
            query, key = (
                (named[name] if name in named else inputs[place]).flatten(2)
                for place, name in enumerate(("query", "key"))
            )
            parts = [(query, key)]
            if lengths is not None:
                parts = [
                    *zip(query.split(lengths, 1), key.split(lengths, 1), strict=True)
                ]
            local = torch.cat(
                [
                    reading.measure(*part, attention.num_heads, attention.scale)
                    for part in parts
                ],
                dim=1,
            )
            if attention.is_sharded:
                # A rank sees its own heads; ranks that disagreed on one index would
                # corrupt the output silently.
                local = tensor_model_parallel_all_reduce(local.contiguous())
            measured[name] = local

        return attention.module.register_forward_pre_hook(record, with_kwargs=True)

    with ExitStack() as hooks:
        for name, reading in readings.items():
            hooks.enter_context(
                watch(name, reading, attention_of(tower, reading.layer))
            )
        yield measured
