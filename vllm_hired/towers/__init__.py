"""Vision towers: what a selection method may look at. No vLLM here.

Adding a tower is one row, if its layers are where CLIP's are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


def _up_to_feature_layer(hf_config: Any) -> int:
    """LLaVA's: the last one that runs gives the features."""
    layer: int = hf_config.vision_feature_layer
    total: int = hf_config.vision_config.num_hidden_layers
    return layer if layer >= 0 else total + layer + 1


def _depth(hf_config: Any) -> int:
    """Qwen-VL's: all."""
    return int(hf_config.vision_config.depth)


def _up_to_select_layer(hf_config: Any) -> int:
    """InternVL's: up to `select_layer`, which HF's format does not have."""
    layer: int = getattr(hf_config, "select_layer", -1)
    total: int = hf_config.vision_config.num_hidden_layers
    return layer + 1 if layer >= 0 else total + layer + 1


@dataclass(frozen=True)
class Tower:
    """A kind of vision tower.

    Attributes:
        has_cls: whether a [CLS] token comes before the patches.
        feature_strategy: the `vision_feature_select_strategy` that gives all patches
            and nothing else; None where a model has no such setting.
        ps_version: the `ps_version` that keeps cells in the order of rows; None where a
            model has no such setting.
        has_tiles: whether an image may be encoded in several pieces.
        limits: what the processor keeps within limits that its file or a request gives:
            an image's pixels, or how many tiles it has.
        attention: `hired_attention` where it is not set.
        num_layers: HF config of a model -> how many layers of its tower run.
        last_cls_layer: `hired_final_layer` where it is not set and [CLS] attention
            ranks, from the end of the layers that run: the last one whose [CLS] output
            a later layer read when the tower was trained.
    """

    has_cls: bool
    feature_strategy: str | None
    ps_version: str | None = None
    has_tiles: bool = True
    limits: Literal["pixels", "tiles"] | None = None
    attention: str = "cls"
    num_layers: Callable[[Any], int] = _up_to_feature_layer
    last_cls_layer: int = -1


_QWEN = Tower(
    has_cls=False,
    feature_strategy=None,
    has_tiles=False,
    limits="pixels",
    attention="received",
    num_layers=_depth,
)

# All layers run, so nothing reads what the last one makes of [CLS].
_INTERN_VIT = Tower(
    has_cls=True,
    feature_strategy=None,
    ps_version="v2",
    limits="tiles",
    num_layers=_up_to_select_layer,
    last_cls_layer=-2,
)

TOWERS = {
    "clip_vision_model": Tower(has_cls=True, feature_strategy="default"),
    "siglip_vision_model": Tower(has_cls=False, feature_strategy="full"),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "internvl_vision": _INTERN_VIT,
    "intern_vit_6b": _INTERN_VIT,
}
"""`tower_type` of a model -> tower."""


def tower_type(hf_config: Any) -> str:
    """The HF vision config's `model_type`; the model's own where that names a tower
    that no other model has, since published vision configs then leave theirs out."""
    model_type: str = hf_config.model_type
    return model_type if model_type in TOWERS else hf_config.vision_config.model_type


def tower_of(hf_config: Any) -> Tower:
    """A model's tower. One that cannot be read is asked for nothing."""
    return TOWERS.get(tower_type(hf_config), Tower(has_cls=False, feature_strategy=""))
