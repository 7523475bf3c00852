"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Package registries carry torchvision for CUDA alone. Its compiled operators do not
load on CPU torch, and its import then dies because it registers fake kernels for
operators that nobody declared. Declaring their schemas first is enough: vLLM never
calls them. The hook runs in every process through the `.pth` file beside it.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionFinder:
    """Declares the operators just before the first import of torchvision."""

    @classmethod
    def find_spec(
        cls, name: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(cls)  # type: ignore[arg-type]
            # A CPU build of torchvision declares them itself, and only once.
            if "+cpu" not in version("torchvision"):
                import torch

                torch.library.define("torchvision::nms", SCHEMA)
                torch.library.define("torchvision::qnms", SCHEMA)
        return None


sys.meta_path.insert(0, TorchvisionFinder)  # type: ignore[arg-type]
