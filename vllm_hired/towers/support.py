"""What a model's HF config says of its tower: the layers that run, and whether they can
be read. No torch here."""

from typing import Any

from vllm_hired.towers import TOWERS, tower_of, tower_type


def num_tower_layers(hf_config: Any) -> int:
    """How many layers of the vision tower run."""
    return tower_of(hf_config).num_layers(hf_config)


def ranking_layers(hf_config: Any) -> list[int]:
    """Layers of the tower whose attention can rank the cells of a whole partition.

    All that run; in Qwen2.5-VL those of `fullatt_block_indexes` alone. Its other layers
    attend within windows, so a query and a key of two windows were never compared.
    """
    whole = getattr(hf_config.vision_config, "fullatt_block_indexes", None)
    if whole is not None:
        return sorted(int(layer) for layer in whole)
    return [*range(num_tower_layers(hf_config))]


def unsupported_tower(hf_config: Any) -> tuple[str, object, str] | None:
    """Why this model's tower cannot be read, or None.

    As the arguments of a `HiredConfigError`, so that each refusal is a new one.
    """
    model_type = tower_type(hf_config)
    tower = TOWERS.get(model_type)
    if tower is None:
        return (
            "vision_config.model_type",
            model_type,
            f"vllm_hired can read the towers {', '.join(TOWERS)}; serve this model "
            "without hired_* settings",
        )
    version = getattr(hf_config, "ps_version", tower.ps_version)
    if tower.ps_version is not None and version != tower.ps_version:
        return (
            "ps_version",
            version,
            f'with a budget it must be "{tower.ps_version}", which keeps cells in the '
            "order of rows",
        )
    if tower.feature_strategy is None:
        return None
    strategy = hf_config.vision_feature_select_strategy
    if strategy != tower.feature_strategy:
        return (
            "vision_feature_select_strategy",
            strategy,
            f'with a budget it must be "{tower.feature_strategy}", which gives all '
            f"patches of a {model_type} and nothing else",
        )
    layer = hf_config.vision_feature_layer
    if not isinstance(layer, int):
        return (
            "vision_feature_layer",
            layer,
            "with a budget it must be one layer, not a list of layers",
        )
    if num_tower_layers(hf_config) < 1:
        return (
            "vision_feature_layer",
            layer,
            "no layer of the vision tower runs, so there is no attention to read",
        )
    return None
