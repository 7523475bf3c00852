"""LLaVA-NeXT: a thumbnail and a grid of tiles."""

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.multimodal.parse import ImageSize

from vllm_hired.geometry import Geometry, image_geometry
from vllm_hired.models.base import HiredModelMixin
from vllm_hired.processing import (
    HiredMultiModalProcessorMixin,
    HiredProcessingInfoMixin,
)


def _geometry(hf_config: Any, image_height: int, image_width: int) -> Geometry:
    return image_geometry(
        image_height,
        image_width,
        tuple(map(tuple, hf_config.image_grid_pinpoints)),
        hf_config.vision_config.image_size,
        hf_config.vision_config.patch_size,
    )


def _geometries(hf_config: Any, inputs: Mapping[str, Any]) -> list[Geometry]:
    """From `image_sizes`, (height, width) a row, on the CPU."""
    return [
        _geometry(hf_config, int(height), int(width))
        for height, width in inputs["image_sizes"]
    ]


class HiredLlavaNextProcessingInfo(HiredProcessingInfoMixin, LlavaNextProcessingInfo):
    def get_geometries(self, processed_data: Mapping[str, Any]) -> list[Geometry]:
        return _geometries(self.get_hf_config(), processed_data)

    def get_largest_images(self) -> Mapping[ImageSize, Geometry]:
        """Images that fill the canvas of each pinpoint."""
        hf_config = self.get_hf_config()
        return {
            ImageSize(width, height): _geometry(hf_config, height, width)
            for height, width in hf_config.image_grid_pinpoints
        }


class HiredLlavaNextMultiModalProcessor(
    HiredMultiModalProcessorMixin, LlavaNextMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredLlavaNextMultiModalProcessor,
    info=HiredLlavaNextProcessingInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class HiredLlavaNextForConditionalGeneration(
    HiredModelMixin, LlavaNextForConditionalGeneration
):
    # vLLM caches what it learns of a class by this file's hash, not its base's.
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
    supports_tower_connector_lora = True

    def get_geometries(self, inputs: Mapping[str, Any]) -> list[Geometry]:
        return _geometries(self.config, inputs)

    def get_mm_lora_token_counts(
        self,
        *,
        modality: str,
        mm_kwargs: MultiModalKwargsItem | None,
        num_mm_embeds: int,
    ) -> tuple[int, int | None]:
        """Counts what the tower encodes and what the projector sees of kept tokens.

        With no image given, bounds the tower's by images of one embedding each, as
        many as can be scheduled together; the projector sees an image's kept tokens,
        or, if it stays whole, under `P` times its embeddings.
        """
        if mm_kwargs is not None:
            tower, connector = super().get_mm_lora_token_counts(
                modality=modality, mm_kwargs=mm_kwargs, num_mm_embeds=num_mm_embeds
            )
            if "num_kept" not in mm_kwargs:
                return tower, connector
            sizes = mm_kwargs["image_sizes"].data
            (geometry,) = _geometries(self.config, {"image_sizes": [sizes]})
            is_whole = num_mm_embeds == geometry.num_stock_tokens
            return tower, connector if is_whole else num_mm_embeds

        largest = max(
            _geometry(self.config, height, width).num_partitions
            for height, width in self.config.image_grid_pinpoints
        )
        vision = self.config.vision_config
        tokens_per_tile = (vision.image_size // vision.patch_size) ** 2 + 1
        images = min(num_mm_embeds, self.max_images_per_batch)
        return images * largest * tokens_per_tile, largest * num_mm_embeds
