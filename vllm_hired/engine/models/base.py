"""vLLM's worker side: pixels -> kept embeddings. The same for every architecture."""

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import SupportsMultiModal

from vllm_hired.config import HiredConfig, given_settings
from vllm_hired.engine.contract import contract_problem
from vllm_hired.engine.inputs import input_layouts
from vllm_hired.errors import HiredConfigError
from vllm_hired.layouts import Layout
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.base import Selection
from vllm_hired.selectors.probe import GuardedSelector
from vllm_hired.towers import tower_of
from vllm_hired.towers.observation import Observation, Quantity
from vllm_hired.towers.reading import Reading, readings_for

# Under "vllm", where vLLM has set up its handlers.
logger = init_logger(f"vllm.{__name__}")


class HiredModelMixin(SupportsMultiModal):
    """Gives as many embeddings for an image as it is to keep.

    Images that carry `num_kept` give that many; all others take upstream's way
    untouched. How a family's tower is run and read is up to `observe`, `_pick` and
    `_embed_kept`.
    """

    @override
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.model_config = vllm_config.model_config
        self.hired = HiredConfig.from_hf_config(self.config)
        problem = contract_problem(type(self))
        if problem is not None and given_settings(self.config):
            raise HiredConfigError("hired_budget", float(self.hired.budget), problem)
        self.selector = make_selector(self.hired.selector, self.hired.method)
        if self.hired.selector not in SELECTORS:
            self.selector = GuardedSelector(self.selector)
        self.tower_kind = tower_of(self.config)
        scheduler = vllm_config.scheduler_config
        # vLLM packs images into a call by the tokens they keep, so a small budget
        # packs many more cells than memory was profiled for.
        self.max_cells_per_forward: float = scheduler.max_num_encoder_input_tokens
        if _has_tower_lora(vllm_config):
            # The adapters' token mapping covers the call's images in one forward.
            self.max_cells_per_forward = math.inf
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
        """Gives a row for each token of each item: `num_kept` where an image carries
        it."""
        num_kept = kwargs.pop("num_kept", None)
        is_undropped = kwargs.pop("is_undropped", None)
        if num_kept is None:
            return list(super().embed_multimodal(**kwargs))

        counts = [int(count) for count in num_kept]
        layouts = input_layouts(self.config, kwargs)
        undropped = [image for image, stays in enumerate(is_undropped) if stays]
        dropping = [image for image, stays in enumerate(is_undropped) if not stays]

        embeddings: dict[int, Tensor] = {}
        if undropped:
            stock = super().embed_multimodal(**self._pick(kwargs, undropped))
            embeddings |= zip(undropped, stock, strict=True)
        if dropping:
            kept = self._embed_kept(
                self._pick(kwargs, dropping),
                [layouts[image] for image in dropping],
                [counts[image] for image in dropping],
            )
            embeddings |= zip(dropping, kept, strict=True)
        for image, count in enumerate(counts):
            # vLLM cuts too many rows silently and dies of too few.
            assert len(embeddings[image]) == count, (embeddings[image].shape, count)
        return [embeddings[image] for image in range(len(counts))]

    def select(
        self, images: Any, layouts: list[Layout], counts: list[int]
    ) -> tuple[Any, list[Selection]]:
        """Encodes images in one tower forward and chooses the cells to keep.

        Args:
            images: as `observe` takes them.
            layouts: per image.
            counts: `K` per image.

        Returns:
            features as `observe` gives them, and a selection per image.
        """
        features, observations = self.observe(images, layouts)
        return features, [
            self.selector.select(observation, layout, count, self.hired.alpha)
            for observation, layout, count in zip(
                observations, layouts, counts, strict=True
            )
        ]

    def _wanted(self) -> tuple[Collection[Quantity], dict[Quantity, Reading]]:
        """What the selector needs to see, and how to get it of the tower's layers."""
        needs = self.selector.needs_on(self.tower_kind)
        return needs, readings_for(
            needs, self.hired.attention, self.hired.init_layer, self.hired.final_layer
        )

    @abstractmethod
    def observe(
        self, images: Any, layouts: list[Layout]
    ) -> tuple[Any, list[Observation]]:
        """Features of one tower forward, and per image what the selector needs to see
        of it."""

    @abstractmethod
    def _pick(self, inputs: Mapping[str, Any], images: Sequence[int]) -> dict[str, Any]:
        """Of the processed inputs of a batch of images those of some."""

    @abstractmethod
    def _embed_kept(
        self, inputs: dict[str, Any], layouts: list[Layout], counts: list[int]
    ) -> Sequence[Tensor]:
        """For each image as many rows as its count.

        Args:
            inputs: processed, as upstream's `embed_multimodal` takes them.
            layouts: per image.
            counts: `K` per image.
        """

    def _forwards(self, layouts: list[Layout]) -> Iterator[slice]:
        """Consecutive images that share a tower forward: at least one, and together
        at most `max_cells_per_forward` cells."""
        start = cells = 0
        for image, layout in enumerate(layouts):
            cells += layout.num_cells
            if image > start and cells > self.max_cells_per_forward:
                yield slice(start, image)
                start, cells = image, layout.num_cells
        yield slice(start, len(layouts))


def _has_tower_lora(vllm_config: VllmConfig) -> bool:
    lora = vllm_config.lora_config
    return lora is not None and lora.enable_tower_connector_lora
