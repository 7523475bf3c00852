"""`tools/find_python.sh`, with stand-ins that answer as other Pythons would."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools/find_python.sh"
RIGHT, NEWER = "3.11.9", "3.12.1"


def write(path: Path, lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    path.chmod(0o755)
    return path


def python(path: Path, version: str, without: str = "") -> Path:
    """This Python under another path and version, without a module if one is named."""
    return write(
        path,
        f"#!{sys.executable}\nimport sys\nsys.executable = {str(path)!r}\n"
        f"sys.version_info = {tuple(map(int, version.split('.')))}\n"
        f"sys.modules[{without!r}] = None\nexec(sys.argv[2])\n",
    )


def find(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With `folder / "a"` and then `folder / "b"` in PATH, and `folder` as home."""
    path = f"{folder / 'a'}:{folder / 'b'}"
    return subprocess.run(
        ["/bin/sh", SCRIPT],
        env={"PATH": path, "HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "name",
    [
        *("a/python3.11", "a/python3", "a/python", "b/python3"),
        ".pyenv/versions/3.11.9/bin/python",
    ],
)
def test_is_found_under_each_name(tmp_path: Path, name: str) -> None:
    path = python(tmp_path / name, RIGHT)
    done = find(tmp_path)
    assert (done.stdout, done.stderr) == (f"{path}\n", "")
    assert done.returncode == 0


def test_uv_is_asked_for_those_it_has(tmp_path: Path) -> None:
    path = python(tmp_path / "of-uv", RIGHT)
    write(
        tmp_path / "a/uv",
        '#!/bin/sh\n[ "$UV_PYTHON_DOWNLOADS $*" = "never python find --system 3.11" ] '
        f"&& echo {path}\n",
    )
    assert find(tmp_path).stdout == f"{path}\n"


def test_others_are_passed_over(tmp_path: Path) -> None:
    """Broken, empty, newer under the right name, without what makes environments."""
    write(tmp_path / "a/python3.11", "#!/bin/sh\necho no such version >&2\nexit 127\n")
    write(tmp_path / "a/python3", "")
    python(tmp_path / "a/python", NEWER)
    python(tmp_path / "b/python3.11", NEWER)
    python(tmp_path / "b/python3", RIGHT, without="ensurepip")
    path = python(tmp_path / "b/python", RIGHT)
    assert find(tmp_path).stdout == f"{path}\n"


def test_a_python_that_is_named_is_the_only_one_tried(tmp_path: Path) -> None:
    python(tmp_path / "a/python3.11", RIGHT)
    path = python(tmp_path / "mine", RIGHT)
    newer = python(tmp_path / "newer", NEWER)
    assert find(tmp_path, PYTHON=str(path)).stdout == f"{path}\n"
    done = find(tmp_path, PYTHON=str(newer))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"PYTHON={newer} is no Python 3.11: ")


def test_none_is_one_line_that_says_how_to_get_one(tmp_path: Path) -> None:
    python(tmp_path / "a/python3.11", NEWER)
    done = find(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    for said in ("apt install", "uv python install", "make PYTHON="):
        assert said in line, said


def test_make_stops_before_anything_is_downloaded(tmp_path: Path) -> None:
    """In a folder of its own, so that no environment exists there."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "tools"):
        (tmp_path / name).symlink_to(SCRIPT.parents[1] / name)
    done = subprocess.run(
        ["make", "demo", "PYTHON=/no/python"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "PYTHON=/no/python is no Python 3.11" in done.stderr
    assert "pip install" not in done.stdout
    assert not (tmp_path / ".venv").exists()
