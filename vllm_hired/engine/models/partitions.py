"""Towers that encode an image as partitions of one size: LLaVA's and InternVL's."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem

from vllm_hired.engine.capture import capture
from vllm_hired.engine.inputs import item_layout
from vllm_hired.engine.models.base import HiredModelMixin
from vllm_hired.layouts import Layout, image_layout
from vllm_hired.selectors.base import kept_rows
from vllm_hired.towers.observation import Observation, Quantity
from vllm_hired.towers.reading import Reading, observations


class HiredPartitionsModelMixin(HiredModelMixin):
    """Chooses cells before the projector of an upstream model, of LLaVA's unless
    `encode` and `project` are overridden.

    Attributes:
        pixels_key: under which images are among the processed inputs.
        relies_on: see `contract.attribute_problems`.
    """

    pixels_key: ClassVar[str] = "pixel_values"

    relies_on: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "clip:CLIPVisionModel.__init__": ("vision_model",),
        "clip:CLIPVisionTransformer.__init__": ("encoder",),
        "clip:CLIPEncoder.__init__": ("layers",),
        "clip:CLIPEncoderLayer.__init__": ("self_attn",),
        "clip:CLIPAttention.__init__": (
            *("attn", "num_heads_per_partition", "scale", "tp_size"),
        ),
        "clip:CLIPAttention.forward": ("attn",),
        "siglip:SiglipVisionModel.__init__": ("vision_model",),
        "siglip:SiglipVisionTransformer.__init__": ("encoder",),
        "siglip:SiglipEncoder.__init__": ("layers",),
        "siglip:SiglipEncoderLayer.__init__": ("self_attn",),
        "siglip:SiglipAttention.__init__": (
            *("attn", "num_heads_per_partition", "scale", "tp_size"),
        ),
        "siglip:SiglipAttention.forward": ("attn",),
        "llava:LlavaForConditionalGeneration.__init__": (
            *("vision_tower", "multi_modal_projector"),
        ),
        "llava:LlavaForConditionalGeneration._image_pixels_to_features": (),
        "llava_next:LlavaNextForConditionalGeneration.__init__": (
            *("vision_tower", "multi_modal_projector"),
        ),
        "llava_next:LlavaNextForConditionalGeneration._image_pixels_to_features": (),
    }

    @cached_property
    def cells_per_partition(self) -> int:
        """`N`."""
        side = self.config.vision_config.image_size
        return image_layout(self.config, side, side).cells_per_partition

    @override
    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Ready-made embeddings pass through, also of different lengths."""
        image_embeds = kwargs.get("image_embeds")
        if image_embeds is not None:
            # Two of different lengths come as a list, which upstream refuses.
            return list(image_embeds)
        return super().embed_multimodal(**kwargs)

    def _pick(self, inputs: Mapping[str, Any], images: Sequence[int]) -> dict[str, Any]:
        """Values are tensors or lists."""
        picked = {key: [value[i] for i in images] for key, value in inputs.items()}
        return {
            key: torch.stack(picked[key]) if isinstance(value, Tensor) else picked[key]
            for key, value in inputs.items()
        }

    def _embed_kept(
        self, inputs: dict[str, Any], layouts: list[Layout], counts: list[int]
    ) -> Sequence[Tensor]:
        """One tower forward after another, so that the features of one at a time are
        held; then the projector, on kept tokens alone."""
        pixel_values = self._images(inputs)
        rows = []
        for images in self._forwards(layouts):
            features, selections = self.select(
                pixel_values[images], layouts[images], counts[images]
            )
            rows.append(kept_rows(features, selections, layouts[images]))
        return self.project(torch.cat(rows)).split(counts)

    def _images(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The pixels of each image."""
        return [*inputs[self.pixels_key]]

    def observe(
        self, images: list[Tensor], layouts: list[Layout]
    ) -> tuple[Tensor, list[Observation]]:
        """Encodes images in one tower forward.

        Args:
            images: per image pixels `[P, 3, H, W]`, or `[3, H, W]` where P is 1.
            layouts: per image.

        Returns:
            features `[sum of P, N, D]`, and per image what the selector needs to see.
        """
        partitions = [image.view(-1, *image.shape[-3:]) for image in images]
        needs, readings = self._wanted()
        features, measured = self.encode(torch.cat(partitions), readings)
        return features, observations(
            features,
            measured,
            self.config.vision_config.num_attention_heads,
            needs,
            [layout.num_partitions for layout in layouts],
        )

    def encode(
        self, pixels: Tensor, readings: Mapping[Quantity, Reading]
    ) -> tuple[Tensor, dict[Quantity, Tensor]]:
        """One forward of the tower.

        Args:
            pixels: `[B, 3, H, W]`, partitions of one image after another.
            readings: by name.

        Returns:
            features `[B, N, D]` of the cells, and by name what was measured of them,
            `[B, N, ...]`, or of [CLS] before them, too.
        """
        with capture(self.vision_tower, readings) as measured:
            features = self._image_pixels_to_features(self.vision_tower, pixels)
        return features, measured

    def project(self, rows: Tensor) -> Tensor:
        """`[K, D]` features of kept cells -> `[K, hidden]`."""
        projected: Tensor = self.multi_modal_projector(rows)
        return projected

    @override
    def get_mm_lora_token_counts(
        self,
        *,
        modality: str,
        mm_kwargs: MultiModalKwargsItem | None,
        num_mm_embeds: int,
    ) -> tuple[int, int | None]:
        """Counts what the tower encodes, [CLS] included, and what the projector sees
        of kept tokens.

        With no image given, bounds the tower's by images of one embedding each, as
        many as can be scheduled together; the projector sees an image's kept tokens,
        or, if nothing is dropped, under `P` times its embeddings.
        """
        tower, connector = super().get_mm_lora_token_counts(
            modality=modality, mm_kwargs=mm_kwargs, num_mm_embeds=num_mm_embeds
        )
        if self.hired.unsupported is not None:
            return tower, connector
        if mm_kwargs is None:
            info = MULTIMODAL_REGISTRY.get_processing_info(self.model_config)
            layouts = info.get_largest_images().values()
            partitions = max(layout.num_partitions for layout in layouts)
            images = min(num_mm_embeds, self.max_images_per_batch)
            return (
                max(tower, images * self._encoded(partitions)),
                partitions * num_mm_embeds,
            )
        if self.pixels_key not in mm_kwargs:
            return tower, connector
        if "num_kept" not in mm_kwargs:
            # Upstream forgets the [CLS] of LLaVA-1.5's one partition.
            return max(tower, self._encoded(1)), connector
        encoded = self._encoded(item_layout(self.config, mm_kwargs).num_partitions)
        is_undropped = bool(mm_kwargs["is_undropped"].data)
        return encoded, connector if is_undropped else num_mm_embeds

    def _encoded(self, partitions: int) -> int:
        """Tokens of an image in the tower, a [CLS] a partition among them."""
        return partitions * (self.cells_per_partition + self.tower_kind.has_cls)
