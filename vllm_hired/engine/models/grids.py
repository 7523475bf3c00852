"""Towers that encode an image of any shape in one piece and merge its patches into
cells: Qwen-VL's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem

from vllm_hired.engine.capture import LayerAttention, capture
from vllm_hired.engine.inputs import item_layout
from vllm_hired.engine.mrope import HiredMRoPEMixin, with_offsets
from vllm_hired.layouts import Layout
from vllm_hired.towers.merged import merged_observation
from vllm_hired.towers.observation import Observation

_ATTENTION = (
    *("attn", "num_attention_heads_per_partition"),
    *("hidden_size_per_attention_head", "tp_size"),
)


class HiredGridModelMixin(HiredMRoPEMixin):
    """Chooses cells after the merger, by attention before it.

    A cell's attention is the sum over its patches; its keys, rotary positions included,
    are their mean. Features are the rows that the LLM would get, those of Qwen3-VL with
    what it adds to deeper layers (deepstack). Cells are dropped of whole rows.

    Attributes:
        relies_on: see `contract.attribute_problems`.
    """

    relies_on: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "qwen2_vl:Qwen2VLForConditionalGeneration.__init__": ("visual",),
        "qwen2_vl:Qwen2VisionTransformer.__init__": ("blocks", "out_hidden_size"),
        "qwen2_vl:Qwen2VisionBlock.forward": ("attn",),
        "qwen2_vl:Qwen2VisionAttention.__init__": _ATTENTION,
        "qwen2_vl:Qwen2VisionAttention.forward": ("attn",),
        "qwen2_5_vl:Qwen2_5_VLForConditionalGeneration.__init__": ("visual",),
        "qwen2_5_vl:Qwen2_5_VisionTransformer.__init__": (
            *("blocks", "out_hidden_size", "window_size"),
        ),
        "qwen2_5_vl:Qwen2_5_VisionTransformer.get_window_index_thw": (),
        "qwen2_5_vl:Qwen2_5_VisionBlock.forward": ("attn",),
        "qwen2_5_vl:Qwen2_5_VisionAttention.__init__": _ATTENTION,
        "qwen2_5_vl:Qwen2_5_VisionAttention.forward": ("attn",),
        "qwen3_vl:Qwen3VLForConditionalGeneration.__init__": ("visual",),
        "qwen3_vl:Qwen3_VisionTransformer.__init__": ("blocks", "out_hidden_size"),
        "qwen3_vl:Qwen3_VisionBlock.forward": ("attn",),
    }

    def _pick(self, inputs: Mapping[str, Any], images: Sequence[int]) -> dict[str, Any]:
        """Patches of all images are one tensor."""
        grids = inputs["image_grid_thw"]
        if len(images) == len(grids):
            return {**inputs}
        patches = inputs["pixel_values"].split(grids.prod(dim=-1).tolist())
        return {
            "pixel_values": torch.cat([patches[image] for image in images]),
            "image_grid_thw": grids[[*images]],
        }

    def _embed_kept(
        self, inputs: dict[str, Any], layouts: list[Layout], counts: list[int]
    ) -> Sequence[Tensor]:
        """One tower forward after another, so that the features of one at a time are
        held."""
        kept = []
        for part in self._forwards(layouts):
            images = range(len(layouts))[part]
            features, selections = self.select(
                self._pick(inputs, images), layouts[part], counts[part]
            )
            for own, selection, layout in zip(
                features, selections, layouts[part], strict=True
            ):
                rows = selection.rows_of(own)
                kept.append(with_offsets(rows, selection.cells, layout.cols))
        return kept

    def observe(
        self, images: dict[str, Any], layouts: list[Layout]
    ) -> tuple[list[Tensor], list[Observation]]:
        """Encodes images in one tower forward.

        Args:
            images: processed, as upstream's `embed_multimodal` takes them.
            layouts: per image.

        Returns:
            features `[N, D]` of each image, and what the selector needs to see of it.
        """
        needs, readings = self._wanted()
        vision = self.config.vision_config
        unit = vision.spatial_merge_size**2
        patches = [layout.num_cells * unit for layout in layouts]
        with capture(self.visual, readings, qwen_attention, patches) as measured:
            features = list(super().embed_multimodal(**images))
        split = {name: values.split(patches, 1) for name, values in measured.items()}
        return features, [
            merged_observation(
                own,
                {name: parts[image] for name, parts in split.items()},
                layout,
                vision,
                needs,
            )
            for image, (own, layout) in enumerate(zip(features, layouts, strict=True))
        ]

    @override
    def get_mm_lora_token_counts(
        self,
        *,
        modality: str,
        mm_kwargs: MultiModalKwargsItem | None,
        num_mm_embeds: int,
    ) -> tuple[int, int | None]:
        """Counts all cells of a pruned image.

        With no image given, bounds them: an image of `K` tokens has at most `K` times
        its shorter side in cells.
        """
        if self.hired.unsupported is None:
            cells = num_mm_embeds
            if mm_kwargs is None:
                info = MULTIMODAL_REGISTRY.get_processing_info(self.model_config)
                most = info.most_cells
                cells = min(
                    max(num_mm_embeds, self.max_images_per_batch * most),
                    num_mm_embeds * (math.isqrt(most) + 1),
                )
            elif "num_kept" in mm_kwargs:
                cells = item_layout(self.config, mm_kwargs).num_cells
            num_mm_embeds = cells
        return super().get_mm_lora_token_counts(
            modality=modality, mm_kwargs=mm_kwargs, num_mm_embeds=num_mm_embeds
        )


def qwen_attention(tower: Any, layer: int) -> LayerAttention:
    attention = tower.blocks[layer].attn
    return LayerAttention(
        module=attention.attn,
        num_heads=attention.num_attention_heads_per_partition,
        scale=attention.hidden_size_per_attention_head**-0.5,
        is_sharded=attention.tp_size > 1,
    )
