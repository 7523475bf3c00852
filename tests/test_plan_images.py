"""`vllm-hired plan --images`: files and folders, counted as the engine counts them."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from random_checkpoints.llava import REAL_PINPOINTS
from tests.conftest import WriteCheckpoint
from tests.engine import noise_image
from tests.front_end import FrontEnd, served
from tests.pictures import PICTURES, REFUSED, write_all
from tests.planning import plan
from vllm_hired.tools.cli import main
from vllm_hired.tools.images import read_image

SOME = re.compile(r"exif|xmp|turned|phone|orientation [36]|animated|icon")


@pytest.fixture
def model(make_checkpoint: WriteCheckpoint) -> Path:
    """With the real vision layout."""
    return make_checkpoint(tile_size=336, patch_size=14, pinpoints=REAL_PINPOINTS)


@pytest.mark.slow
def test_files_count_as_the_engine_counts_them(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Turned pictures and others, as a server loads them and as PIL images."""
    front_end = FrontEnd(model)
    chosen = {name: PICTURES[name] for name in PICTURES if SOME.search(name)}
    paths = write_all(tmp_path, chosen)
    options = ["--images", str(tmp_path), "--budget", "0.35"]
    rows = plan(capsys, str(model), *options)
    for asked, label in ((1.0, "stock"), (0.35, 0.35)):
        counted: Counter[tuple[str, int]] = Counter()
        for row in rows:
            if row["budget"] == label and row["size"] != "all":
                counted[row["size"], row["kept tokens"]] += row["images"]
        for load in (served, Image.open):
            engine: Counter[tuple[str, int]] = Counter()
            for path in paths:
                inputs = front_end(load(path), budget=asked)
                (tokens,) = front_end.placeholders(inputs)
                width, height = read_image(path).size
                engine[f"{width}x{height}", tokens] += 1
            assert counted == engine


def test_images_and_folders(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "more" / "still").mkdir(parents=True)
    for name in ("a.png", "more/still/b.JPG"):
        noise_image(112, 56).save(tmp_path / name)
    noise_image(60, 60).save(tmp_path / "more" / "c.webp")
    (tmp_path / "notes.txt").write_text("no image")
    options = ["--images", str(tmp_path), "--budget", "0.5"]
    rows = plan(capsys, str(checkpoint), *options)
    labels = [(row["images"], row["size"], row["budget"]) for row in rows]
    assert labels == [
        (2, "112x56", "stock"),
        (2, "112x56", 0.5),
        (1, "60x60", "stock"),
        (1, "60x60", 0.5),
        (3, "all", "stock"),
        (3, "all", 0.5),
    ]
    for wide, square, all_images in zip(rows[:2], rows[2:4], rows[4:], strict=True):
        for name in ("stock tokens", "kept tokens", "KV bytes/image", "LLM FLOPs"):
            mean = (2 * wide[name] + square[name]) / 3
            assert all_images[name] == pytest.approx(mean, abs=0.5), name
        # 8 GiB for two wide pictures' requests and a square one's.
        three = 2 * wide["KV bytes/request"] + square["KV bytes/request"]
        assert all_images["requests at once"] == 3 * 2**33 // three
    stock, kept = (
        sum(
            row["images"] * row[f"{part} FLOPs"]
            for row in rows[start:4:2]
            for part in ("tower", "projector", "LLM")
        )
        for start in (0, 1)
    )
    assert rows[5]["arithmetic bound"] == round(stock / kept, 3)
    assert main(["plan", str(checkpoint), *options, "--csv"]) == 0
    table = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert table == [{name: str(row[name]) for name in row} for row in rows]
    assert main(["plan", str(checkpoint), *options]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    assert [(line[1].strip(), line[2].strip()) for line in lines[2:]] == [
        (str(images), size) for images, size, _ in labels
    ]


def test_one_size_needs_no_rows_over_all(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    noise_image(60, 60).save(tmp_path / "a.png")
    rows = plan(capsys, str(checkpoint), "--images", *[str(tmp_path / "a.png")] * 2)
    assert {(row["images"], row["size"]) for row in rows} == {(2, "60x60")}


def test_bad_files_are_left_out_and_named(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    """Status 1 and a table of the rest; status 2 and no table where there is none."""
    noise_image(1, 3000).save(tmp_path / "thin.png")
    bad = {"thin.png": "too long and thin", "none  twice.png": "No such file"}
    # The pixels of these are cut short, which headers do not tell.
    for path in write_all(tmp_path, REFUSED):
        bad |= {} if path.stem == "cut" else {path.name: "not an image"}
    paths = [str(tmp_path / name) for name in bad]
    assert main(["plan", str(model), "--images", *paths]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    for (name, reason), line in zip(bad.items(), lines, strict=True):
        assert line.startswith(f"vllm-hired: skipped: {tmp_path / name}")
        assert reason in line
    noise_image(60, 60).save(tmp_path / "good.png")
    paths.append(str(tmp_path / "good.png"))
    assert main(["plan", str(model), "--images", *paths, "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert {row["size"] for row in json.loads(captured.out)} == {"60x60"}
