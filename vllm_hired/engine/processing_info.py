"""vLLM's processing info: how many tokens an image has, and where memory is planned.

A mixin over upstream's, the same for every architecture. `engine.partitions` and
`engine.grids` say what differs; `engine.models` puts them together.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from typing_extensions import override
from vllm.multimodal.processing import BaseProcessingInfo, InputProcessingContext

from vllm_hired.budget import KeptCount, kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.errors import PREFIX
from vllm_hired.layouts import Layout


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

    @abstractmethod
    def most_image_tokens(self) -> int:
        """A bound on an image's tokens, at any budget up to the largest."""

    @abstractmethod
    def probe_layouts(self) -> Iterable[Layout]:
        """Layouts on which a method of another package is tried."""

    @override
    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        stock = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        # Where it is None, vLLM counts the dummy image's, which is not the largest at a
        # largest budget of 1.0; see `budgets.dummy_budget`.
        if not self.hired.drops_by_default:
            return stock
        return {**(stock or {}), "image": self.most_image_tokens()}
