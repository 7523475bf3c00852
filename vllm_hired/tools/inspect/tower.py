"""The vision tower of a checkpoint alone, and what it attends to in one image."""

import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, AutoProcessor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from vllm_hired.budget import KeptCount, kept_count
from vllm_hired.config import HiredConfig, num_tower_layers
from vllm_hired.errors import HiredConfigError
from vllm_hired.layouts import Layout, image_layout
from vllm_hired.selectors import make_selector
from vllm_hired.selectors.base import Selector
from vllm_hired.selectors.probe import needs_problem
from vllm_hired.tools.checkpoint import CheckpointError, read_config
from vllm_hired.towers import TOWERS, tower_of, tower_type
from vllm_hired.towers.observation import QUANTITIES, Observation
from vllm_hired.towers.reading import observations, readings_for


@dataclass(frozen=True)
class Inspection:
    """One image through one tower.

    Attributes:
        name: of the image.
        model: of the checkpoint.
        width: of the image in pixels.
        height: likewise.
        layout: of the image.
        partitions: `[P, 3, H, W]` float32 in [0, 1], as the tower sees them.
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
    model: str, name: str, image: Image.Image, settings: Mapping[str, object]
) -> Inspection:
    """Runs the tower, float32 on the CPU, without vLLM and without the LLM.

    Raises:
        CheckpointError: the checkpoint has no such tower, or not all of it.
        HiredConfigError: settings that cannot be used with it.
        ImageSizeError: an image with nothing to select from.
    """
    hf_config = read_config(model)
    if tower_of(hf_config).feature_strategy is None:
        raise CheckpointError(
            f"{model}: inspect cannot show the family {hf_config.model_type}"
        )
    hired = HiredConfig.from_hf_config(with_settings(hf_config, settings))
    problem = needs_problem(hired.selector, tower_type(hf_config), hired.attention)
    if problem is not None:
        raise HiredConfigError(*problem)
    layout = image_layout(hf_config, image.height, image.width)
    try:
        processor = AutoProcessor.from_pretrained(model).image_processor
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model} has no image processor: {error}") from error
    pixels = processor([image], return_tensors="pt")["pixel_values"][0]
    partitions = pixels.view(-1, *pixels.shape[-3:]).float()
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    has_cls = tower_of(hf_config).has_cls
    # Without [CLS] there is no other attention to show.
    hired = replace(hired, attention=hired.attention if has_cls else "received")
    return Inspection(
        name=name,
        model=Path(model).resolve().name if Path(model).is_dir() else model,
        width=image.width,
        height=image.height,
        layout=layout,
        partitions=(partitions * std + mean).clamp(0, 1),
        observation=observe(load_tower(model, hf_config), partitions, hired),
        attention=hired.attention,
        hf_config=hf_config,
    )


@torch.inference_mode()
def observe(tower: Any, partitions: Tensor, hired: HiredConfig) -> Observation:
    """All that any method may look at in `[P, 3, H, W]` partitions."""
    kind = TOWERS[tower.config.model_type]
    layers = inner_tower(tower).encoder.layers
    seen: dict[tuple[int, str], Tensor] = {}

    def watch(layer: int, name: str) -> None:
        def record(module: Any, inputs: Any, output: Tensor) -> None:
            seen[layer, name] = output

        getattr(layers[layer].self_attn, name).register_forward_hook(record)

    for layer in (hired.init_layer, hired.final_layer):
        for name in ("q_proj", "k_proj"):
            watch(layer, name)
    hidden = tower(partitions, output_hidden_states=True).hidden_states[-1]
    readings = readings_for(
        QUANTITIES, hired.attention, hired.init_layer, hired.final_layer
    )
    self_attn = layers[hired.final_layer].self_attn
    measured = {
        name: reading.measure(
            seen[reading.layer, "q_proj"],
            seen[reading.layer, "k_proj"],
            self_attn.num_heads,
            self_attn.scale,
        )
        for name, reading in readings.items()
    }
    features = hidden[:, 1:] if kind.has_cls else hidden
    (observation,) = observations(
        features, measured, self_attn.num_heads, QUANTITIES, [len(partitions)]
    )
    return observation


def load_tower(model: str, hf_config: Any) -> Any:
    """The layers that run, in float32.

    Raises:
        CheckpointError: weights are missing or have other shapes.
    """
    config = deepcopy(hf_config.vision_config)
    config.num_hidden_layers = num_tower_layers(hf_config)
    tower = AutoModel.from_config(config).eval()
    own = inner_tower(tower).state_dict()
    found = {name: tensor for name, tensor in tower_weights(model) if name in own}
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{model} does not fit its config: {name} of the vision tower is "
                f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            )
    # Applied to the last layer's output, which nobody reads here.
    unread = ("post_layernorm", "head.")
    missing = [n for n in own if n not in found and not n.startswith(unread)]
    missing = [n for n in missing if not n.endswith("position_ids")]
    if missing:
        raise CheckpointError(
            f"{model} lacks {len(missing)} tensors of its vision tower in safetensors "
            f"files, such as {missing[0]}"
        )
    inner_tower(tower).load_state_dict(found, strict=False)
    return tower


def tower_weights(model: str) -> Iterator[tuple[str, Tensor]]:
    """(Name inside the tower, float32 tensor), from the shards that hold any."""
    pattern = re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)")
    index = _file(model, SAFE_WEIGHTS_INDEX_NAME)
    files = {SAFE_WEIGHTS_NAME}
    if index is not None:
        shards = json.loads(Path(index).read_text())["weight_map"]
        files = {file for name, file in shards.items() if pattern.fullmatch(name)}
    for file in sorted(files):
        path = _file(model, file)
        if path is None:
            raise CheckpointError(f"{model} has no {file}")
        with safe_open(path, "pt") as tensors:
            names: list[str] = tensors.keys()
            for name in names:
                if match := pattern.fullmatch(name):
                    yield match[1], tensors.get_tensor(name).float()


def _file(model: str, name: str) -> str | None:
    path: str | None = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False
    )
    return path


def inner_tower(tower: Any) -> Any:
    """Some versions of transformers nest the tower one level deeper."""
    return getattr(tower, "vision_model", tower)
