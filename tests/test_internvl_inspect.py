"""`vllm-hired inspect` of an InternVL, without an engine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from random_checkpoints.internvl import write_internvl_checkpoint
from random_checkpoints.internvl_configs import small_internvl
from tests.conftest import WriteInternVLCheckpoint
from tests.engine import noise_image
from tests.inspections import check_refused, inspect_noise
from tests.internvl import InternVLFrontEnd, engine_options, kept_count
from tests.internvl_reference import InternVLReference
from vllm_hired.tools.inspect.inspection import inspect_image
from vllm_hired.tools.inspect.tower import by_channel

CELLS = 36
"""Of a tile of the small checkpoints."""


@pytest.fixture(scope="module")
def reference(
    make_internvl: WriteInternVLCheckpoint, internvl_type: str
) -> InternVLReference:
    """Of the format with remote code, the same weights in HF's format."""
    same = {} if internvl_type == "internvl" else {"qk_norm": True, "backbone": "qwen2"}
    return InternVLReference(make_internvl("internvl", **same), internvl_type)


@pytest.mark.slow
def test_the_tower_sees_what_the_servers_sees(
    internvl: Path, internvl_type: str
) -> None:
    """The same tiles in the same order, and the same pixels."""
    front_end = InternVLFrontEnd(
        internvl, **engine_options(internvl_type), dtype="float32"
    )
    mean, std = by_channel((0.485, 0.456, 0.406)), by_channel((0.229, 0.224, 0.225))
    for size in ((252, 168), (84, 84), (90, 260), (31, 500)):
        seen = inspect_image(str(internvl), "", noise_image(*size), {})
        (item,) = front_end(noise_image(*size))["mm_kwargs"]["image"]
        assert seen.layout.num_partitions == int(item["image_num_patches"].data)
        pixels = item[front_end.processor.pixels_key].data
        expected = (pixels * std + mean).clamp(0, 1)
        torch.testing.assert_close(seen.partitions, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["cls", "received"])
def test_what_is_observed_is_hfs(
    internvl: Path, reference: InternVLReference, attention: str
) -> None:
    image, settings = noise_image(252, 168), {"hired_attention": attention}
    seen = inspect_image(str(internvl), "", image, settings).observation
    encoded = reference.encode(reference.pixels(image))
    layers, final = {
        "cls": (encoded.attention, -2),
        "received": (encoded.received, -1),
    }[attention]
    for found, right in (
        (seen.init_attention, layers[0]),
        (seen.final_attention, layers[final]),
        (seen.features, encoded.rows),
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_limits_of_tiles(
    internvl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the checkpoint, or others as `plan` takes them, too."""
    for size, given, partitions in (
        ((252, 168), [], 7),
        ((252, 168), ["--max-tiles", "2"], 3),
        ((84, 84), [], 1),
        ((84, 84), ["--min-tiles", "4"], 5),
    ):
        assert inspect_noise(internvl, tmp_path, size, *given) == 0
        tokens = CELLS * partitions
        kept = kept_count(tokens, "0.2")
        assert f"has {tokens} visual tokens; kept: {kept} at 0.2" in (
            capsys.readouterr().out
        )


def chat_copy(folder: Path, copy: Path, **changes: Any) -> str:
    """With other settings, and without the code that its config.json names."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    (copy / "configuration_internvl_chat.py").unlink()
    return str(copy)


def test_settings_of_the_format_with_remote_code(
    make_internvl: WriteInternVLCheckpoint, tmp_path: Path
) -> None:
    """None of that code runs."""
    original, image = make_internvl("internvl_chat"), noise_image(252, 168)
    usual = inspect_image(str(original), "", image, {"hired_final_layer": 1})

    copy = chat_copy(original, tmp_path / "thumbnail", use_thumbnail=False)
    seen = inspect_image(copy, "", image, {})
    assert (seen.layout.num_partitions, seen.layout.thumbnail) == (6, "none")
    assert torch.equal(seen.partitions, usual.partitions[:6])

    copy = chat_copy(original, tmp_path / "one", dynamic_image_size=False)
    seen = inspect_image(copy, "", image, {})
    assert seen.layout.num_partitions == 1
    assert torch.equal(seen.partitions, usual.partitions[6:])

    copy = chat_copy(original, tmp_path / "layer", select_layer=-2)
    seen = inspect_image(copy, "", image, {})
    # Of three layers that run, the last but one ranks.
    found, expected = seen.observation, usual.observation
    assert torch.equal(found.final_attention, expected.final_attention)
    assert not torch.allclose(found.features, expected.features)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-tiles", "0"], "--max-tiles 0: it must be above 0"),
        (["--max-pixels", "9"], "leave --min-pixels and --max-pixels out"),
        (["--final-layer", "4"], "the vision tower runs layers 0 to 3"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    internvl: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    check_refused(capsys, internvl, tmp_path, (90, 90), options, said)


def test_a_checkpoint_that_lacks_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], internvl_type: str
) -> None:
    folder = write_internvl_checkpoint(
        tmp_path / "model", small_internvl(internvl_type), seed=None
    )
    said = "has no model.safetensors"
    check_refused(capsys, folder, tmp_path, (90, 90), [], said)
    if internvl_type == "internvl_chat":
        return
    (folder / "preprocessor_config.json").unlink()
    said = "has no image processor"
    check_refused(capsys, folder, tmp_path, (90, 90), [], said)
