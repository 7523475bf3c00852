"""Values of settings: each is read as its user wrote it, or refused by name, as a
`HiredConfigError`."""

from collections.abc import Sequence
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from vllm_hired.errors import HiredConfigError


def read_budget(value: object, setting: str = "hired_budget") -> Fraction:
    """A budget rate as the decimal that the user wrote, exactly.

    Raises:
        HiredConfigError: not a number in (0, 1].
    """
    allowed = "a number in (0, 1]"
    budget = read_fraction(setting, value, allowed)
    if budget == 0:
        raise HiredConfigError(setting, value, allowed)
    return budget


def read_name(setting: str, value: object, names: Sequence[str]) -> str:
    """One of `names`; a refusal lists them, the closest first."""
    if isinstance(value, str) and value in names:
        return value
    near = get_close_matches(str(value), names, n=len(names), cutoff=0.5)
    ordered = [*near, *(name for name in names if name not in near)]
    raise HiredConfigError(setting, value, f"it must be one of {', '.join(ordered)}")


def read_fraction(setting: str, value: object, allowed: str) -> Fraction:
    """A number in [0, 1] as the decimal that the user wrote, exactly.

    Args:
        setting: its name.
        value: what was given.
        allowed: what a refusal says is allowed.
    """
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise HiredConfigError(setting, value, allowed)
    # NaN lies in no range.
    if not 0 <= value <= 1:
        raise HiredConfigError(setting, value, allowed)
    # str(float()) and not value: a numpy float prints its type too.
    return Fraction(str(float(value)))


def read_count(setting: str, value: object) -> int:
    """A whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HiredConfigError(setting, value, "a whole number from 1 up")
    return value


def read_flag(setting: str, value: object) -> bool:
    """True or false, and no number or text that might mean it."""
    if not isinstance(value, bool):
        raise HiredConfigError(setting, value, "true or false")
    return value


def read_layer(
    setting: str, given: dict[str, Any], default: int, layers: Sequence[int]
) -> int:
    """One of `layers`; by default that at the place `default` among them, or the
    first."""
    if setting not in given:
        return layers[max(default, -len(layers))] if layers else default
    value = given[setting]
    if isinstance(value, bool) or not isinstance(value, int) or value not in layers:
        consecutive = [*layers] == [*range(len(layers))]
        raise HiredConfigError(
            setting,
            value,
            f"the vision tower runs layers 0 to {len(layers) - 1} "
            "(vision_feature_layer decides which is the last)"
            if consecutive
            else f"its layers with full attention are {', '.join(map(str, layers))}",
        )
    return value
