"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Package registries carry torchvision for CUDA alone. Its compiled operators do not
load on CPU torch, and its import then dies because it registers fake kernels for
operators that nobody declared. Declaring their schemas first is enough: vLLM never
calls them. The hook runs in every process through the `.pth` file beside it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionFinder(MetaPathFinder):
    """Declares the operators just before the first import of torchvision."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            # A CPU build of torchvision declares them itself, and only once.
            if "+cpu" not in version("torchvision"):
                import torch

                torch.library.define("torchvision::nms", SCHEMA)
                torch.library.define("torchvision::qnms", SCHEMA)
        return None


sys.meta_path.insert(0, TorchvisionFinder())
