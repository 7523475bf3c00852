"""`vllm-hired plan` on Qwen-VL checkpoints: counts, arithmetic, processor files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from random_checkpoints.qwen_vl import write_qwen_checkpoint
from random_checkpoints.qwen_vl_configs import QWEN_SHAPES
from tests.conftest import WriteQwenCheckpoint
from tests.planning import (
    FEW_EXAMPLES,
    check_counts,
    check_llm_flops,
    check_reads_what_transformers_reads,
    check_refused,
    count_flops,
    plan,
)
from tests.qwen import MODEL_TYPES, QwenFrontEnd
from vllm_hired.layouts.qwen_vl import grid_layout
from vllm_hired.tools.grid_cost import grid_flops


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def qwen(make_qwen: WriteQwenCheckpoint, request: pytest.FixtureRequest) -> Path:
    return make_qwen(request.param)


@pytest.fixture(scope="module")
def front_end(qwen: Path) -> QwenFrontEnd:
    return QwenFrontEnd(qwen)


@FEW_EXAMPLES
@given(data=st.data())
def test_counts_are_the_engines(
    front_end: QwenFrontEnd,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    """Ten random sizes an example, each whole and at a random budget, within the
    checkpoint's own limits of pixels or others."""
    side = st.integers(20, 1500)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=10, max_size=10))
    budget = data.draw(st.integers(1, 99)) / 100
    limits: dict[str, int] = data.draw(
        st.sampled_from([{}, {"max_pixels": 90_000}, {"min_pixels": 200_000}])
    )
    options = tuple(
        word
        for name, value in limits.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    )
    check_counts(capsys, front_end, sizes, budget, options, limits)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_operations_are_those_that_torch_counts(
    make_qwen: WriteQwenCheckpoint, model_type: str
) -> None:
    """Matrix products of HF's modules."""
    model = AutoModelForImageTextToText.from_pretrained(
        make_qwen(model_type),
        attn_implementation="eager",
        experts_implementation="eager",
    )
    vision = model.config.vision_config
    rows, cols = 9, 13
    grid = torch.tensor([[1, 2 * rows, 2 * cols]])
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.rand(4 * rows * cols, values)
    found = count_flops(lambda: model.model.visual(pixels, grid_thw=grid))
    assert found == sum(grid_flops(vision, grid_layout(rows, cols)))
    check_llm_flops(model, torch.arange(50).expand(3, 1, -1))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_plan_reads_what_transformers_reads(
    capsys: pytest.CaptureFixture[str], make_qwen: WriteQwenCheckpoint, model_type: str
) -> None:
    check_reads_what_transformers_reads(capsys, str(make_qwen(model_type)))


def test_the_published_7b(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Figures that can be checked by hand."""
    folder = write_qwen_checkpoint(tmp_path, QWEN_SHAPES["qwen2.5-vl-7b"], seed=None)
    options = ["--budget", "0.2", "0.01", "--block-size", "16", "--text-tokens", "31"]
    stock, fifth, least = plan(capsys, str(folder), "--size", "1008x756", *options)
    # 36 x 27 cells of 28 pixels; the longer side is the least that stays.
    assert [row["kept tokens"] for row in (stock, fifth, least)] == [972, 194, 36]
    # 28 layers of keys and values of 4 heads of 128 numbers of 2 bytes: 56 KiB a token.
    assert fifth["KV bytes/image"] == 194 * 56 * 2**10
    assert stock["tower FLOPs"] == fifth["tower FLOPs"]


@pytest.mark.parametrize("form", ["size", "pixels", "processor_config", "none"])
def test_forms_of_the_processor_file(
    capsys: pytest.CaptureFixture[str],
    make_qwen: WriteQwenCheckpoint,
    tmp_path: Path,
    form: str,
) -> None:
    config = (make_qwen("qwen2_5_vl") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    limits: dict[str, Any] = {
        "size": {"size": {"shortest_edge": 3136, "longest_edge": 78_400}},
        "pixels": {"min_pixels": 3136, "max_pixels": 78_400},
        "processor_config": {
            "image_processor": {"min_pixels": 3136, "max_pixels": 78_400}
        },
    }
    name = "processor_config" if form == "processor_config" else "preprocessor_config"
    if form != "none":
        (tmp_path / f"{name}.json").write_text(json.dumps(limits[form]))
        (stock, *_) = plan(capsys, str(tmp_path), "--size", "2000x2000")
        assert stock["stock tokens"] == 100
        return
    check_refused(
        capsys,
        [str(tmp_path), "--size", "20x20"],
        "has no preprocessor_config.json",
    )
    given = ["--min-pixels", "784", "--max-pixels", "78400"]
    (stock, *_) = plan(capsys, str(tmp_path), "--size", "2000x2000", *given)
    assert stock["stock tokens"] == 100


def test_wrong_limits_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], qwen: Path, checkpoint: Path
) -> None:
    for arguments, said in (
        ([str(qwen), "--max-pixels", "0"], "--max-pixels 0: it must be above 0"),
        ([str(checkpoint), "--max-pixels", "9"], "leave --min-pixels and"),
        ([str(qwen), "--size", "1x3000"], "too long and thin"),
    ):
        check_refused(capsys, [*arguments, "--size", "1x3000"], said)
