"""What methods keep of held-out photographs by a pretrained tower, and how the answers
to questions about them are measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.intervals import interval
from tests.test_docs import ROOT
from training.smol.assemble import assemble
from training.smol.features import CELLS, patch_classes
from training.smol.pictures import make_scene
from vllm_hired.config import HiredConfig
from vllm_hired.tools.inspect.inspection import Inspection, inspect_image

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(2400)]

BUDGET = 0.1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assemble(folder)
    return folder


@pytest.fixture(scope="module")
def seen(model: Path) -> list[tuple[Inspection, Tensor]]:
    """Photographs in the tower, and which cells of their thumbnails show an object or
    a letter."""
    pictures = [make_scene(np.random.default_rng((7, n)), True) for n in range(8)]
    return [
        (
            inspect_image(str(model), "", picture.image, {"hired_budget": BUDGET}),
            patch_classes(picture) > 0,
        )
        for picture in pictures
    ]


@pytest.mark.parametrize(
    ("method", "is_better"),
    [("hired", True), ("fastervlm", True), ("uniform", False), ("random", False)],
)
def test_attention_finds_the_objects(
    seen: list[tuple[Inspection, Tensor]], method: str, is_better: bool
) -> None:
    """Of the thumbnails' cells that show one, attention keeps more than twice the share
    that it keeps of all cells; a choice that does not look keeps the same share."""
    settings = {"hired_budget": BUDGET, "hired_selector": method}
    kept, shown = [], []
    for inspection, shows in seen:
        hired = HiredConfig.from_hf_config(inspection.configured(settings))
        cells = inspection.select(hired)
        stays = torch.zeros(CELLS, dtype=torch.bool)
        stays[cells[cells < CELLS]] = True
        kept.append(stays)
        shown.append(shows)
    stays, shows = torch.cat(kept), torch.cat(shown)
    share = stays[shows].float().mean() / stays.float().mean()
    if is_better:
        assert share > 2.5
    else:
        assert 0.6 < share < 1.4


def run(module: str, folder: Path, model: Path, *options: str) -> dict[str, Any]:
    """Runs a measurement in a folder; what it wrote."""
    (folder / "out").mkdir(exist_ok=True)
    fetched = folder / "out/smol"
    if not fetched.exists():
        fetched.symlink_to(ROOT / "out/smol")
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"benchmarks.{module}", "--model", str(model)),
            *("--dtype", "float32", "--out", str(folder), *options),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    name = module.replace("_", "-")
    result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return result


def test_accuracy_is_measured_and_paired(model: Path, tmp_path: Path) -> None:
    options = ["--trials", "2", "--kinds", "scene", "--budgets", "1.0", "0.05"]
    options += ["--selectors", "random"]
    result = run("smol_accuracy", tmp_path, model, *options)
    asked = [(row["selector"], row["budget"]) for row in result["raw"]]
    assert asked == [("stock", 1.0), ("hired", 0.05), ("random", 0.05)]
    right = {
        row["selector"]: np.array([[*map(int, word)] for word in row["right"].split()])
        for row in result["raw"]
    }
    assert all(values.shape == (2, 5) for values in right.values())
    assert right["stock"].sum() > 4
    accuracy, differences = result["tables"].values()
    assert [row["selector"] for row in accuracy] == [*dict(asked), "blind"]
    less = interval(right["hired"] - right["random"])
    assert differences == [{"budget": 0.05, "hired - random": less}]
    # Called again, it asks nothing that it knows.
    known = (tmp_path / "out/smol-accuracy.jsonl").read_text()
    assert len(known.splitlines()) == 3
    again = run("smol_accuracy", tmp_path, model, *options)
    assert again["tables"] == result["tables"]
    assert (tmp_path / "out/smol-accuracy.jsonl").read_text() == known


def test_ablation(model: Path, tmp_path: Path) -> None:
    options = ["--trials", "1", "--budgets", "0.05"]
    layers = ["--init-layers", "0", "7", "--final-layers", "9", "11"]
    result = run("smol_ablation", tmp_path, model, *options, *layers)
    changed = [(row["changed"], row["to"]) for row in result["raw"]]
    assert changed == [
        *(("nothing", "-"), ("split among tiles", "even")),
        *(("alpha", alpha) for alpha in (0, 0.25, 0.75, 1)),
        *(("init layer", 0), ("final layer", 9)),
    ]
    assert all(re.fullmatch(r"[01]{4}", row["right"]) for row in result["raw"])
