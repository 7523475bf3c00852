"""vLLM's front end: request -> budget -> `K` placeholders, `num_kept` with the image.

A mixin over upstream's processor, the same for every architecture. `engine.partitions`
and `engine.grids` say what differs; `engine.models` puts them together.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from transformers import BatchFeature
from typing_extensions import override
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalHashes, MultiModalInput
from vllm.multimodal.cache import BaseMultiModalProcessorCache
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
    TimingContext,
)

from vllm_hired.config import setting_keys
from vllm_hired.engine.adaptive import AdaptiveBudgets
from vllm_hired.engine.budgets import (
    IMAGE_BUDGETS,
    BudgetedItems,
    DummyInputs,
    dummy_budget,
    image_budgets,
    image_hashes,
    places_without_budget,
    with_budgets,
)
from vllm_hired.engine.counting import ImageCounter
from vllm_hired.engine.inputs import input_layouts
from vllm_hired.engine.obstacles import HiredObstaclesMixin
from vllm_hired.engine.refusals import refuse_empty_images
from vllm_hired.errors import HiredConfigError
from vllm_hired.layouts import ImageSizeError, Layout


class HiredMultiModalProcessorMixin(HiredObstaclesMixin):
    """Resolves the budgets once, in `apply`; all that follows reads the outcome.

    While dropping is active the hash of an image holds `HiredConfig.cache_key`, which
    tells budgets and settings apart; while it is not, it equals stock vLLM's.

    Attributes:
        adaptive: chooses the budgets that nobody asks for, or None.
        pixels_key: under which images are among the processed inputs.
    """

    pixels_key: ClassVar[str] = "pixel_values"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._images = ImageCounter(self.info.get_hf_config())
        if self.info.hired.has_details:
            # A vLLM without its renderer serves without details.
            from vllm_hired.engine.detail import wrap_render_chat

            wrap_render_chat()
        hired = self.info.hired
        self.adaptive = AdaptiveBudgets(hired) if hired.adaptive else None

    @override
    def apply(
        self, inputs: ProcessorInputs, timing_ctx: TimingContext
    ) -> MultiModalInput:
        """A `hired_budget` or an image that cannot be used is a `VLLMValidationError`,
        HTTP 400."""
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        requested = kwargs.pop("hired_budget", None)
        if keys := setting_keys(kwargs):
            raise VLLMValidationError(
                f"{keys[0]} is not a setting of a request: mm_processor_kwargs takes "
                'hired_budget alone, as in {"hired_budget": 0.2}',
                parameter=keys[0],
            )
        try:
            hired = self.info.hired
            num_images = inputs.mm_data_items.get_count("image", strict=False)
            budgets = image_budgets(hired, requested, num_images)
            refuse_empty_images(inputs.mm_data_items)
            processed = replace(inputs, hf_processor_mm_kwargs=kwargs)
            chosen = self._adaptive_budgets(processed, requested)
            budgets = [chosen.get(place, own) for place, own in enumerate(budgets)]
            if any(map(hired.is_active, budgets)):
                self.refuse_kwargs(kwargs)
                self.check_dropping()
                processed = with_budgets(processed, hired, budgets)
            result = super().apply(processed, timing_ctx)
        except HiredConfigError as error:
            raise VLLMValidationError(
                str(error), parameter=error.setting, value=error.value
            ) from error
        except ImageSizeError as error:
            raise VLLMValidationError(str(error), parameter="image") from error
        if not isinstance(inputs, DummyInputs):
            self._images.count(result)
        if self.adaptive is not None:
            self.adaptive.count([*chosen.values()])
        return result

    def _adaptive_budgets(
        self, inputs: ProcessorInputs, requested: object
    ) -> dict[int, Fraction]:
        """By place, the budgets of images that get one by the load."""
        images = inputs.mm_data_items.get("image")
        # Embeddings, which stay whole, are no `ImageProcessorItems`.
        if self.adaptive is None or not isinstance(images, ImageProcessorItems):
            return {}
        places = places_without_budget(requested, len(images))
        if not places:
            return {}
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        hashes = image_hashes(inputs, places, self.info.model_id, algorithm)
        return dict(zip(places, self.adaptive.choose(hashes), strict=True))

    @override
    def get_dummy_inputs(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> ProcessorInputs:
        """At the budget of `dummy_budget`."""
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        kwargs = {"hired_budget": float(dummy_budget(self.info.hired))}
        return DummyInputs(**{**vars(inputs), "hf_processor_mm_kwargs": kwargs})

    @override
    def _get_cache_missing_items(
        self,
        cache: BaseMultiModalProcessorCache,
        mm_data_items: MultiModalDataItems,
        mm_hashes: MultiModalHashes,
    ) -> tuple[Mapping[str, list[bool]], MultiModalDataItems]:
        """With the budgets of the images that are missing."""
        is_cached, missing = super()._get_cache_missing_items(
            cache=cache, mm_data_items=mm_data_items, mm_hashes=mm_hashes
        )
        if isinstance(mm_data_items, BudgetedItems):
            missing = BudgetedItems(
                missing,
                [
                    budget
                    for budget, is_there in zip(
                        mm_data_items.image_budgets,
                        is_cached.get("image", ()),
                        strict=True,
                    )
                    if not is_there
                ],
            )
        return is_cached, missing

    @override
    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """Hands the images' budgets on to `_finalize_hf_mm_data`."""
        if isinstance(mm_items, BudgetedItems):
            hf_kwargs = {**hf_kwargs, IMAGE_BUDGETS: tuple(mm_items.image_budgets)}
        return super()._apply_hf_processor_main(mm_items=mm_items, hf_kwargs=hf_kwargs)

    @override
    def _finalize_hf_mm_data(
        self,
        hf_data: Mapping[str, object],
        hf_kwargs: Mapping[str, object],
        passthrough_data: Mapping[str, object],
        processed_data: BatchFeature | None = None,
    ) -> BatchFeature:
        """Counts `num_kept`, once for placeholders and worker alike.

        After upstream's `_postprocess_hf_mm_data`, whose parameters some families call
        otherwise.
        """
        data = super()._finalize_hf_mm_data(
            hf_data, hf_kwargs, passthrough_data, processed_data
        )
        budgets: Any = hf_kwargs.get(IMAGE_BUDGETS)
        if budgets is None or self.pixels_key not in data:
            return data
        layouts = input_layouts(self.info.get_hf_config(), data)
        data[self.pixels_key] = self.own_pixels(data[self.pixels_key], layouts)
        counts = [*map(self.info.get_kept_count, layouts, budgets)]
        data["num_kept"] = torch.tensor([count.tokens for count in counts])
        data["is_undropped"] = torch.tensor([count.is_undropped for count in counts])
        return data

    @override
    def _merge_mm_kwargs(
        self,
        cache: BaseMultiModalProcessorCache,
        mm_hashes: Mapping[str, Sequence[str]],
        mm_is_cached: Mapping[str, Sequence[bool]],
        mm_missing_kwargs: MultiModalKwargsItems,
        mm_missing_prompt_updates: Mapping[str, Any],
    ) -> tuple[MultiModalKwargsItems, Mapping[str, Any]]:
        """Looks at new images before the cache in shared memory takes their data."""
        hashes, are_cached = mm_hashes.get("image", ()), mm_is_cached.get("image", ())
        missing = [
            mm_hash
            for mm_hash, is_cached in zip(hashes, are_cached, strict=True)
            if not is_cached
        ]
        self._images.remember(missing, mm_missing_kwargs.get("image", ()))
        merged: tuple[MultiModalKwargsItems, Mapping[str, Any]]
        merged = super()._merge_mm_kwargs(
            cache=cache,
            mm_hashes=mm_hashes,
            mm_is_cached=mm_is_cached,
            mm_missing_kwargs=mm_missing_kwargs,
            mm_missing_prompt_updates=mm_missing_prompt_updates,
        )
        return merged

    @override
    def _get_mm_fields_config(
        self,
        hf_inputs: BatchFeature,
        hf_processor_mm_kwargs: Mapping[str, object],
    ) -> Mapping[str, MultiModalFieldConfig]:
        """Adds `num_kept` and `is_undropped`, which the worker reads on the CPU."""
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        on_cpu = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return {**fields, "num_kept": on_cpu, "is_undropped": on_cpu}

    @override
    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        """`num_kept` placeholders for an image that carries it."""
        updates = super()._get_prompt_updates(
            mm_items=mm_items,
            hf_processor_mm_kwargs=hf_processor_mm_kwargs,
            out_mm_kwargs=out_mm_kwargs,
        )

        def with_num_kept(update: PromptReplacement) -> PromptReplacement:
            def replacement(item_idx: int) -> list[int] | PromptUpdateDetails:
                # Upstream fills out_mm_kwargs only after it has called this method.
                num_kept = out_mm_kwargs["image"][item_idx].get("num_kept")
                if num_kept is None:
                    return update.replacement(item_idx)
                return self.placeholders(update, int(num_kept.data))

            return replace(update, replacement=replacement)

        return [
            with_num_kept(update) if update.modality == "image" else update
            for update in updates
        ]

    def placeholders(
        self, update: PromptReplacement, count: int
    ) -> list[int] | PromptUpdateDetails:
        """Token ids of an image that keeps `count` tokens.

        Args:
            update: upstream's.
            count: `K`.
        """
        (image_token_id,) = update.target
        return [image_token_id] * count

    @abstractmethod
    def refuse_kwargs(self, kwargs: Mapping[str, object]) -> None:
        """Raises `VLLMValidationError` for processor kwargs of a request that cannot be
        had while tokens are dropped, before HF's processor spends time on them."""

    @abstractmethod
    def own_pixels(self, pixel_values: Any, layouts: Sequence[Layout]) -> Any:
        """HF's `pixel_values` of a prompt's images, those of each its own alone.

        Raises:
            VLLMValidationError: pixels that the tower cannot encode.
        """
