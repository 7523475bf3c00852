"""Selection methods, one file each. Adding one is one file and one row here."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_hired.selectors.base import Selector

SELECTORS = {
    "hired": "vllm_hired.selectors.hired:HiredSelector",
}
"""Name (the value of `hired_selector`) -> `module:Class`, imported when used."""


def make_selector(name: str) -> "Selector":
    """The selector called `name`, a key of `SELECTORS`."""
    module, _, class_name = SELECTORS[name].partition(":")
    selector: Selector = getattr(import_module(module), class_name)()
    return selector
