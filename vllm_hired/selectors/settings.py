"""Settings that belong to one method: fields of its dataclass, read and validated.

A field `alpha` of the method `scope` is the setting `hired_scope_alpha`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vllm_hired.errors import PREFIX, HiredConfigError


@dataclass(frozen=True)
class Number:
    """What a numeric setting may be.

    Attributes:
        low: the least value allowed.
        high: the greatest value allowed.
        about: what it does, in one sentence.
    """

    low: float
    high: float
    about: str

    def read(self, key: str, value: object) -> float:
        """`value` as a number.

        Raises:
            HiredConfigError: it is none, or lies outside the range.
        """
        allowed = f"a number in [{self.low:g}, {self.high:g}]"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise HiredConfigError(key, value, allowed)
        # NaN lies in no range.
        if not self.low <= value <= self.high:
            raise HiredConfigError(key, value, allowed)
        return float(value)


def number(default: float, low: float, high: float, about: str) -> Any:
    """A field of a method's dataclass that users may set; see `Number`."""
    return field(default=default, metadata={"setting": Number(low, high, about)})


def method_settings(method: type, name: str) -> dict[str, tuple[str, Number]]:
    """Keys of a method's settings -> (field, what is allowed).

    Args:
        method: a subclass of `Selector`, a dataclass if it has settings.
        name: of the method, as `hired_selector` has it.
    """
    if not hasattr(method, "__dataclass_fields__"):
        return {}
    return {
        f"{PREFIX}{name}_{f.name}": (f.name, f.metadata["setting"])
        for f in fields(method)
        if "setting" in f.metadata
    }


def read_method_settings(
    method: type, name: str, given: Mapping[str, object]
) -> dict[str, float]:
    """Fields of a method that were set, validated.

    Args:
        method: a subclass of `Selector`.
        name: of the method.
        given: settings by their keys; those of others are ignored.

    Raises:
        HiredConfigError: a value outside what is allowed.
    """
    return {
        field_name: allowed.read(key, given[key])
        for key, (field_name, allowed) in method_settings(method, name).items()
        if key in given
    }
