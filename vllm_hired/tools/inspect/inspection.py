"""One image through the vision tower of a checkpoint, and what of it is kept."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vllm_hired.budget import KeptCount, kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.errors import HiredConfigError
from vllm_hired.layouts import Layout, image_layout
from vllm_hired.selectors import make_selector
from vllm_hired.selectors.base import Selector
from vllm_hired.selectors.probe import needs_problem
from vllm_hired.tools.checkpoint import (
    NO_LIMITS,
    ImageLimits,
    read_config,
    with_limits,
)
from vllm_hired.tools.inspect.tower import inspected_tower, observe
from vllm_hired.towers import tower_of, tower_type
from vllm_hired.towers.observation import Observation


@dataclass(frozen=True)
class Inspection:
    """One image through one tower.

    Attributes:
        name: of the image.
        model: of the checkpoint.
        width: of the image in pixels.
        height: likewise.
        layout: of the image.
        partitions: `[P, 3, H, W]` float32 in [0, 1], as the tower sees them; the cells
            of each divide it evenly.
        observation: of its cells.
        attention: which attention that holds, a value of `hired_attention`.
        hf_config: of the checkpoint.
    """

    name: str
    model: str
    width: int
    height: int
    layout: Layout
    partitions: Tensor
    observation: Observation
    attention: str
    hf_config: Any

    def configured(self, settings: Mapping[str, object]) -> Any:
        """The checkpoint's HF config with `hired_*` settings."""
        return with_settings(self.hf_config, settings)

    def kept_count(self, hired: HiredConfig) -> KeptCount:
        """`K`, and whether nothing is dropped."""
        return kept_count(self.layout, hired.budget, hired.token_cap)

    def select(self, hired: HiredConfig) -> Tensor:
        """`[K]` int64 flat cell indices, in sequence order; without dropping, all."""
        kept = min(self.kept_count(hired).tokens, self.layout.num_selectable)
        selector = make_selector(hired.selector, hired.method)
        observation = self.seen_by(selector)
        return selector.select(observation, self.layout, kept, hired.alpha).cells

    def seen_by(self, selector: Selector) -> Observation:
        """What an engine observes for a method, and nothing else."""
        needs = selector.needs_on(tower_of(self.hf_config))
        seen = self.observation.quantities.items()
        return Observation(
            self.observation.device,
            {name: values for name, values in seen if name in needs},
        )


def with_settings(hf_config: Any, settings: Mapping[str, object]) -> Any:
    """A copy of `hf_config` with `hired_*` settings."""
    hf_config = deepcopy(hf_config)
    hf_config.update(dict(settings))
    return hf_config


def inspect_image(
    model: str,
    name: str,
    image: Image.Image,
    settings: Mapping[str, object],
    limits: ImageLimits = NO_LIMITS,
) -> Inspection:
    """Runs the tower, float32 on the CPU, without vLLM and without the LLM.

    Args:
        model: directory, or a model id.
        name: of the image.
        image: in RGB.
        settings: `hired_*`.
        limits: of images, instead of those that the checkpoint's files have.

    Raises:
        CheckpointError: the checkpoint has no such tower, or not all of it.
        HiredConfigError: settings that cannot be used with it.
        ImageSizeError: an image with nothing to select from.
    """
    hf_config = with_limits(model, read_config(model), limits)
    hired = HiredConfig.from_hf_config(with_settings(hf_config, settings))
    problem = needs_problem(hired.selector, tower_type(hf_config), hired.attention)
    if problem is not None:
        raise HiredConfigError(*problem)
    # Refuses what the processor could not make an image of.
    image_layout(hf_config, image.height, image.width)
    tower = inspected_tower(model, hf_config)
    seen = tower.see(image)
    # Without [CLS] there is no other attention to show.
    has_cls = tower_of(hf_config).has_cls
    hired = replace(hired, attention=hired.attention if has_cls else "received")
    return Inspection(
        name=name,
        model=Path(model).resolve().name if Path(model).is_dir() else model,
        width=image.width,
        height=image.height,
        layout=seen.layout,
        partitions=seen.pictures.clamp(0, 1),
        observation=observe(tower, seen, hired),
        attention=hired.attention,
        hf_config=hf_config,
    )
