"""Vision towers: what a selection method may look at. No vLLM here.

Adding a tower is one row, if its layers are where CLIP's are.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tower:
    """A kind of vision tower.

    Attributes:
        has_cls: whether a [CLS] token comes before the patches.
        feature_strategy: the `vision_feature_select_strategy` that gives all patches
            and nothing else; None where a model has no such setting.
        has_tiles: whether an image may be encoded in several pieces.
        attention: `hired_attention` where it is not set.
    """

    has_cls: bool
    feature_strategy: str | None
    has_tiles: bool = True
    attention: str = "cls"


_QWEN = Tower(
    has_cls=False, feature_strategy=None, has_tiles=False, attention="received"
)

TOWERS = {
    "clip_vision_model": Tower(has_cls=True, feature_strategy="default"),
    "siglip_vision_model": Tower(has_cls=False, feature_strategy="full"),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
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
