"""The README says what the code and the result files say."""

import json
import re
from pathlib import Path

import pytest

from vllm_hired.config import SETTINGS
from vllm_hired.selectors import SELECTORS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "result"), [("README.md", "smol-tradeoff"), ("docs/serving.md", "bursts")]
)
def test_a_table_is_the_result_files(page: str, result: str) -> None:
    found = (ROOT / f"benchmarks/results/{result}.md").read_text()
    assert found.split("\n\n")[-1] in (ROOT / page).read_text()


def test_the_speed_at_real_dimensions_is_the_result_files() -> None:
    latency = json.loads((ROOT / "benchmarks/results/latency.json").read_text())
    (ratio,) = (
        row["stock / this"].split()[0]
        for row in next(iter(latency["tables"].values()))
        if (row["image"], row["budget"]) == ("672x672", 0.2)
    )
    text = " ".join(README.split())
    assert f"{ratio} times sooner than in stock at a budget of 0.2" in text


def test_every_method_is_in_the_table() -> None:
    table = README[README.index("| `hired_selector` |") :]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)[1:]
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted(SELECTORS)


def test_the_methods_table_is_the_result_files() -> None:
    results = json.loads((ROOT / "benchmarks/results/methods.json").read_text())
    (costs,) = results["tables"].values()
    page = (ROOT / "docs/benchmarks.md").read_text()
    page = page[: page.index("## A small model with real parts")]
    rows = [line for line in page.splitlines() if re.search(r"^\| `\w+` \| \d", line)]
    assert rows == [
        f"| `{row['selector']}` | {row['method (ms)']} | {row['peak (MiB)']} |"
        for row in costs
        if row["budget"] == 0.2
    ]


def test_the_small_models_table_is_the_result_files() -> None:
    results = json.loads((ROOT / "benchmarks/results/smol-accuracy.json").read_text())
    answers, differences = results["tables"].values()
    right = {(row["selector"], row["budget"]): row["all tasks (%)"] for row in answers}
    to_hired = {row["budget"]: row for row in differences}
    page = (ROOT / "docs/benchmarks.md").read_text()
    section = page[page.index("## A small model with real parts") :]
    rows = re.findall(r"^\| `\w+` \| \d.*$", section, re.MULTILINE)
    names = dict.fromkeys(name for name, budget in right if 0 < budget < 1)
    assert rows[: len(names)] == [
        f"| `{name}` | {right[name, 0.2]} | {right[name, 0.1]} "
        f"| {to_hired[0.2].get(f'hired - {name}', '')} "
        f"| {to_hired[0.1].get(f'hired - {name}', '')} |"
        for name in names
    ]
    stock, blind = right["stock", 1.0], right["blind", 0.0]
    assert f"stock has {stock.replace(' ', '% ', 1)}" in " ".join(section.split())
    assert f"{blind.replace(' ', '% ', 1)}" in " ".join(section.split())


SMOL = ROOT / "checkpoints/llava-next-smol"
CARD = (SMOL / "README.md").read_text()


def test_the_model_cards_size_is_the_files() -> None:
    (stated,) = re.findall(r"LoRA delta .* float16, (\d+) MB", CARD)
    assert round((SMOL / "trained.safetensors").stat().st_size / 1e6) == int(stated)


def test_the_model_cards_answers_are_the_result_files() -> None:
    results = json.loads((ROOT / "benchmarks/results/smol-accuracy.json").read_text())
    (stock, *_), _ = results["tables"].values()
    text = " ".join(CARD.split())
    for task in ("presence", "naming", "place", "counting", "reading"):
        assert f"{task} {stock[f'{task} (%)'].replace(' ', '% ', 1)}" in text


def test_the_model_cards_table_ends_the_learning_curve() -> None:
    """With and without dropping: the last point with all tokens, and that with 30%."""
    curve = (ROOT / "benchmarks/results/smol-training.md").read_text()
    lines = [line for line in curve.splitlines() if " dropping " in line]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    final = [
        row
        for training in ("with dropping", "without dropping")
        for row in [row for row in rows if row[0] == training][-2:]
    ]
    names = ("presence", "naming", "place", "counting", "reading", "page", "chart")
    for column, task in enumerate(names, start=5):
        points = re.escape(" | ".join(row[column] for row in final))
        assert re.search(rf"^\| {task} \| \w+ \| {points} \|$", CARD, re.MULTILINE)


def test_every_interval_about_the_small_model_is_in_the_result_files() -> None:
    """As it stands, or turned about where the page says what is above what."""
    page = (ROOT / "docs/benchmarks.md").read_text()
    section = page[page.index("## A small model with real parts") :]
    results = "".join(
        path.read_text() for path in (ROOT / "benchmarks/results").glob("smol-*.md")
    )
    found = re.findall(r"\(([-\d.]+) to\s+([-\d.]+)\)", section)
    assert len(found) > 60
    for low, high in found:
        turned = f"({-float(high)} to {-float(low)})"
        assert f"({low} to {high})" in results or turned in results, (low, high)


def test_every_setting_is_in_the_table() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    heads = re.findall(r"^\| (`hired_[^|]+) \|", page, re.MULTILINE)
    assert re.findall(r"\w+", " ".join(heads))[: len(SETTINGS)] == list(SETTINGS)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
