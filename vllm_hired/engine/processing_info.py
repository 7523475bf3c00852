"""vLLM's processing info: how many tokens an image has, and where memory is planned.

A mixin over upstream's, the same for every architecture; `engine.models` puts them
together.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from typing_extensions import override
from vllm.multimodal.parse import ImageSize
from vllm.multimodal.processing import BaseProcessingInfo, InputProcessingContext

from vllm_hired.budget import KeptCount, kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.errors import PREFIX
from vllm_hired.layouts import Layout, image_layout, largest_image_sizes


class HiredInputProcessingContext(InputProcessingContext):
    """Keeps our settings from HF's processor, which would be loaded anew for each
    distinct value and then ignore it."""

    @override
    def get_merged_mm_kwargs(
        self, kwargs: Mapping[str, object], *args: Any, **options: Any
    ) -> dict[str, Any]:
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith(PREFIX)}
        merged: dict[str, Any] = super().get_merged_mm_kwargs(kwargs, *args, **options)
        return merged


class HiredProcessingInfoMixin(BaseProcessingInfo):
    """Counts follow `hired_max_budget` where vLLM plans memory.

    `get_num_image_tokens` stays upstream's: the count without dropping.
    """

    def __init__(self, ctx: InputProcessingContext) -> None:
        """Raises `HiredConfigError` for settings that cannot be used."""
        super().__init__(HiredInputProcessingContext(ctx.model_config, ctx.tokenizer))
        self.hired = HiredConfig.from_hf_config(self.get_hf_config())

    def get_kept_count(self, layout: Layout, budget: Fraction) -> KeptCount:
        """`K` of an image, and whether it stays as it is."""
        return kept_count(layout, budget, self.hired.token_cap)

    def most_image_tokens(self) -> int:
        """A bound on an image's tokens, at any budget up to the largest."""
        raise NotImplementedError

    def probe_layouts(self) -> Iterable[Layout]:
        """Layouts on which a method of another package is tried."""
        raise NotImplementedError

    @override
    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        stock = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        if not self.hired.is_active(self.hired.max_budget):
            return stock
        return {**(stock or {}), "image": self.most_image_tokens()}


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
        if not self.hired.is_active(self.hired.max_budget):
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
