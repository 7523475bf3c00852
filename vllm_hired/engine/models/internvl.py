"""InternVL in both formats: tiles one after another, and a thumbnail behind them.

`InternVLChatModel` is the one with remote code, `InternVLForConditionalGeneration` that
of HF transformers, which vLLM serves by its classes for Intern-S1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_hired.engine.capture import LayerAttention, LayerAttentionOf, capture
from vllm_hired.engine.models.partitions import HiredPartitionsModelMixin
from vllm_hired.engine.tiles import HiredTilesInfoMixin, HiredTilesProcessorMixin
from vllm_hired.layouts.base import merge_side, patches_per_side
from vllm_hired.layouts.internvl import TileLimits
from vllm_hired.towers.merged import measured_cells
from vllm_hired.towers.observation import Quantity
from vllm_hired.towers.reading import Reading


class HiredInternVLMixin(HiredPartitionsModelMixin):
    """Chooses cells between the pixel shuffle and the projector.

    A cell's attention is the sum over its patches, its keys are their mean, and its
    features are its patches' side by side.

    Attributes:
        attention_of: where the tower's layers have query and key.
        tower_name: attribute of the tower.
        projector_name: likewise.
    """

    attention_of: ClassVar[LayerAttentionOf]
    tower_name: ClassVar[str]
    projector_name: ClassVar[str]

    def _pick(self, inputs: Mapping[str, Any], images: Sequence[int]) -> dict[str, Any]:
        """Pixels of all images are one tensor."""
        pixels = self._images(inputs)
        return {
            **inputs,
            self.pixels_key: torch.cat([pixels[image] for image in images]),
            "image_num_patches": inputs["image_num_patches"][[*images]],
        }

    def _images(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        return [*inputs[self.pixels_key].split(inputs["image_num_patches"].tolist())]

    def encode(
        self, pixels: Tensor, readings: Mapping[Quantity, Reading]
    ) -> tuple[Tensor, dict[Quantity, Tensor]]:
        tower: nn.Module = getattr(self, self.tower_name)
        with capture(tower, readings, type(self).attention_of) as measured:
            encoded = tower(pixel_values=pixels)
        patches, merge = patches_per_side(self.config), merge_side(self.config)
        grid = encoded[:, 1:].unflatten(1, (patches, patches))
        features = self.pixel_shuffle(grid, scale_factor=self.downsample_ratio)
        side = patches // merge
        return features.flatten(1, 2), measured_cells(measured, side, side, merge)

    def project(self, rows: Tensor) -> Tensor:
        projected: Tensor = getattr(self, self.projector_name)(rows)
        return projected

    def _encoded(self, partitions: int) -> int:
        return partitions * (patches_per_side(self.config) ** 2 + 1)


class HiredInternVLProcessingInfo(HiredTilesInfoMixin, InternVLProcessingInfo):
    def get_tile_limits(self, kwargs: Mapping[str, object]) -> TileLimits:
        processor = self.get_image_processor(**kwargs)
        # The thumbnail comes on top.
        least, most = processor.resolve_min_max_num(use_thumbnail=False)
        return TileLimits(least, most, processor.use_thumbnail, is_chat=True)

    def get_image_token_ids(self) -> tuple[int, int, int]:
        processor = self.get_hf_processor()
        return (
            processor.start_image_token_id,
            processor.ctx_image_token_id,
            processor.end_image_token_id,
        )


class HiredInternVLMultiModalProcessor(
    HiredTilesProcessorMixin, InternVLMultiModalProcessor
):
    pixels_key = "pixel_values_flat"


def intern_vit_attention(tower: Any, layer: int) -> LayerAttention:
    attention = tower.encoder.layers[layer].attn
    return LayerAttention(
        module=attention.attn,
        num_heads=attention.num_heads_per_partition,
        scale=attention.scale,
        # Where heads do not divide among the ranks, each rank has all.
        is_sharded=attention.tp_size > 1,
    )


@MULTIMODAL_REGISTRY.register_processor(
    HiredInternVLMultiModalProcessor,
    info=HiredInternVLProcessingInfo,
    dummy_inputs=InternVLDummyInputsBuilder,
)
class HiredInternVLChatModel(HiredInternVLMixin, InternVLChatModel):
    # vLLM caches what it learns of a class by this file's hash, not its base's.
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
    supports_tower_connector_lora = True
    supports_encoder_tp_data = True

    pixels_key = "pixel_values_flat"
    attention_of = intern_vit_attention
    tower_name, projector_name = "vision_model", "mlp1"
    relies_on: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "internvl:InternVLChatModel.__init__": (
            *("vision_model", "mlp1", "downsample_ratio"),
        ),
        "internvl:InternVLChatModel.extract_feature": ("pixel_shuffle",),
        "intern_vit:InternVisionModel.__init__": ("encoder",),
        "intern_vit:InternVisionEncoder.__init__": ("layers",),
        "intern_vit:InternVisionEncoderLayer.forward": ("attn",),
        "intern_vit:InternParallelAttention.__init__": (
            *("attn", "num_heads_per_partition", "scale", "tp_size"),
        ),
        "intern_vit:InternParallelAttention.forward": ("attn",),
    }


class HiredInternS1ProcessingInfo(HiredTilesInfoMixin, InternS1ProcessingInfo):
    def get_tile_limits(self, kwargs: Mapping[str, object]) -> TileLimits:
        processor = self.get_hf_processor().image_processor
        merged = self.ctx.get_merged_mm_kwargs(kwargs)
        given = {**merged, **(merged.get("images_kwargs") or {})}
        # HF's processor cuts unless told otherwise, whatever the file says.
        if not given.get("crop_to_patches", True):
            return TileLimits(1, 1)
        return TileLimits(
            given.get("min_patches", processor.min_patches),
            given.get("max_patches", processor.max_patches),
        )

    def get_image_token_ids(self) -> tuple[int, int, int]:
        processor = self.get_hf_processor()
        return (
            processor.start_image_token_id,
            processor.image_token_id,
            processor.end_image_token_id,
        )


class HiredInternS1MultiModalProcessor(
    HiredTilesProcessorMixin, InternS1MultiModalProcessor
):
    pass


def interns1_attention(tower: Any, layer: int) -> LayerAttention:
    attention = tower.encoder.layer[layer].attention
    return LayerAttention(
        module=attention.attn,
        num_heads=attention.num_heads,
        scale=attention.scale,
        # Every rank has all heads.
        is_sharded=False,
    )


@MULTIMODAL_REGISTRY.register_processor(
    HiredInternS1MultiModalProcessor,
    info=HiredInternS1ProcessingInfo,
    dummy_inputs=InternS1DummyInputsBuilder,
)
class HiredInternVLForConditionalGeneration(
    HiredInternVLMixin, InternS1ForConditionalGeneration
):
    supports_multimodal = True
    supports_pp = True
    supports_lora = True

    attention_of = interns1_attention
    tower_name, projector_name = "vision_tower", "multi_modal_projector"
    relies_on: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "interns1:InternS1ForConditionalGeneration.__init__": (
            *("vision_tower", "multi_modal_projector", "downsample_ratio"),
        ),
        "interns1:InternS1ForConditionalGeneration.extract_feature": ("pixel_shuffle",),
        "interns1_vit:InternS1VisionModel.__init__": ("encoder",),
        "interns1_vit:InternS1VisionEncoder.__init__": ("layer",),
        "interns1_vit:InternS1VisionLayer.forward": ("attention",),
        "interns1_vit:InternSdpaAttention.__init__": ("attn", "num_heads", "scale"),
        "interns1_vit:InternSdpaAttention.forward": ("attn",),
    }
