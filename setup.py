import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Its one source: read, not imported, so that building needs nothing installed.
(VERSION,) = re.findall(
    r'^__version__ = "(.+)"$',
    (HERE / "vllm_hired/__init__.py").read_text("utf-8"),
    re.MULTILINE,
)

setup(
    name="vllm-hired",
    version=VERSION,
    description=(
        "HiRED for vLLM: serve high-resolution vision-language models "
        "with a fixed visual-token budget"
    ),
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The vllm_hired developers",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vllm", "llava", "vision-language", "token dropping", "inference"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["vllm_hired", "vllm_hired.*"]),
    package_data={"vllm_hired": ["py.typed", "tools/inspect/page_files/*"]},
    install_requires=["vllm>=0.31", "torch", "transformers"],
    extras_require={
        "test": [
            "build",
            "hypothesis",
            "matplotlib",
            "mkdocs-material",
            "mypy",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "scikit-image",
            "scikit-learn",
            "twine",
        ],
        "bench": ["matplotlib", "scikit-image", "scikit-learn"],
        # To read the pretrained parts of llava-next-smol; training.smol.assemble
        # fetches these themselves, whose wheels would bring other inference engines.
        "smol": ["gguf", "onnx"],
    },
    entry_points={
        "vllm.general_plugins": ["hired = vllm_hired:register"],
        "console_scripts": ["vllm-hired = vllm_hired.tools.cli:script"],
    },
)
