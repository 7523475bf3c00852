"""The README says what the code and the result files say."""

import json
import re
from pathlib import Path

from vllm_hired.config import SETTINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_measured_rows_come_from_the_result_file() -> None:
    rows = re.findall(r"^\|.* 600x400 .*$", README, re.MULTILINE)
    assert len(rows) == 3
    results = ROOT / "benchmarks/results"
    table = (results / "demo.md").read_text().splitlines()
    assert set(rows) <= set(table)
    facts = json.loads((results / "demo.json").read_text())
    assert {"machine", "versions", "commit", "command"} <= set(facts)
    assert facts["random_weights"] is True
    for row, values in zip(table[2:], facts["rows"], strict=True):
        assert [cell.strip() for cell in row.strip("|").split("|")] == [
            str(value) for value in values.values()
        ]


def test_rows_of_speed_come_from_the_result_files() -> None:
    rows = re.findall(r"^\|\s+[\d.x]+ \|.*$", README, re.MULTILINE)
    assert len(rows) >= 8
    tables = [path.read_text() for path in (ROOT / "benchmarks/results").glob("*.md")]
    lines = "\n".join(tables).splitlines()
    assert set(rows) <= set(lines)


def test_every_setting_is_in_the_table() -> None:
    assert re.findall(r"^\| `(hired_\w+)`", README, re.MULTILINE) == list(SETTINGS)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
