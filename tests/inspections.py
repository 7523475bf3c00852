"""What tests of `vllm-hired inspect` ask of every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM

from tests.engine import noise_image, processed
from vllm_hired.config import HiredConfig
from vllm_hired.engine.inputs import item_layout
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.tools.cli import main
from vllm_hired.tools.inspect.inspection import inspect_image

EXACT = SELECTORS.keys() - {"random"}
"""Selectors that keep the same where scores round differently; the last bits of scores
are the seed of `random`."""


def check_kept_as_by_engine(
    llm: LLM,
    folder: Path,
    requests: dict[float, dict[str, Any]],
    pixels_of: Callable[[Any], Any],
) -> None:
    """What is shown of an image is what the engine keeps of it.

    Args:
        llm: the engine.
        folder: its checkpoint.
        requests: by budget, each of the same image.
        pixels_of: what the model's `select` takes of the processed image.
    """
    (model,) = llm.apply_model(lambda model: model)
    (image,) = next(iter(requests.values()))["multi_modal_data"]["image"]
    inspection = inspect_image(str(folder), "noise", image, {})
    for budget, request in requests.items():
        (item,) = processed(llm, request)["mm_kwargs"]["image"]
        layout = item_layout(model.config, item)
        count = int(item["num_kept"].data)
        assert inspection.layout == layout
        for name in EXACT:
            with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
                patch.setattr(model, "selector", make_selector(name))
                _, (selection,) = model.select(pixels_of(item), [layout], [count])
            settings = {"hired_budget": budget, "hired_selector": name}
            hired = HiredConfig.from_hf_config(inspection.configured(settings))
            assert inspection.kept_count(hired).tokens == count
            kept = inspection.select(hired).tolist()
            assert kept == selection.cells.tolist(), (name, budget)


def inspect_noise(
    folder: Path, tmp_path: Path, size: tuple[int, int], *options: str
) -> int:
    """The command's exit status on an image of so many pixels."""
    noise_image(*size).save(tmp_path / "photo.png")
    arguments = [str(folder), str(tmp_path / "photo.png"), *options]
    return main(["inspect", *arguments, "-o", str(tmp_path / "kept.png")])


def check_refused(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    size: tuple[int, int],
    options: list[str],
    said: str,
) -> None:
    """In one line, with status 2 and no file."""
    assert inspect_noise(folder, tmp_path, size, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-hired: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not (tmp_path / "kept.png").exists()
