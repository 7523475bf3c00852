"""Selection methods, one file each. Adding one is one file and one row here.

Packages of others add methods by the entry-point group `vllm_hired.selectors`. A
checkpoint's config.json can name a method and never code.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from vllm_hired.errors import PREFIX, HiredConfigError

if TYPE_CHECKING:
    from vllm_hired.selectors.base import Selector

SELECTORS = {
    "hired": "vllm_hired.selectors.hired:HiredSelector",
    "even": "vllm_hired.selectors.even:EvenSelector",
    "thumbnail": "vllm_hired.selectors.thumbnail:ThumbnailSelector",
    "uniform": "vllm_hired.selectors.uniform:UniformSelector",
    "random": "vllm_hired.selectors.random:RandomSelector",
    "fastervlm": "vllm_hired.selectors.fastervlm:FasterVLMSelector",
    "globalcom2": "vllm_hired.selectors.globalcom2:GlobalCom2Selector",
    "divprune": "vllm_hired.selectors.divprune:DivPruneSelector",
    "scope": "vllm_hired.selectors.scope:ScopeSelector",
    "visionzip": "vllm_hired.selectors.visionzip:VisionZipSelector",
    "prumerge_plus": "vllm_hired.selectors.prumerge_plus:PruMergePlusSelector",
    "vispruner": "vllm_hired.selectors.vispruner:VisPrunerSelector",
}
"""Name (the value of `hired_selector`) -> `module:Class`, imported when used."""

UNVERSIONED = ("hired", "even", "thumbnail", "uniform", "random")
"""Methods whose images were hashed before methods had versions, and still are."""

GROUP = "vllm_hired.selectors"
"""Entry points of other packages: name -> `module:Class`."""


@cache
def third_party() -> Mapping[str, EntryPoint]:
    """Methods of other packages by name; ours cannot be replaced."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    return {name: entry for name, entry in found.items() if name not in SELECTORS}


def selector_names() -> list[str]:
    """Names that `hired_selector` may have; nothing is imported for them."""
    return [*SELECTORS, *third_party()]


def selector_class(name: str) -> "type[Selector]":
    """The class of a method.

    Raises:
        HiredConfigError: a method of another package cannot be imported, or is none.
    """
    if name in SELECTORS:
        module, _, class_name = SELECTORS[name].partition(":")
        return cast("type[Selector]", getattr(import_module(module), class_name))
    from vllm_hired.selectors.base import Selector

    entry = third_party()[name]
    try:
        loaded = entry.load()
    except Exception as error:
        raise HiredConfigError(
            "hired_selector",
            name,
            f"{entry.value} of {_package(entry)} cannot be imported: "
            f"{type(error).__name__}: {error}",
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Selector)):
        raise HiredConfigError(
            "hired_selector",
            name,
            f"{entry.value} of {_package(entry)} is no subclass of "
            "vllm_hired.selectors.base.Selector",
        )
    return loaded


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"


def read_method(
    name: str, own: Mapping[str, object], common: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    """Version and settings of a method, defaults filled in, as they enter a hash.

    Args:
        name: among `selector_names()`.
        own: given settings that are not common to all methods.
        common: the names of those that are, for the message.

    Raises:
        HiredConfigError: a setting that the method does not have, or a value outside
            what is allowed.
    """
    if name in UNVERSIONED and not own:
        return ()
    # Imports torch, which `vllm-hired plan` does without as long as it can.
    from vllm_hired.selectors.settings import method_settings, read_method_settings

    method = selector_class(name)
    known = method_settings(method, name)
    for key, value in own.items():
        if key not in known:
            others = [
                other
                for other in selector_names()
                if key.startswith(f"{PREFIX}{other}_")
                and key in method_settings(selector_class(other), other)
            ]
            raise HiredConfigError(
                key,
                value,
                f"it is a setting of hired_selector={others[0]}, not of {name}"
                if others
                else f"the known settings are {', '.join([*common, *known])}",
            )
    given = read_method_settings(method, name, own)
    selector = method(**given)
    values = {field: float(getattr(selector, field)) for field, _ in known.values()}
    return (("version", method.version), *values.items())


def make_selector(name: str, method: tuple[tuple[str, float], ...] = ()) -> "Selector":
    """The method called `name`, with settings as `read_method` gave them."""
    return selector_class(name)(**{k: v for k, v in method if k != "version"})
