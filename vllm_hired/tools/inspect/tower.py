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

INSPECTED = {
    "clip_vision_model": _PARTITIONS,
    "siglip_vision_model": _PARTITIONS,
    "qwen2_vl": _GRID,
    "qwen2_5_vl": _GRID,
    "qwen3_vl": _GRID,
    "qwen3_vl_moe": _GRID,
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
            group is the name inside the module that `make` gives.
        unread: beginnings of names of tensors that nothing here is computed from, and
            that a checkpoint may lack.
        hf_config: of the model.
        module: what `make` gave, with the checkpoint's weights.
    """

    weight_names: ClassVar[re.Pattern[str]]
    unread: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: str, hf_config: Any) -> None:
        """Raises `CheckpointError`: weights are missing or have other shapes."""
        self.hf_config = hf_config
        self.module: Any = self.make().float().eval()
        load_weights(self.module, model, self.weight_names, self.unread)

    @abstractmethod
    def make(self) -> nn.Module:
        """The tower with the layers that run, weights to be loaded."""

    @abstractmethod
    def attentions(self) -> Sequence[nn.Module]:
        """By layer, the modules that call HF's attention function."""

    @abstractmethod
    def see(self, image_processor: Any, image: Image.Image) -> SeenImage:
        """What HF's processor makes of an image."""

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


def load_weights(
    module: nn.Module, model: str, names: re.Pattern[str], unread: tuple[str, ...]
) -> None:
    """Loads a checkpoint's tensors into its tower.

    Args:
        module: the tower.
        model: directory, or a model id.
        names: see `InspectedTower`.
        unread: likewise.

    Raises:
        CheckpointError: tensors are missing or have other shapes.
    """
    own = module.state_dict()
    found = {name: t for name, t in tower_weights(model, names) if name in own}
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{model} does not fit its config: {name} of the vision tower is "
                f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            )
    missing = [n for n in own if n not in found and not n.startswith(unread)]
    missing = [n for n in missing if not n.endswith("position_ids")]
    if missing:
        raise CheckpointError(
            f"{model} lacks {len(missing)} tensors of its vision tower in safetensors "
            f"files, such as {missing[0]}"
        )
    module.load_state_dict(found, strict=False)


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
