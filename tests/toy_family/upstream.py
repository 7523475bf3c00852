"""LLaVA-pair: two tiles side by side, one after another, and then the thumbnail.

Tiles are LLaVA-NeXT's, without newline tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import BatchFeature, LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import unpad_image
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)


class LlavaPairConfig(LlavaNextConfig):
    model_type = "llava_pair"


class LlavaPairProcessingInfo(LlavaNextProcessingInfo):
    def _get_num_unpadded_features(self, **sizes: int) -> tuple[int, int]:
        features, _ = super()._get_num_unpadded_features(**sizes)
        return features, 0


class LlavaPairMultiModalProcessor(LlavaNextMultiModalProcessor):
    def _postprocess_hf_mm_data(
        self,
        mm_inputs: Mapping[str, object],
        hf_processor_mm_kwargs: Mapping[str, object],
        processed_data: BatchFeature,
    ) -> BatchFeature:
        if "pixel_values" in processed_data:
            pixels = processed_data["pixel_values"]
            processed_data["pixel_values"] = [
                image.roll(-1, dims=0) for image in pixels
            ]
        return processed_data


class LlavaPairForConditionalGeneration(LlavaNextForConditionalGeneration):
    def _merge_image_patch_embeddings(
        self, image_size: Tensor, patch_embeddings: Tensor, *, strategy: str
    ) -> Tensor:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        cells = torch.arange(2 * side**2).view(2, side, side)
        canvas = cells.transpose(0, 1).reshape(1, side, 2 * side)
        valid = unpad_image(canvas, image_size.tolist()).flatten().sort().values
        tiles, thumbnail = patch_embeddings[:2], patch_embeddings[2]
        return torch.cat([tiles.flatten(0, 1)[valid], thumbnail])
