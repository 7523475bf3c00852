"""vLLM's front end for images of any shape, whose grid HF's processor gives."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from vllm.config.multimodal import ImageDummyOptions, MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError

from vllm_hired.engine.processing import HiredMultiModalProcessorMixin
from vllm_hired.engine.processing_info import HiredProcessingInfoMixin
from vllm_hired.engine.refusals import PROCESSOR_FILES, refuse_extreme_pixels
from vllm_hired.layouts import Layout
from vllm_hired.layouts.qwen_vl import (
    PixelLimits,
    cell_side,
    grid_layout,
    longest_side,
    most_cells,
)

PATCH_KWARGS = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Arguments of HF's processor that decide what a cell is -> their names in the vision
config, which must say the same."""


class HiredGridInfoMixin(HiredProcessingInfoMixin):
    """Memory is planned for the limits of pixels that the engine's processor has."""

    @cached_property
    def pixel_limits(self) -> PixelLimits:
        """Of images of requests that set none themselves."""
        size = dict(self.get_image_processor().size)
        merged = self.ctx.get_merged_mm_kwargs({})
        for given in (merged, merged.get("images_kwargs") or {}):
            named = {
                "shortest_edge": given.get("min_pixels"),
                "longest_edge": given.get("max_pixels"),
            }
            size |= given.get("size") or {}
            size |= {edge: value for edge, value in named.items() if value is not None}
        return PixelLimits(size["shortest_edge"], size["longest_edge"])

    @cached_property
    def most_cells(self) -> int:
        """A bound on such an image's cells, for which the tower's memory is planned."""
        return most_cells(cell_side(self.get_hf_config()), self.pixel_limits)

    def most_image_tokens(self) -> int:
        """Two images are the largest: one of most cells, and one with the longest side,
        of which `hired_budget` cannot drop as much as it says."""
        if self.ctx.get_mm_config().enable_mm_embeds:
            # Ready-made embeddings pass through as they are.
            return self.most_cells
        side = longest_side(cell_side(self.get_hf_config()), self.pixel_limits)
        # A row whose least count is that of the longest side that there is.
        bound = Layout(rows=1, cols=self.most_cells, least_kept=side)
        return self.get_kept_count(bound, self.hired.max_budget).tokens

    def probe_layouts(self) -> list[Layout]:
        """A few shapes; a model has as many as there are images."""
        return [grid_layout(*grid) for grid in ((1, 1), (1, 40), (24, 24), (31, 7))]


class HiredGridProcessorMixin(HiredMultiModalProcessorMixin):
    """Counts by the grid that HF's processor gives with a request's `min_pixels` and
    `max_pixels`, if they do not exceed the engine's."""

    info: HiredGridInfoMixin

    # Enough cells to see placeholders dropped, and few to process.
    check_options: ClassVar[MultiModalDummyOptions] = {
        "image": ImageDummyOptions(width=336, height=224)
    }

    def refuse_kwargs(self, kwargs: Mapping[str, object]) -> None:
        """Those that would make another cell of the pixels."""
        nested = kwargs.get("images_kwargs")
        for scope in (kwargs, nested if isinstance(nested, Mapping) else {}):
            for key in PATCH_KWARGS.keys() & scope.keys():
                raise VLLMValidationError(
                    f"{key}={scope[key]!r} in mm_processor_kwargs is not allowed: it "
                    "is the model's own",
                    parameter="mm_processor_kwargs",
                )

    def file_problem(self) -> tuple[str, object, str] | None:
        vision = self.info.get_hf_config().vision_config
        image_processor = self.info.get_image_processor()
        for key, name in PATCH_KWARGS.items():
            found, expected = getattr(image_processor, key), getattr(vision, name)
            if found != expected:
                return (
                    key,
                    found,
                    f"it is that of {PROCESSOR_FILES}, and config.json of the same "
                    f"checkpoint has {name}={expected}; the two must agree, so correct "
                    "the wrong file",
                )
        return None

    def own_pixels(self, pixel_values: Any, layouts: Sequence[Layout]) -> Any:
        """As they are: each image has its own patches alone.

        vLLM refuses images of too many tokens, which here are those that are kept. The
        tower encodes all.
        """
        for layout in layouts:
            if layout.num_cells > self.info.most_cells:
                raise VLLMValidationError(
                    f"an image became {layout.rows} x {layout.cols} cells, and this "
                    f"engine's memory is planned for {self.info.most_cells}: ask for "
                    "lower min_pixels and max_pixels in mm_processor_kwargs",
                    parameter="mm_processor_kwargs",
                )
        refuse_extreme_pixels([pixel_values])
        return pixel_values
