"""The vision tower of a checkpoint alone, in HF transformers.

`INSPECTED` says which class runs a kind of tower. Adding one is one row, and a subclass
of `InspectedTower` where no class there runs it yet.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from vllm_hired.config import HiredConfig
from vllm_hired.layouts import Layout
from vllm_hired.tools.checkpoint import CheckpointError
from vllm_hired.towers import tower_type
from vllm_hired.towers.observation import QUANTITIES, Observation, Quantity
from vllm_hired.towers.reading import readings_for

_PARTITIONS = "vllm_hired.tools.inspect.partitions:PartitionsTower"
_GRID = "vllm_hired.tools.inspect.grids:GridTower"
_INTERNVL = "vllm_hired.tools.inspect.internvl"

INSPECTED = {
    "clip_vision_model": _PARTITIONS,
    "siglip_vision_model": _PARTITIONS,
    "qwen2_vl": _GRID,
    "qwen2_5_vl": _GRID,
    "qwen3_vl": _GRID,
    "qwen3_vl_moe": _GRID,
    "internvl_vision": f"{_INTERNVL}:InternVLTower",
    "intern_vit_6b": f"{_INTERNVL}:InternVLChatTower",
}
"""`tower_type` of a model -> `module:Class`, imported when used."""


@dataclass(frozen=True)
class SeenImage:
    """An image as the tower gets it.

    Attributes:
        layout: of the image.
        pictures: `[P, 3, H, W]` float32, the partitions in RGB. Cells divide each
            evenly, in the rows and columns of the layout.
        inputs: arguments of the tower's forward.
    """

    layout: Layout
    pictures: Tensor
    inputs: Mapping[str, Any]


class InspectedTower(ABC):
    """A checkpoint's tower: how it is made, given an image, and read.

    Attributes:
        weight_names: matches the names of the tower's tensors in published files; its
            group is the name inside the tower.
        unread: beginnings of names of tensors that nothing here is computed from, and
            that a checkpoint may lack.
        hf_config: of the model.
        image_processor: of the checkpoint.
        module: what `make` gave, with the checkpoint's weights.
    """

    weight_names: ClassVar[re.Pattern[str]]
    unread: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: str, hf_config: Any) -> None:
        """Raises `CheckpointError`: there is no image processor, or weights are missing
        or have other shapes."""
        self.hf_config = hf_config
        self.image_processor = self.load_image_processor(model)
        self.module: Any = self.make().float().eval()
        load_weights(self, model)

    def load_image_processor(self, model: str) -> Any:
        """HF's.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        try:
            return AutoProcessor.from_pretrained(model).image_processor
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{model} has no image processor: {error}") from error

    @abstractmethod
    def make(self) -> nn.Module:
        """The tower with the layers that run, weights to be loaded."""

    @abstractmethod
    def attentions(self) -> Sequence[nn.Module]:
        """By layer, the modules that call HF's attention function."""

    def converted(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """A tensor of a published tower under its name in the module that `make` gives,
        or several that it is made of."""
        return {name: tensor}

    @abstractmethod
    def see(self, image: Image.Image) -> SeenImage:
        """What the image processor makes of an image."""

    @abstractmethod
    def features(self, output: Any) -> Tensor:
        """`[P, N, D]`, or `[N, D]` of one partition: what a method may look at, of the
        output of the tower's forward."""

    @abstractmethod
    def observation(
        self, seen: SeenImage, features: Tensor, measured: Mapping[Quantity, Tensor]
    ) -> Observation:
        """All that a method may look at.

        Args:
            seen: the image.
            features: of it.
            measured: by name, of the tower's tokens, summed over heads, as
                `towers.reading` has it.
        """


def by_channel(values: Sequence[float]) -> Tensor:
    """`[3, 1, 1]`: a number for each colour."""
    return torch.tensor(values).view(3, 1, 1)


def inspected_tower(model: str, hf_config: Any) -> InspectedTower:
    """The tower of a checkpoint.

    Raises:
        CheckpointError: no class here runs it, or its weights are not all there.
    """
    name = tower_type(hf_config)
    if name not in INSPECTED:
        raise CheckpointError(f"{model}: inspect cannot show the vision tower {name}")
    module, _, class_name = INSPECTED[name].partition(":")
    tower: InspectedTower = getattr(import_module(module), class_name)(model, hf_config)
    return tower


@torch.inference_mode()
def observe(tower: InspectedTower, seen: SeenImage, hired: HiredConfig) -> Observation:
    """All that any method may look at in an image."""
    layers = {
        module: layer
        for layer, module in enumerate(tower.attentions())
        if layer in (hired.init_layer, hired.final_layer)
    }
    met: dict[int, tuple[Tensor, Tensor, int, float]] = {}
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if module in layers:
            by_token = [x.transpose(1, 2).flatten(2) for x in (query, key)]
            met[layers[module]] = (*by_token, query.shape[1], kwargs["scaling"])
        return stock(module, query, key, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("vllm_hired_inspect", attend)
    tower.module.config._attn_implementation = "vllm_hired_inspect"
    features = tower.features(tower.module(**seen.inputs))
    readings = readings_for(
        QUANTITIES, hired.attention, hired.init_layer, hired.final_layer
    )
    measured = {
        name: reading.measure(*met[reading.layer]) for name, reading in readings.items()
    }
    return tower.observation(seen, features, measured)


def load_weights(tower: InspectedTower, model: str) -> None:
    """Loads a checkpoint's tensors into its tower.

    Args:
        tower: with its module made.
        model: directory, or a model id.

    Raises:
        CheckpointError: tensors are missing or have other shapes.
    """
    own = tower.module.state_dict()
    found = {
        name: tensor
        for published in tower_weights(model, tower.weight_names)
        for name, tensor in tower.converted(*published).items()
        if name in own
    }
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{model} does not fit its config: {name} of the vision tower is "
                f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            )
    missing = [n for n in own if n not in found and not n.startswith(tower.unread)]
    missing = [n for n in missing if not n.endswith("position_ids")]
    if missing:
        raise CheckpointError(
            f"{model} lacks {len(missing)} tensors of its vision tower in safetensors "
            f"files, such as {missing[0]}"
        )
    tower.module.load_state_dict(found, strict=False)


def tower_weights(model: str, names: re.Pattern[str]) -> Iterator[tuple[str, Tensor]]:
    """(Name inside the tower, float32 tensor), from the shards that hold any."""
    index = _file(model, SAFE_WEIGHTS_INDEX_NAME)
    files = {SAFE_WEIGHTS_NAME}
    if index is not None:
        shards = json.loads(Path(index).read_text())["weight_map"]
        files = {file for name, file in shards.items() if names.fullmatch(name)}
    for file in sorted(files):
        path = _file(model, file)
        if path is None:
            raise CheckpointError(f"{model} has no {file}")
        with safe_open(path, "pt") as tensors:
            keys: list[str] = tensors.keys()
            for name in keys:
                if match := names.fullmatch(name):
                    yield match[1], tensors.get_tensor(name).float()


def _file(model: str, name: str) -> str | None:
    path: str | None = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False
    )
    return path
