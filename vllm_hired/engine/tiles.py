"""vLLM's front end for images whose processor decides into how many tiles: InternVL's.

A request may change the limits of tiles, and the number of partitions alone does not
say how they lie. So the grid of tiles travels with the image.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature
from typing_extensions import override
from vllm.config.multimodal import ImageDummyOptions, MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails
from vllm.multimodal.processing.processor import HFMultiModalInputs

from vllm_hired.engine.budgets import IMAGE_BUDGETS
from vllm_hired.engine.partitions import (
    HiredPartitionsInfoMixin,
    HiredPartitionsProcessorMixin,
)
from vllm_hired.engine.refusals import refuse_extreme_pixels
from vllm_hired.errors import PREFIX
from vllm_hired.layouts import Layout
from vllm_hired.layouts.base import partition_side
from vllm_hired.layouts.internvl import (
    TileLimits,
    layout_within,
    sizes_within,
    tile_grid,
)


class HiredTilesInfoMixin(HiredPartitionsInfoMixin):
    """Memory is planned for the limits of tiles that the engine's processor has."""

    @abstractmethod
    def get_tile_limits(self, kwargs: Mapping[str, object]) -> TileLimits:
        """Those of the processor for a request with these processor kwargs."""

    @abstractmethod
    def get_image_token_ids(self) -> tuple[int, int, int]:
        """What stands before an image's tokens, one of these, and what after them."""

    @override
    def get_hf_processor(self, **kwargs: object) -> Any:
        """Keeps our settings from parts of the processor that are loaded anew for each
        distinct value."""
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith(PREFIX)}
        return super().get_hf_processor(**kwargs)

    @cached_property
    def largest_images(self) -> Mapping[ImageSize, Layout]:
        """Of images that requests without limits of their own can have."""
        hf_config, limits = self.get_hf_config(), self.get_tile_limits({})
        return {
            ImageSize(width, height): layout_within(limits, hf_config, height, width)
            for height, width in sizes_within(limits, hf_config)
        }

    def get_largest_images(self) -> Mapping[ImageSize, Layout]:
        return self.largest_images

    @override
    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        """With what a video may have, which upstream finds out by a dummy."""
        tokens = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        if tokens is None or not mm_counts.get("video"):
            return tokens
        frames = self.get_num_frames_with_most_features(seq_len, mm_counts)
        return {**tokens, "video": frames * self.get_hf_processor().image_seq_length}


class HiredTilesProcessorMixin(HiredPartitionsProcessorMixin):
    """Counts by the tiles that the processor cuts with a request's own limits, if they
    are not more than the engine's."""

    info: HiredTilesInfoMixin

    # Enough cells to see placeholders dropped, and few to process.
    check_options: ClassVar[MultiModalDummyOptions] = {
        "image": ImageDummyOptions(width=896, height=448)
    }

    def refuse_kwargs(self, kwargs: Mapping[str, object]) -> None:
        """Those that change a tile, and more tiles than memory is planned for.

        vLLM refuses images of too many tokens, which here are those that are kept. The
        tower encodes all.
        """
        super().refuse_kwargs(kwargs)
        asked, planned = map(self.info.get_tile_limits, (kwargs, {}))
        if not (isinstance(asked.most, int) and asked.most <= planned.most):
            raise VLLMValidationError(
                f"images of up to {asked.most!r} tiles are asked for in "
                f"mm_processor_kwargs, and this engine's memory is planned for "
                f"{planned.most} tiles",
                parameter="mm_processor_kwargs",
            )

    @override
    def _get_hf_mm_inputs(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> HFMultiModalInputs:
        """Adds `tile_grid`, (rows, columns) of each image's tiles."""
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        images = mm_items.get("image")
        if IMAGE_BUDGETS in hf_kwargs and isinstance(images, ImageProcessorItems):
            limits = self.info.get_tile_limits(hf_kwargs)
            side = partition_side(self.info.get_hf_config())
            sizes = [images.get_image_size(i) for i in range(len(images))]
            inputs.passthrough_data["tile_grid"] = torch.tensor(
                [tile_grid(size.height, size.width, side, limits) for size in sizes]
            )
        return inputs

    @override
    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        """Adds `tile_grid`, which the worker reads on the CPU."""
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        on_cpu = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return {**fields, "tile_grid": on_cpu}

    def placeholders(
        self, update: PromptReplacement, count: int
    ) -> PromptUpdateDetails:
        """Between the markers of an image."""
        start, token, end = self.info.get_image_token_ids()
        return PromptUpdateDetails.select_token_id(
            [start, *[token] * count, end], token
        )

    def own_pixels(self, pixel_values: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """As they are: `[sum of P, 3, S, S]`, each image has its own tiles alone."""
        side = partition_side(self.info.get_hf_config())
        partitions = sum(layout.num_partitions for layout in layouts)
        if pixel_values.shape != (partitions, 3, side, side):
            raise VLLMValidationError(
                f"images became {tuple(pixel_values.shape)}, not the {partitions} "
                f"partitions of {side}x{side} pixels that this model encodes",
                parameter="image",
            )
        refuse_extreme_pixels([pixel_values])
        return pixel_values
