"""`vllm-hired inspect` of a Qwen-VL, without an engine: what is shown, and of what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from random_checkpoints.qwen_vl import write_qwen_checkpoint
from random_checkpoints.qwen_vl_configs import small_qwen
from tests.conftest import WriteQwenCheckpoint
from tests.engine import noise_image
from tests.inspections import check_refused, inspect_noise
from tests.qwen import MODEL_TYPES, QwenFrontEnd, kept_count
from tests.test_page import flags
from vllm_hired.config import HiredConfig
from vllm_hired.layouts.qwen_vl import grid_layout
from vllm_hired.selectors import SELECTORS
from vllm_hired.tools.inspect.inspection import inspect_image
from vllm_hired.tools.inspect.page import page_data


def picture_of(
    patches: torch.Tensor, grid: torch.Tensor, vision: Any, processor: Any
) -> torch.Tensor:
    """`[3, H, W]` in [0, 1], patch by patch of HF's `pixel_values` of an image."""
    side, merge = vision.patch_size, vision.spatial_merge_size
    _, rows, cols = grid.tolist()
    picture = torch.zeros(3, rows * side, cols * side)
    following = iter(patches.view(len(patches), 3, -1, side, side))
    for cell_row in range(0, rows, merge):
        for cell_col in range(0, cols, merge):
            for row in range(cell_row, cell_row + merge):
                for col in range(cell_col, cell_col + merge):
                    frames = next(following)
                    top, left = row * side, col * side
                    picture[:, top : top + side, left : left + side] = frames[:, 0]
    if patches.dtype == torch.uint8:
        # This vLLM normalises where the tower runs.
        return picture / 255
    for channel, (mean, std) in enumerate(
        zip(processor.image_mean, processor.image_std, strict=True)
    ):
        picture[channel] = picture[channel] * std + mean
    return picture.clamp(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    [
        # One tower of each kind of attention among the usual ones.
        name
        if name in ("qwen2_5_vl", "qwen3_vl")
        else pytest.param(name, marks=pytest.mark.matrix)
        for name in MODEL_TYPES
    ],
)
def test_the_tower_sees_what_the_servers_sees(
    make_qwen: WriteQwenCheckpoint, model_type: str
) -> None:
    """The image's own grid, and on each of its cells the pixels that become it."""
    folder = make_qwen(model_type)
    front_end = QwenFrontEnd(folder, dtype="float32")
    processor = front_end.processor.info.get_image_processor()
    vision = front_end.hf_config.vision_config
    for image in (noise_image(300, 60), noise_image(20, 500), noise_image(700, 900)):
        seen = inspect_image(str(folder), "", image, {})
        (item,) = front_end(image)["mm_kwargs"]["image"]
        grid = item["image_grid_thw"].data
        assert seen.layout == grid_layout(*front_end.grid(image))
        expected = picture_of(item["pixel_values"].data, grid, vision, processor)
        torch.testing.assert_close(seen.partitions[0], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_page_shows_every_method_on_the_images_own_grid(
    make_qwen: WriteQwenCheckpoint,
) -> None:
    image = noise_image(390, 110)
    inspection = inspect_image(str(make_qwen("qwen2_5_vl")), "", image, {})
    hired = HiredConfig.from_hf_config(inspection.configured({"hired_budget": 0.43}))
    data = page_data(inspection, [hired])
    layout = inspection.layout
    assert (layout.rows, layout.cols) == (4, 14)
    assert (data["layout"]["rows"], data["layout"]["cols"]) == (4, 14)
    assert data["cell"] == {"height": 28, "width": 28}
    assert (data["partitions"], data["canvas"]) == (["image"], None)
    assert data["attention"] == "received"
    assert [method["name"] for method in data["methods"]] == [*SELECTORS]
    assert data["left_out"] == []
    for method in data["methods"]:
        assert not method["uses_alpha"]
        for row, budget in zip(
            flags(method["kept"], layout.num_cells), data["budgets"], strict=True
        ):
            rho = float(budget["percent"]) / 100
            assert budget["tokens"] == row.sum() == kept_count(4, 14, str(rho))
            settings = {"hired_budget": rho, "hired_selector": method["name"]}
            step = HiredConfig.from_hf_config(inspection.configured(settings))
            kept = row.nonzero().flatten().tolist()
            assert kept == inspection.select(step).tolist()
    notes = {budget["percent"]: budget["note"] for budget in data["budgets"]}
    assert notes["10"] == "An image of this shape keeps at least 14."
    assert notes["43"] == ""
    assert notes["100"] == "Nothing is dropped: vLLM's stock path."


@pytest.mark.slow
def test_limits_of_pixels(
    make_qwen: WriteQwenCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the checkpoint, or of a request as `plan` takes them, too."""
    folder = make_qwen("qwen2_5_vl")
    for given, grid in (
        ([], (20, 10)),
        (["--max-pixels", str(50 * 28**2)], (10, 5)),
        (["--min-pixels", str(240 * 28**2)], (22, 11)),
    ):
        assert inspect_noise(folder, tmp_path, (280, 560), *given) == 0
        said = capsys.readouterr().out
        kept = kept_count(*grid, "0.2")
        tokens = grid[0] * grid[1]
        assert f"has {tokens} visual tokens; kept: {kept} at 0.2" in said
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.height > 22 * 28


@pytest.mark.parametrize(
    ("size", "options", "said"),
    [
        ((2, 900), [], "too long and thin"),
        ((90, 90), ["--max-pixels", "0"], "--max-pixels 0: it must be above 0"),
        ((90, 90), ["--attention", "cls"], "has no [CLS]"),
        ((90, 90), ["--final-layer", "2"], "its layers with full attention are 1, 3"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    make_qwen: WriteQwenCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int, int],
    options: list[str],
    said: str,
) -> None:
    check_refused(capsys, make_qwen("qwen2_5_vl"), tmp_path, size, options, said)


def test_a_checkpoint_that_lacks_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_qwen_checkpoint(tmp_path / "model", small_qwen("qwen3_vl"), None)
    said = "has no model.safetensors"
    check_refused(capsys, folder, tmp_path, (90, 90), [], said)
    (folder / "preprocessor_config.json").unlink()
    said = "has no preprocessor_config.json"
    check_refused(capsys, folder, tmp_path, (90, 90), [], said)
