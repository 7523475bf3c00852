"""`vllm-hired inspect`: the engine's own choice, written whole or not at all."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from vllm import LLM

from random_checkpoints.llava import REAL_PINPOINTS, small, write_checkpoint
from tests.conftest import NO_CLS, WriteCheckpoint
from tests.engine import noise_image, prompt
from tests.front_end import FrontEnd, served
from tests.inspections import check_kept_as_by_engine
from tests.pictures import PICTURES, write_all
from vllm_hired.config import HiredConfig
from vllm_hired.selectors import SELECTORS
from vllm_hired.tools.cli import main
from vllm_hired.tools.images import read_image
from vllm_hired.tools.inspect.inspection import inspect_image, with_settings
from vllm_hired.tools.inspect.page import page_data


@pytest.mark.parametrize("size", [(112, 112), (60, 165), (200, 50)])
def test_keeps_what_the_engine_keeps(
    any_engine: LLM, any_checkpoint: Path, size: tuple[int, int]
) -> None:
    check_kept_as_by_engine(
        any_engine,
        any_checkpoint,
        {rho: prompt(size, budget=rho) for rho in (0.1, 0.2, 0.4, 0.9)},
        lambda item: [item["pixel_values"].data],
    )


@pytest.mark.slow
def test_the_tower_sees_what_the_servers_sees(checkpoint: Path, tmp_path: Path) -> None:
    """Files of many kinds, as a server loads them and as PIL images."""
    front_end = FrontEnd(checkpoint, dtype="float32")
    processor = front_end.processor.info.get_hf_processor().image_processor
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    for path in write_all(tmp_path, PICTURES):
        seen = inspect_image(str(checkpoint), path.name, read_image(path), {})
        for loaded in (served(path), Image.open(path)):
            (item,) = front_end(loaded)["mm_kwargs"]["image"]
            tiles = (item["pixel_values"].data * std + mean).clamp(0, 1)
            assert torch.equal(tiles, seen.partitions), path.name


@pytest.mark.slow
def test_a_tower_without_cls(make_checkpoint: WriteCheckpoint) -> None:
    """Methods that look at [CLS] attention are left out, unless told otherwise."""
    folder = str(make_checkpoint(**NO_CLS["siglip"]))
    shown = {}
    for attention, selector in (("cls", "divprune"), ("received", "hired")):
        settings = {"hired_attention": attention, "hired_selector": selector}
        inspection = inspect_image(folder, "noise", noise_image(100, 80), settings)
        hired = HiredConfig.from_hf_config(inspection.configured(settings))
        data = page_data(inspection, [hired])
        assert data["attention"] == "received"
        shown[attention] = [method["name"] for method in data["methods"]]
        left_out = [line.partition(": it looks at [CLS]") for line in data["left_out"]]
        assert {*shown[attention]} | {name for name, *_ in left_out} == {*SELECTORS}
    assert shown == {"cls": ["uniform", "random", "divprune"], "received": [*SELECTORS]}


def test_settings_leave_the_checkpoints_config_alone(checkpoint: Path) -> None:
    image = noise_image(60, 60)
    inspection = inspect_image(str(checkpoint), "noise", image, {"hired_budget": 0.2})
    given = with_settings(inspection.hf_config, {"hired_alpha": 0.1})
    assert HiredConfig.from_hf_config(given).alpha == Fraction("0.1")
    assert HiredConfig.from_hf_config(inspection.hf_config).alpha == Fraction("0.5")


def test_the_picture_shows_kept_cells_and_dims_others(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise_image(112, 112).save(tmp_path / "photo.png")
    arguments = ["inspect", str(checkpoint), str(tmp_path / "photo.png")]
    pixels: dict[str, np.ndarray[Any, Any]] = {}
    for budget in ("0.01", "1"):
        out = tmp_path / f"{budget}.png"
        assert main([*arguments, "--budget", budget, "-o", str(out)]) == 0
        pixels[budget] = np.asarray(Image.open(out).convert("L"), dtype=float)
    assert (
        "photo.png has 336 visual tokens; kept: 336 at 1.0" in capsys.readouterr().out
    )
    # Fading leaves little contrast.
    assert pixels["1"].shape == pixels["0.01"].shape
    assert pixels["1"][40:90, 20:60].std() > 2 * pixels["0.01"][40:90, 20:60].std()
    both = tmp_path / "both.png"
    assert main([*arguments, "--budget", "0.2", "0.4", "-o", str(both)]) == 0
    assert Image.open(both).height == 2 * pixels["1"].shape[0]


@pytest.mark.slow
def test_sharded_checkpoints_and_newer_names(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights as transformers saves them now, in two files with an index."""
    image = tmp_path / "photo.png"
    noise_image(112, 112).save(image)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (sharded / file.name).write_bytes(file.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    shards: dict[str, dict[str, torch.Tensor]] = {"a": {}, "b": {}}
    index = {}
    for i, (name, tensor) in enumerate(sorted(weights.items())):
        if name.startswith("vision_tower."):
            name = "model." + name.replace(".vision_model.", ".")
        shards["ab"[i % 2]][name] = tensor
        index[name] = f"{'ab'[i % 2]}.safetensors"
    for shard, tensors in shards.items():
        save_file(tensors, sharded / f"{shard}.safetensors")
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )
    pages = []
    for folder in (checkpoint, sharded):
        out = tmp_path / "kept.html"
        assert main(["inspect", str(folder), str(image), "-o", str(out)]) == 0
        pages.append(out.read_text().replace(folder.name, ""))
    assert pages[0] == pages[1]


def damaged(checkpoint: Path, folder: Path, change: str) -> Path:
    """A copy of a checkpoint whose tower lacks a layer, or has one of another shape."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight"
    if change == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:5].clone()
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "model", "options", "said"),
    [
        ("text.png", "good", [], "text.png is not an image that can be read"),
        ("cut.jpg", "good", [], "cut.jpg is not an image that can be read"),
        ("none.png", "good", [], "No such file"),
        ("thin.png", "good", [], "too long and thin"),
        ("photo.png", "empty", [], "no checkpoint: it has no config.json"),
        ("photo.png", "siglip", [], "has no [CLS]"),
        ("photo.png", "no weights", [], "has no model.safetensors"),
        ("photo.png", "missing", [], "lacks 1 tensors of its vision tower"),
        ("photo.png", "shape", [], "does not fit its config"),
        ("photo.png", "good", ["--budget", "0"], "hired_budget=0.0 is not allowed"),
        ("photo.png", "good", ["--budget", "0.2", "2"], "hired_budget=2.0 is not"),
        ("photo.png", "good", ["--alpha", "1.5"], "hired_alpha=1.5 is not allowed"),
        ("photo.png", "good", ["--final-layer", "9"], "runs layers 0 to 2"),
    ],
)
@pytest.mark.parametrize("kind", ["png", "html"])
def test_bad_input_is_one_line_and_no_file(
    capsys: pytest.CaptureFixture[str],
    make_checkpoint: WriteCheckpoint,
    tmp_path: Path,
    image: str,
    model: str,
    options: list[str],
    said: str,
    kind: str,
) -> None:
    good = make_checkpoint(tile_size=336, patch_size=14, pinpoints=REAL_PINPOINTS)
    folder = tmp_path / "model"
    if model == "empty":
        folder.mkdir()
    elif model == "siglip":
        folder = make_checkpoint(**NO_CLS["siglip"])
    elif model == "no weights":
        write_checkpoint(folder, small(), seed=None)
    elif model == "good":
        folder = good
    else:
        damaged(make_checkpoint(), folder, model)
    (tmp_path / "text.png").write_text("no image")
    noise_image(200, 200).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    noise_image(1, 3000).save(tmp_path / "thin.png")
    noise_image(100, 80).save(tmp_path / "photo.png")
    before = {*tmp_path.iterdir()}
    arguments = [str(folder), str(tmp_path / image), *options]
    assert main(["inspect", *arguments, "-o", str(tmp_path / f"x.{kind}")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-hired: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "out", ["x.jpg", "x", "none/x.png", "photo.png/x.png", "folder.png"]
)
def test_where_nothing_can_be_written(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, out: str
) -> None:
    noise_image(100, 80).save(tmp_path / "photo.png")
    (tmp_path / "folder.png").mkdir()
    before = {*tmp_path.iterdir()}
    arguments = [str(checkpoint), str(tmp_path / "photo.png")]
    assert main(["inspect", *arguments, "-o", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vllm-hired: -o {tmp_path / out}")
    assert error.count("\n") == 1
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["png", "html"])
def test_any_name_that_a_file_may_have(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    """One that is no text, and one as long as they come."""
    image = tmp_path / os.fsdecode(b"\xff.png")
    noise_image(100, 80).save(image)
    out = tmp_path / ("x" * 250 + f".{kind}")
    arguments = ["inspect", str(checkpoint), str(image), "-o", str(out)]
    assert main(arguments) == 0
    assert out.stat().st_size > 1000


@pytest.mark.slow
def test_a_stopped_command_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    noise_image(100, 80).save(tmp_path / "photo.png")
    arguments = ["inspect", str(checkpoint), str(tmp_path / "photo.png")]
    # The signal comes once all is written, under the name for the time being.
    code = f"""
import os, pathlib, signal, sys, time
from vllm_hired.tools.cli import script

def interrupted(path, target):
    assert path.name.startswith(".") and path.exists()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

pathlib.Path.replace = interrupted
sys.argv[1:] = {[*arguments, "-o", str(tmp_path / "kept.html")]!r}
sys.exit(script())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
