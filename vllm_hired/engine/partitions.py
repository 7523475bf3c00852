"""vLLM's front end for images that become partitions of one size: LLaVA's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import override
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.parse import ImageSize

from vllm_hired.engine.processing import HiredMultiModalProcessorMixin
from vllm_hired.engine.processing_info import HiredProcessingInfoMixin
from vllm_hired.engine.refusals import (
    processor_file_problem,
    refuse_extreme_pixels,
    refuse_tile_kwargs,
)
from vllm_hired.layouts import Layout, image_layout, largest_image_sizes


class HiredPartitionsInfoMixin(HiredProcessingInfoMixin):
    """Of models with images of finitely many layouts, which are all looked at."""

    def get_largest_images(self) -> Mapping[ImageSize, Layout]:
        """Image sizes among which is one with most tokens, whatever the budget."""
        hf_config = self.get_hf_config()
        return {
            ImageSize(width, height): image_layout(hf_config, height, width)
            for height, width in largest_image_sizes(hf_config)
        }

    def _largest_image(self) -> tuple[int, int, ImageSize]:
        """(`K` at the largest budget, partitions, size); of equals, most partitions."""
        return max(
            (
                self.get_kept_count(layout, self.hired.max_budget).tokens,
                layout.num_tiles,
                size,
            )
            for size, layout in self.get_largest_images().items()
        )

    @override
    def get_image_size_with_most_features(self) -> ImageSize:
        if not self.hired.drops_by_default:
            return super().get_image_size_with_most_features()
        return self._largest_image()[-1]

    def probe_layouts(self) -> Iterable[Layout]:
        return self.get_largest_images().values()

    def most_image_tokens(self) -> int:
        hired = self.hired
        tokens = self._largest_image()[0]
        layouts = self.get_largest_images().values()
        stock = max(layout.num_stock_tokens for layout in layouts)
        if hired.max_budget == 1:
            # Under a cap, an image with padding may stay undropped where a larger
            # one has lost its newline tokens.
            tokens = min(stock, hired.token_cap or stock)
        if self.ctx.get_mm_config().enable_mm_embeds:
            # Ready-made embeddings pass through as they are.
            tokens = max(tokens, stock)
        return tokens


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
