"""Selection methods, one file each. Adding one is one file and one row here."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_hired.selectors.base import Selector

SELECTORS = {
    "hired": "vllm_hired.selectors.hired:HiredSelector",
    "even": "vllm_hired.selectors.even:EvenSelector",
    "thumbnail": "vllm_hired.selectors.thumbnail:ThumbnailSelector",
    "uniform": "vllm_hired.selectors.uniform:UniformSelector",
    "random": "vllm_hired.selectors.random:RandomSelector",
    "visionzip": "vllm_hired.selectors.visionzip:VisionZipSelector",
    "prumerge_plus": "vllm_hired.selectors.prumerge_plus:PruMergePlusSelector",
    "vispruner": "vllm_hired.selectors.vispruner:VisPrunerSelector",
}
"""Name (the value of `hired_selector`) -> `module:Class`, imported when used."""


def make_selector(name: str) -> "Selector":
    """The selector called `name`, a key of `SELECTORS`."""
    module, _, class_name = SELECTORS[name].partition(":")
    selector: Selector = getattr(import_module(module), class_name)()
    return selector
