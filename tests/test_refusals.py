"""What the front end refuses with a budget, and serves without one."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.exceptions import VLLMValidationError

from tests.conftest import WriteCheckpoint, expect_refusal
from tests.engine import noise_image
from tests.front_end import FrontEnd

IMAGE = noise_image(112, 100)


@pytest.fixture(scope="module")
def front_end(checkpoint: Path) -> FrontEnd:
    return FrontEnd(checkpoint)


def with_processor_file(checkpoint: Path, folder: Path, **changes: object) -> Path:
    """A copy of a checkpoint whose image processor's file says something else."""
    shutil.copytree(checkpoint, folder)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"] |= changes
    path.write_text(json.dumps(config))
    return folder


OTHER_FILES: dict[str, tuple[str, dict[str, Any], str]] = {
    "one canvas of five": (
        "llava_next",
        {"image_grid_pinpoints": [[112, 112]]},
        r"image_grid_pinpoints=\[\[112, 112\]\].*preprocessor_config.json",
    ),
    "another order": (
        "llava_next",
        {"image_grid_pinpoints": [[112, 56], [56, 112], [112, 112], [168, 56]]},
        "image_grid_pinpoints=.*the two must agree",
    ),
    "smaller tiles": (
        "llava_next",
        {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}},
        "preprocessor_config.json .* does not cut the tiles",
    ),
    "smaller crops": (
        "llava",
        {"crop_size": {"height": 28, "width": 28}},
        "preprocessor_config.json .* does not cut the tiles",
    ),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_processor_file_that_disagrees_with_the_config(
    make_checkpoint: WriteCheckpoint, tmp_path: Path, name: str
) -> None:
    """At start-up with a setting; without one, when a request asks for a budget."""
    architecture, changes, said = OTHER_FILES[name]
    good = make_checkpoint(architecture=architecture)
    folder = with_processor_file(good, tmp_path / "copy", **changes)
    with expect_refusal(match=said):
        FrontEnd(folder, hf_overrides={"hired_budget": 0.2})
    front_end = FrontEnd(folder)
    stock = front_end(IMAGE)
    assert front_end(IMAGE, budget=1.0)["mm_hashes"] == stock["mm_hashes"]
    with pytest.raises(VLLMValidationError, match=said) as refusal:
        front_end(IMAGE, budget=0.2)
    assert "mm_processor_kwargs" not in str(refusal.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}},
        {"size": {"shortest_edge": 10**6}},
        {"images_kwargs": {"image_grid_pinpoints": [[56, 56]]}},
        {"do_resize": False},
        {"do_pad": False},
    ],
)
def test_processor_kwargs_that_change_the_tiles(
    front_end: FrontEnd,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    kwargs: Any,
) -> None:
    """Of a request, before HF's processor runs; of an engine, when it starts."""
    front_end(IMAGE, budget=0.2)

    def run(*_: object, **__: object) -> None:
        raise AssertionError("HF's processor ran")

    monkeypatch.setattr(front_end.processor, "_call_hf_processor", run)
    with pytest.raises(VLLMValidationError, match=r"is not allowed.*leave crop_size"):
        front_end(IMAGE, budget=0.2, **kwargs)
    with expect_refusal(match="are those of the checkpoint's own config.json"):
        FrontEnd(
            checkpoint,
            hf_overrides={"hired_budget": 0.2},
            mm_processor_kwargs=kwargs,
        )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"image_std": [1e-45] * 3},
        {"image_std": [0.5, 0.5, 1e-30]},
        {"image_mean": [1e308] * 3},
        {"image_mean": [math.nan] * 3},
        {"rescale_factor": 1e308},
        {"images_kwargs": {"rescale_factor": 1e10}},
        {"rescale_factor": math.inf},
    ],
)
def test_normalisation_that_leaves_the_finite_numbers(
    front_end: FrontEnd, kwargs: Any
) -> None:
    with pytest.raises(VLLMValidationError, match="after normalisation the pixels"):
        front_end(IMAGE, budget=0.2, **kwargs)
    # Ordinary values are a request's to choose.
    assert front_end(IMAGE, budget=0.2, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_images_that_are_not_finite_themselves(
    front_end: FrontEnd, value: float
) -> None:
    pixels = np.random.default_rng(0).random((100, 80, 3), dtype=np.float32)
    pixels[50, 40, 1] = value
    with pytest.raises(VLLMValidationError, match="after normalisation the pixels"):
        front_end(pixels, budget=0.2)


ENGINES: dict[str, tuple[dict[str, Any], str]] = {
    "among processor kwargs": (
        {"mm_processor_kwargs": {"hired_budget": 0.2}},
        r"hired_budget of an engine is given by --hf-overrides",
    ),
    "deep among processor kwargs": (
        {"mm_processor_kwargs": {"images_kwargs": {"hired_alpha": 0.2}}},
        r"hired_alpha of an engine is given by --hf-overrides",
    ),
    "in the text config": (
        {"hf_overrides": {"text_config": {"hired_budget": 0.2}}},
        r"text_config\.hired_budget=0\.2 is not allowed: settings belong to the top",
    ),
    "in the vision config": (
        {"hf_overrides": {"vision_config": {"hired_selector": "even"}}},
        r"vision_config\.hired_selector='even' is not allowed",
    ),
    "a compiled tower": (
        {
            "hf_overrides": {"hired_budget": 0.2},
            "compilation_config": {"compile_mm_encoder": True},
        },
        r"compilation_config\.compile_mm_encoder=True is not allowed: not with",
    ),
    "a captured tower": (
        {
            "hf_overrides": {"hired_token_cap": 50},
            "compilation_config": {"cudagraph_mm_encoder": True},
        },
        r"compilation_config\.cudagraph_mm_encoder=True is not allowed",
    ),
}
"""Engine options, and what refuses them; `e2e.test_processes` starts engines with
them."""


@pytest.mark.parametrize("name", ENGINES)
def test_engines_that_would_ignore_a_setting(checkpoint: Path, name: str) -> None:
    options, said = ENGINES[name]
    with expect_refusal(match=said):
        FrontEnd(checkpoint, **options)


def test_a_compiled_tower_without_settings(checkpoint: Path) -> None:
    """Is stock vLLM's business, until a request asks for a budget."""
    front_end = FrontEnd(checkpoint, compilation_config={"compile_mm_encoder": True})
    assert front_end(IMAGE)["mm_hashes"] == FrontEnd(checkpoint)(IMAGE)["mm_hashes"]
    with pytest.raises(VLLMValidationError, match="compile_mm_encoder=True is not"):
        front_end(IMAGE, budget=0.2)
