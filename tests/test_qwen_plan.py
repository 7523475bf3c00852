"""`vllm-hired plan` on Qwen-VL checkpoints: counts, arithmetic, processor files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.qwen_checkpoints import write_qwen_checkpoint
from benchmarks.qwen_configs import QWEN_SHAPES
from tests.conftest import WriteQwenCheckpoint
from tests.qwen import QwenFrontEnd
from tests.test_plan import plan
from vllm_hired.layouts.qwen_vl import grid_layout
from vllm_hired.tools import checkpoint as checkpoint_module
from vllm_hired.tools.cli import main
from vllm_hired.tools.config_file import QWEN_DEFAULTS, read_config_file
from vllm_hired.tools.cost import llm_flops
from vllm_hired.tools.grid_cost import grid_flops

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def qwen(make_qwen: WriteQwenCheckpoint, request: pytest.FixtureRequest) -> Path:
    return make_qwen(request.param)


@pytest.fixture(scope="module")
def front_end(qwen: Path) -> QwenFrontEnd:
    return QwenFrontEnd(qwen)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_counts_are_the_engines(
    qwen: Path,
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
    options = [
        word
        for name, value in limits.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    names = [f"{width}x{height}" for width, height in sizes]
    rows = plan(capsys, str(qwen), "--size", *names, "--budget", str(budget), *options)
    by_size = {(row["size"], row["budget"]): row["kept tokens"] for row in rows}
    for size, name in zip(sizes, names, strict=True):
        image = Image.new("RGB", size)
        for asked, label in ((1.0, "stock"), (budget, budget)):
            inputs = front_end(image, budget=asked, **limits)
            assert front_end.placeholders(inputs) == [by_size[name, label]], name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_operations_are_those_that_torch_counts(
    make_qwen: WriteQwenCheckpoint, model_type: str
) -> None:
    """Matrix products of HF's modules; its attention is not causal, ours is."""
    model = AutoModelForImageTextToText.from_pretrained(
        make_qwen(model_type),
        attn_implementation="eager",
        experts_implementation="eager",
    )
    tower, language = model.model.visual, model.model.language_model
    config = model.config
    vision, text = config.vision_config, config.text_config

    def count(call: Any) -> int:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            call()
        return int(counter.get_total_flops())

    rows, cols = 9, 13
    grid = torch.tensor([[1, 2 * rows, 2 * cols]])
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.rand(4 * rows * cols, values)
    assert count(lambda: tower(pixels, grid_thw=grid)) == sum(
        grid_flops(vision, grid_layout(rows, cols))
    )
    tokens = 50
    positions = torch.arange(tokens).expand(3, 1, -1)
    embeddings = torch.rand(1, tokens, text.hidden_size)
    future = tokens * tokens - tokens * (tokens + 1) // 2
    width = text.num_attention_heads * getattr(
        text, "head_dim", text.hidden_size // text.num_attention_heads
    )
    found = count(
        lambda: model.lm_head(
            language(
                inputs_embeds=embeddings, position_ids=positions
            ).last_hidden_state[:, -1]
        )
    )
    angles = count(lambda: language.rotary_emb(embeddings, positions))
    assert found == (
        llm_flops(text, tokens) + 4 * future * width * text.num_hidden_layers + angles
    )


@pytest.mark.parametrize("model_type", QWEN_DEFAULTS)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    assert QWEN_DEFAULTS[model_type] == {
        name: getattr(config, name) for name in QWEN_DEFAULTS[model_type]
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_plan_reads_what_transformers_reads(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_qwen: WriteQwenCheckpoint,
    model_type: str,
) -> None:
    folder = str(make_qwen(model_type))
    assert read_config_file(folder) is not None
    short = plan(capsys, folder, "--size", "400x300")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "read_config_file", lambda model: None)
        assert plan(capsys, folder, "--size", "400x300") == short


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
    assert main(["plan", str(tmp_path), "--size", "20x20"]) == 2
    assert "has no preprocessor_config.json" in capsys.readouterr().err
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
        assert main(["plan", *arguments, "--size", "1x3000"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert said in captured.err
