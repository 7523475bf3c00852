"""What a release needs beside the package: one version, its entry in the changelog, and
files that hosts and tools read."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.release_notes import package_version, release_notes
from vllm_hired import __version__

ROOT = Path(__file__).parent.parent


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_version_stands_once() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == package_version() == __version__
    for name in ("setup.py", "pyproject.toml", "CITATION.cff", "mkdocs.yml"):
        assert __version__ not in (ROOT / name).read_text().split('"'), name


ENTRIES = """# Changelog

## 1.1.0 (unreleased)

- Soon.

## 1.0.0 (2026-11-26)

- Added: *this*.

### Fixed

- That.

## 0.9.0 (2026-01-01)

"""


@pytest.mark.parametrize(
    ("version", "tag", "found"),
    [
        ("1.0.0", "v1.0.0", "- Added: *this*.\n\n### Fixed\n\n- That."),
        ("1.0.0", "v1.0.1", "tag v1.0.1: the package's version is 1.0.0"),
        ("1.0.0", "1.0.0", "tag 1.0.0: the package's version is 1.0.0"),
        ("1.1.0", "v1.1.0", "CHANGELOG.md still says '## 1.1.0 (unreleased)'"),
        ("0.9.0", "v0.9.0", "CHANGELOG.md says nothing under '## 0.9.0 (2026-01-01)'"),
        ("2.0", "v2.0", "CHANGELOG.md has no entry '## 2.0 ...'"),
    ],
)
def test_release_notes(tmp_path: Path, version: str, tag: str, found: str) -> None:
    (tmp_path / "vllm_hired").mkdir()
    init = tmp_path / "vllm_hired/__init__.py"
    init.write_text(f'"""A package."""\n\n__version__ = "{version}"\n')
    (tmp_path / "CHANGELOG.md").write_text(ENTRIES)
    if found.startswith("- "):
        assert release_notes(tag, tmp_path) == found
    else:
        with pytest.raises(SystemExit, match=re.escape(found)):
            release_notes(tag, tmp_path)


def test_our_changelog_has_an_entry_for_the_version() -> None:
    headings = re.findall(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert headings[0] == __version__


def test_a_tag_publishes_what_passed() -> None:
    """By trusted publishing: one job alone may ask for an identity, and none has a
    secret."""
    text = (ROOT / ".github/workflows/release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/test.yml"
    assert set(jobs["publish"]["needs"]) == {"test", "build"}
    assert jobs["page"]["needs"] == "publish"
    granted = {name: job.get("permissions") for name, job in jobs.items()}
    assert granted["publish"] == {"id-token": "write"}
    assert [name for name, given in granted.items() if given] == ["publish", "page"]
    assert "secrets." not in text


def test_pre_commit_runs_what_the_test_command_runs() -> None:
    hooks = load(".pre-commit-config.yaml")["repos"][0]["hooks"]
    recipe = re.search(
        r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M
    )
    assert recipe is not None
    commands = [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == commands


def test_the_image_copies_files_that_exist_and_suffice(tmp_path: Path) -> None:
    """The same files, in a folder of their own, are a package that builds."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *names, _ = line.split()
        for name in names:
            assert f"!{name}" in ignored
            copy = tmp_path / name
            source = ROOT / name
            if source.is_dir():
                copy.symlink_to(source)
            else:
                copy.write_bytes(source.read_bytes())
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "vllm-hired"


def test_the_citation_names_the_paper() -> None:
    citation = load("CITATION.cff")
    (paper,) = citation["references"]
    assert citation["title"].startswith("vllm-hired")
    assert paper["identifiers"][0]["value"] == "arXiv:2408.10945"
    assert paper["year"] == 2025
    assert "AAAI" in paper["journal"]


@pytest.mark.parametrize("form", ["bug", "method_or_family"])
def test_issue_forms(form: str) -> None:
    fields = load(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in fields)
    if form == "bug":
        assert {"command", "doctor", "hardware"} <= set(names)
