"""vLLM's front end for images that become partitions of one size: LLaVA's."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_hired.engine.processing import HiredMultiModalProcessorMixin
from vllm_hired.engine.refusals import (
    processor_file_problem,
    refuse_extreme_pixels,
    refuse_tile_kwargs,
)
from vllm_hired.layouts import Layout


class HiredPartitionsProcessorMixin(HiredMultiModalProcessorMixin):
    """Counts by the tiles that the model's config describes, which must be cut."""

    def refuse_kwargs(self, kwargs: Mapping[str, object]) -> None:
        refuse_tile_kwargs(kwargs)

    def file_problem(self) -> tuple[str, object, str] | None:
        return processor_file_problem(
            self.info.get_hf_config(),
            self.info.get_hf_processor().image_processor,
            self.info.ctx.get_mm_config().mm_processor_kwargs or {},
        )

    def own_pixels(self, pixel_values: Any, layouts: Sequence[Layout]) -> Any:
        """Trims each image to its own tiles: HF pads to the largest tile count in the
        prompt."""
        side = self.info.get_hf_config().vision_config.image_size
        trimmed = []
        for padded, layout in zip(pixel_values, layouts, strict=True):
            shape = (layout.num_partitions, 3, side, side)
            # Without tiles there is no dimension of partitions either.
            pixels = padded[: shape[0]] if padded.ndim == len(shape) else padded
            if pixels.shape != shape[-pixels.ndim :]:
                raise VLLMValidationError(
                    f"an image became {tuple(pixels.shape)}, not the "
                    f"{layout.num_partitions} partitions of {side}x{side} pixels "
                    "that this model encodes",
                    parameter="image",
                )
            trimmed.append(pixels)
        refuse_extreme_pixels(trimmed)
        return trimmed
