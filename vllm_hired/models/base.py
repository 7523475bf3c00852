"""vLLM's worker side: pixels -> kept embeddings. The same for every architecture."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal.inputs import MultiModalKwargsItem

from vllm_hired.attention import capture_cls_attention
from vllm_hired.config import HiredConfig, HiredConfigError, given_settings
from vllm_hired.contract import contract_problem
from vllm_hired.geometry import (
    Geometry,
    input_geometries,
    item_geometry,
    largest_image_sizes,
    model_geometry,
)
from vllm_hired.merge import gather_kept
from vllm_hired.scores import ClsScores
from vllm_hired.selectors import make_selector

# Under "vllm", where vLLM has set up its handlers.
logger = init_logger(f"vllm.{__name__}")


class HiredModelMixin(SupportsMultiModal):
    """Replaces the image-feature merger of an upstream LLaVA model.

    Images that carry `num_kept` give that many embeddings; all others take
    upstream's way untouched.
    """

    @override
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hired = HiredConfig.from_hf_config(self.config)
        problem = contract_problem(type(self))
        if problem is not None and given_settings(self.config):
            raise HiredConfigError("hired_budget", float(self.hired.budget), problem)
        self.selector = make_selector(self.hired.selector)
        vision = self.config.vision_config
        self.one_partition = Geometry(vision.image_size // vision.patch_size)
        patches = self.one_partition.patches_per_partition
        scheduler = vllm_config.scheduler_config
        # vLLM packs images into a call by the tokens they keep, so a small budget
        # packs many more tiles than memory was profiled for.
        self.max_tiles_per_forward: float = (
            scheduler.max_num_encoder_input_tokens // patches
        )
        if _has_tower_lora(vllm_config):
            # The adapters' token mapping covers the call's tiles in one forward.
            self.max_tiles_per_forward = math.inf
        self.max_images_per_batch = (
            scheduler.max_num_seqs
            * self.multimodal_config.get_limit_per_prompt("image")
        )
        logger.info(
            "%s: hired_budget=%s, hired_max_budget=%s, hired_token_cap=%s, %s",
            type(self).__name__,
            float(self.hired.budget),
            float(self.hired.max_budget),
            self.hired.token_cap,
            f"hired_selector={self.hired.selector}"
            if self.hired.is_active(self.hired.budget)
            else "stock path unless a request sets hired_budget",
        )

    @override
    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Gives exactly `num_kept` rows for each image that carries it."""
        num_kept = kwargs.pop("num_kept", None)
        image_embeds = kwargs.get("image_embeds")
        if image_embeds is not None:
            # Two of different lengths come as a list, which upstream refuses.
            return list(image_embeds)
        if num_kept is None:
            return list(super().embed_multimodal(**kwargs))

        counts = [int(count) for count in num_kept]
        geometries = input_geometries(self.config, kwargs)
        dropping: list[int] = []
        whole: list[int] = []
        for image, geometry in enumerate(geometries):
            # A cap above an image's own count leaves it whole, newline tokens too.
            is_whole = counts[image] == geometry.num_stock_tokens
            (whole if is_whole else dropping).append(image)

        embeddings: dict[int, Tensor] = {}
        if whole:
            stock = super().embed_multimodal(**_pick(kwargs, whole))
            embeddings |= zip(whole, stock, strict=True)
        if dropping:
            kept = self._embed_kept(
                [kwargs["pixel_values"][image] for image in dropping],
                [geometries[image] for image in dropping],
                [counts[image] for image in dropping],
            )
            embeddings |= zip(dropping, kept, strict=True)
        for image, count in enumerate(counts):
            # vLLM cuts too many rows silently and dies of too few.
            assert len(embeddings[image]) == count, (embeddings[image].shape, count)
        return [embeddings[image] for image in range(len(counts))]

    def _embed_kept(
        self, pixel_values: list[Tensor], geometries: list[Geometry], counts: list[int]
    ) -> tuple[Tensor, ...]:
        """One tower forward after another, so that the features of one at a time are
        held; then the projector, on kept tokens alone."""
        rows = []
        for images in self._forwards(geometries):
            shapes = geometries[images]
            features, kept = self.select(pixel_values[images], shapes, counts[images])
            rows.append(gather_kept(features, kept, shapes))
        return self.multi_modal_projector(torch.cat(rows)).split(counts)

    def _forwards(self, geometries: list[Geometry]) -> Iterator[slice]:
        """Consecutive images that share a tower forward: at least one, and together
        at most `max_tiles_per_forward` tiles."""
        start = tiles = 0
        for image, geometry in enumerate(geometries):
            tiles += geometry.num_partitions
            if image > start and tiles > self.max_tiles_per_forward:
                yield slice(start, image)
                start, tiles = image, geometry.num_partitions
        yield slice(start, len(geometries))

    def select(
        self, pixel_values: list[Tensor], geometries: list[Geometry], counts: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encodes images in one tower forward and chooses the patches to keep.

        Args:
            pixel_values: per image `[P, 3, H, W]`, or `[3, H, W]` where P is 1.
            geometries: per image.
            counts: `K` per image.

        Returns:
            features `[sum of P, N, D]`, and per image `[K]` int64 flat patch indices
            in sequence order.
        """
        hired = self.hired
        tiles = [image.view(-1, *image.shape[-3:]) for image in pixel_values]
        layers = {hired.init_layer, hired.final_layer}
        with capture_cls_attention(self.vision_tower, layers) as captured:
            features = self._image_pixels_to_features(
                self.vision_tower, torch.cat(tiles)
            )
        partitions = [geometry.num_partitions for geometry in geometries]
        init, final = (
            captured[layer].split(partitions)
            for layer in (hired.init_layer, hired.final_layer)
        )
        kept = [
            self.selector.select(ClsScores(*scores), geometry, count, hired.alpha)
            for *scores, geometry, count in zip(
                init, final, geometries, counts, strict=True
            )
        ]
        return features, kept

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
        or, if it stays whole, under `P` times its embeddings.
        """
        tower, connector = super().get_mm_lora_token_counts(
            modality=modality, mm_kwargs=mm_kwargs, num_mm_embeds=num_mm_embeds
        )
        if self.hired.unsupported is not None:
            return tower, connector
        if mm_kwargs is None:
            largest = max(
                (
                    model_geometry(self.config, *s)
                    for s in largest_image_sizes(self.config)
                ),
                key=lambda geometry: geometry.num_partitions,
            )
            images = min(num_mm_embeds, self.max_images_per_batch)
            return images * _encoded(largest), largest.num_partitions * num_mm_embeds
        if "pixel_values" not in mm_kwargs:
            return tower, connector
        if "num_kept" not in mm_kwargs:
            # Upstream forgets the [CLS] of LLaVA-1.5's one partition.
            return max(tower, _encoded(self.one_partition)), connector
        geometry = item_geometry(self.config, mm_kwargs)
        is_whole = num_mm_embeds == geometry.num_stock_tokens
        return _encoded(geometry), connector if is_whole else num_mm_embeds


def _encoded(geometry: Geometry) -> int:
    """Tokens of an image in the tower, a [CLS] a partition among them."""
    return geometry.num_partitions * (geometry.patches_per_partition + 1)


def _has_tower_lora(vllm_config: VllmConfig) -> bool:
    lora = vllm_config.lora_config
    return lora is not None and lora.enable_tower_connector_lora


def _pick(kwargs: Mapping[str, Any], images: list[int]) -> dict[str, Any]:
    """The batched inputs of some images; values are tensors or lists."""
    picked = {key: [value[i] for i in images] for key, value in kwargs.items()}
    return {
        key: torch.stack(picked[key]) if isinstance(value, Tensor) else picked[key]
        for key, value in kwargs.items()
    }
