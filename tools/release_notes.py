"""Prints the changelog's entry of a release, for the page of its tag.

    python tools/release_notes.py v0.1.0

Fails where the tag is not the package's version, or the entry is missing, empty or
still marked as unreleased: a tag must not publish what nobody has written up.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def package_version(root: Path = ROOT) -> str:
    """`__version__` of the package, without importing it."""
    text = (root / "vllm_hired/__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("vllm_hired/__init__.py has no line __version__ = ...")
    return found[1]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """The entry of `tag` in CHANGELOG.md, without its heading.

    Args:
        tag: such as `v0.1.0`.
        root: of the checkout.

    Raises:
        SystemExit: with the reason why this tag cannot be released.
    """
    version = package_version(root)
    if tag != f"v{version}":
        raise SystemExit(f"tag {tag}: the package's version is {version}")
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    entries = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)
    # Text before the first heading, then headings and entries in turn.
    by_heading = dict(zip(entries[1::2], entries[2::2], strict=True))
    for heading, entry in by_heading.items():
        if heading.split()[0] != version:
            continue
        if "unreleased" in heading:
            raise SystemExit(f"CHANGELOG.md still says '## {heading}'")
        if not entry.strip():
            raise SystemExit(f"CHANGELOG.md says nothing under '## {heading}'")
        return entry.strip()
    raise SystemExit(f"CHANGELOG.md has no entry '## {version} ...'")


if __name__ == "__main__":
    print(release_notes(sys.argv[1]))
