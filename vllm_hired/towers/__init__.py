"""Vision towers: what a selection method may look at. No vLLM here.

Adding a tower is one row, if its layers are where CLIP's are.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """A kind of vision tower.

    Attributes:
        has_cls: whether a [CLS] token comes before the patches.
        feature_strategy: the `vision_feature_select_strategy` that gives all patches
            and nothing else.
    """

    has_cls: bool
    feature_strategy: str


TOWERS = {
    "clip_vision_model": Tower(has_cls=True, feature_strategy="default"),
    "siglip_vision_model": Tower(has_cls=False, feature_strategy="full"),
}
"""HF vision config's `model_type` -> tower."""
