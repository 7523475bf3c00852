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

from vllm_hired.config import HiredConfig, given_settings
from vllm_hired.engine.capture import capture
from vllm_hired.engine.contract import contract_problem
from vllm_hired.engine.inputs import input_layouts, item_layout
from vllm_hired.errors import HiredConfigError
from vllm_hired.layouts import Layout, image_layout, largest_image_sizes
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.base import Selection, kept_rows
from vllm_hired.selectors.probe import GuardedSelector
from vllm_hired.towers import TOWERS, Tower
from vllm_hired.towers.observation import Observation
from vllm_hired.towers.reading import observations, readings_for

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
        self.selector = make_selector(self.hired.selector, self.hired.method)
        if self.hired.selector not in SELECTORS:
            self.selector = GuardedSelector(self.selector)
        vision = self.config.vision_config
        # One that cannot be read drops nothing, and is asked for nothing.
        self.tower_kind = TOWERS.get(vision.model_type, Tower(False, "full"))
        side = vision.image_size
        self.cells_per_partition = image_layout(
            self.config, side, side
        ).cells_per_partition
        scheduler = vllm_config.scheduler_config
        # vLLM packs images into a call by the tokens they keep, so a small budget
        # packs many more partitions than memory was profiled for.
        self.max_partitions_per_forward: float = (
            scheduler.max_num_encoder_input_tokens // self.cells_per_partition
        )
        if _has_tower_lora(vllm_config):
            # The adapters' token mapping covers the call's partitions in one forward.
            self.max_partitions_per_forward = math.inf
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
        is_undropped = kwargs.pop("is_undropped", None)
        image_embeds = kwargs.get("image_embeds")
        if image_embeds is not None:
            # Two of different lengths come as a list, which upstream refuses.
            return list(image_embeds)
        if num_kept is None:
            return list(super().embed_multimodal(**kwargs))

        counts = [int(count) for count in num_kept]
        layouts = input_layouts(self.config, kwargs)
        undropped = [image for image, stays in enumerate(is_undropped) if stays]
        dropping = [image for image, stays in enumerate(is_undropped) if not stays]

        embeddings: dict[int, Tensor] = {}
        if undropped:
            stock = super().embed_multimodal(**_pick(kwargs, undropped))
            embeddings |= zip(undropped, stock, strict=True)
        if dropping:
            kept = self._embed_kept(
                [kwargs["pixel_values"][image] for image in dropping],
                [layouts[image] for image in dropping],
                [counts[image] for image in dropping],
            )
            embeddings |= zip(dropping, kept, strict=True)
        for image, count in enumerate(counts):
            # vLLM cuts too many rows silently and dies of too few.
            assert len(embeddings[image]) == count, (embeddings[image].shape, count)
        return [embeddings[image] for image in range(len(counts))]

    def _embed_kept(
        self, pixel_values: list[Tensor], layouts: list[Layout], counts: list[int]
    ) -> tuple[Tensor, ...]:
        """One tower forward after another, so that the features of one at a time are
        held; then the projector, on kept tokens alone."""
        rows = []
        for images in self._forwards(layouts):
            features, selections = self.select(
                pixel_values[images], layouts[images], counts[images]
            )
            rows.append(kept_rows(features, selections, layouts[images]))
        return self.multi_modal_projector(torch.cat(rows)).split(counts)

    def _forwards(self, layouts: list[Layout]) -> Iterator[slice]:
        """Consecutive images that share a tower forward: at least one, and together
        at most `max_partitions_per_forward` partitions."""
        start = partitions = 0
        for image, layout in enumerate(layouts):
            partitions += layout.num_partitions
            if image > start and partitions > self.max_partitions_per_forward:
                yield slice(start, image)
                start, partitions = image, layout.num_partitions
        yield slice(start, len(layouts))

    def select(
        self, pixel_values: list[Tensor], layouts: list[Layout], counts: list[int]
    ) -> tuple[Tensor, list[Selection]]:
        """Encodes images in one tower forward and chooses the cells to keep.

        Args:
            pixel_values: per image `[P, 3, H, W]`, or `[3, H, W]` where P is 1.
            layouts: per image.
            counts: `K` per image.

        Returns:
            features `[sum of P, N, D]`, and a selection per image.
        """
        features, observations = self.observe(pixel_values, layouts)
        selections = [
            self.selector.select(observation, layout, count, self.hired.alpha)
            for observation, layout, count in zip(
                observations, layouts, counts, strict=True
            )
        ]
        return features, selections

    def observe(
        self, pixel_values: list[Tensor], layouts: list[Layout]
    ) -> tuple[Tensor, list[Observation]]:
        """Features `[sum of P, N, D]` of one tower forward, and per image what the
        selector needs to see of it."""
        partitions = [image.view(-1, *image.shape[-3:]) for image in pixel_values]
        needs = self.selector.needs_on(self.tower_kind)
        readings = readings_for(
            needs, self.hired.attention, self.hired.init_layer, self.hired.final_layer
        )
        with capture(self.vision_tower, readings) as measured:
            features = self._image_pixels_to_features(
                self.vision_tower, torch.cat(partitions)
            )
        return features, observations(
            features,
            measured,
            self.config.vision_config.num_attention_heads,
            needs,
            [layout.num_partitions for layout in layouts],
        )

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
            partitions = max(
                image_layout(self.config, *size).num_partitions
                for size in largest_image_sizes(self.config)
            )
            images = min(num_mm_embeds, self.max_images_per_batch)
            return images * self._encoded(partitions), partitions * num_mm_embeds
        if "pixel_values" not in mm_kwargs:
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
