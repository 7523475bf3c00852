"""The measurements run and write what they promise, at a size that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from benchmarks import soak
from benchmarks.parity import compare
from benchmarks.soak import Room, mixture
from random_checkpoints.llava import SHAPES, small, write_checkpoint

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
TINY = ["--shape", "tiny", "--dtype", "float32"]


def measure(module: str, out: Path, *options: str) -> list[list[dict[str, Any]]]:
    """Runs a module; its tables."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--out", str(out)]
    done = subprocess.run(
        [*command, *TINY, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((out / f"{module}.json").read_text())
    assert {"machine", "versions", "commit", "command", "model"} <= set(result)
    assert (out / f"{module}.md").read_text().count("|") > 10
    assert (out / f"{module}.png").stat().st_size > 1000
    return list(result["tables"].values())


@pytest.mark.parametrize(
    ("shape", "size", "tokens"),
    [
        ("tiny", "336x672", [3 * 576 + 48, 345]),
        ("qwen2.5-vl-tiny", "448x560", [16 * 20, 64]),
    ],
)
def test_latency(tmp_path: Path, shape: str, size: str, tokens: list[int]) -> None:
    options = ["--shape", shape, "--rounds", "1", "--size", size, "--budgets", "0.2"]
    whole, parts = measure("latency", tmp_path, *options)
    assert [row["visual tokens"] for row in whole] == tokens
    for row in parts:
        stages = [float(row[name]) for name in row if name.endswith(" (s)")]
        # The last column is the sum of the others, up to their rounding.
        assert sum(stages[:-1]) == pytest.approx(stages[-1], abs=0.01)


def test_methods(tmp_path: Path) -> None:
    names = ["hired", "uniform", "divprune"]
    options = ["--repeats", "1", "--budgets", "0.2", "0.1", "--selectors", *names]
    (rows,) = measure("methods", tmp_path, *options)
    assert [(row["selector"], row["kept"]) for row in rows] == [
        (name, kept) for name in names for kept in (576, 288)
    ]
    assert {row["waits"] for row in rows} == {0}


def test_throughput(tmp_path: Path) -> None:
    options = ["--kv-tokens", "4096", "--batches", "1", "4", "--budgets", "0.2"]
    (rows,) = measure(
        "throughput", tmp_path, *options, "--size", "336x672", "--output-tokens", "3"
    )
    resident = {
        (row["budget"], row["requests"]): row["resident at once"] for row in rows
    }
    # 1,776 and 345 visual tokens in a cache of 4,096.
    assert resident == {(1.0, 1): 1, (1.0, 4): 2, (0.2, 1): 1, (0.2, 4): 4}
    assert [row["preemptions"] for row in rows if row["budget"] == 0.2] == [0, 0]
    assert [float(row["bound / stock"]) > 0 for row in rows[2:]] == [True, True]


@pytest.mark.matrix
def test_gpu_writes_one_report(tmp_path: Path) -> None:
    """Of its shortest measurements; the others have tests of their own above."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", *TINY]
    command += ["--device", "cpu", "--out", str(tmp_path), "--only"]
    done = subprocess.run(
        [*command, "parity", "overhead", "soak"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, report + done.stderr[-3000:]
    assert "All parts ended well." in report
    assert "ok      contract" in report
    assert (tmp_path / "parity.md").read_text().strip() in report
    (row,) = json.loads((tmp_path / "parity.json").read_text())["raw"]
    assert row["same answers"] == row["same prompts"] == row["questions"] == 7
    assert "## overhead" in report
    assert "8 of 8" in report[report.index("## soak") :]


@pytest.mark.matrix
def test_gpu_reports_what_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--device", "cpu"]
    command += ["--out", str(tmp_path), "--model", str(tmp_path), "--only", "latency"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    report = (tmp_path / "report.md").read_text()
    assert "FAILED: doctor, latency" in report
    assert "latency.log ends:" in report


def test_a_soak_fits_the_model(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images where its context holds them."""
    assert Room.of(str(checkpoint)) == Room(images=2, context=1024)
    folder = str(write_checkpoint(tmp_path, SHAPES["llava-next-7b"], seed=None))
    assert Room.of(folder).images == 2
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Of 2,928 tokens.
    monkeypatch.setattr(soak, "SIZES", ((672, 672),))
    assert Room.of(folder) == Room(images=1, context=98 * 32)
    assert "--max-model-len 3136" in Room.of(folder).options
    for body in mixture(40, 0, (0.2,), most_images=1):
        assert str(body).count("data:image") <= 1


def test_parity_finds_a_difference() -> None:
    same = [{"prompt": [1, 2], "answer": [3]}, {"prompt": [1], "answer": [4]}]
    other = [{"prompt": [1, 2], "answer": [3]}, {"prompt": [1], "answer": [5]}]
    assert compare("v1", same, same)["equal"] == "yes"
    row = compare("v1", same, other)
    assert (row["equal"], row["same prompts"], row["same answers"]) == ("NO", 2, 1)


def test_a_seed_decides_all_of_a_checkpoints_weights(tmp_path: Path) -> None:
    first, second, other = (
        load_file(write_checkpoint(tmp_path / name, small(), seed) / WEIGHTS)
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    )
    assert [name for name in first if not first[name].equal(second[name])] == []
    assert not first["image_newline"].equal(other["image_newline"])
