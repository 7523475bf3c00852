"""`vllm-hired plan` on InternVL checkpoints: counts, arithmetic, processor files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.internvl_checkpoints import write_internvl_checkpoint
from benchmarks.internvl_configs import INTERNVL_SHAPES
from tests.conftest import WriteInternVLCheckpoint
from tests.internvl import FORMATS, InternVLFrontEnd, engine_options
from tests.internvl_reference import InternVLReference
from tests.test_plan import plan
from vllm_hired.tools import checkpoint as checkpoint_module
from vllm_hired.tools.cli import main
from vllm_hired.tools.cost import llm_flops, partition_flops, projector_flops


@pytest.fixture(scope="module", params=FORMATS)
def model_type(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(make_internvl: WriteInternVLCheckpoint, model_type: str) -> Path:
    return make_internvl(model_type)


@pytest.fixture(scope="module")
def front_end(folder: Path, model_type: str) -> InternVLFrontEnd:
    return InternVLFrontEnd(folder, **engine_options(model_type))


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_counts_are_the_engines(
    folder: Path,
    front_end: InternVLFrontEnd,
    model_type: str,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    """Ten random sizes an example, each whole and at a random budget, within the
    checkpoint's own limit of tiles, or in HF's format another."""
    side = st.integers(1, 600)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=10, max_size=10))
    budget = data.draw(st.integers(1, 99)) / 100
    # In the other format vLLM's video processor refuses a request's limits.
    most = data.draw(st.sampled_from([2, 5])) if model_type == "internvl" else None
    option = ["--max-tiles", str(most)] if most else []
    limits = {"max_patches": most} if most else {}
    names = [f"{width}x{height}" for width, height in sizes]
    rows = plan(capsys, str(folder), "--size", *names, "--budget", str(budget), *option)
    by_size = {(row["size"], row["budget"]): row["kept tokens"] for row in rows}
    for size, name in zip(sizes, names, strict=True):
        image = Image.new("RGB", size)
        for asked, label in ((1.0, "stock"), (budget, budget)):
            inputs = front_end(image, budget=asked, **limits)
            assert front_end.placeholders(inputs) == [by_size[name, label]], name


def test_operations_are_those_that_torch_counts(
    make_internvl: WriteInternVLCheckpoint,
) -> None:
    """Matrix products of HF's modules; its attention is not causal, ours is."""
    reference = InternVLReference(make_internvl("internvl"))
    model, config = reference.model, reference.model.config
    tower, language = model.model.vision_tower, model.model.language_model

    def count(call: Any) -> int:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            call()
        return int(counter.get_total_flops())

    side = reference.tile_side
    assert count(lambda: tower(torch.rand(1, 3, side, side))) == partition_flops(config)
    features = torch.rand(10, 4 * config.vision_config.hidden_size)
    assert count(lambda: model.model.multi_modal_projector(features)) == (
        projector_flops(config, 10)
    )
    tokens, text = 50, config.text_config
    embeddings = torch.rand(1, tokens, text.hidden_size)
    future = tokens * tokens - tokens * (tokens + 1) // 2
    width = text.num_attention_heads * text.head_dim
    positions = torch.arange(tokens)[None]
    angles = count(lambda: language.rotary_emb(embeddings, positions))
    found = count(
        lambda: model.lm_head(
            language(inputs_embeds=embeddings).last_hidden_state[:, -1]
        )
    )
    assert found == (
        llm_flops(text, tokens) + 4 * future * width * text.num_hidden_layers + angles
    )


def test_plan_reads_what_transformers_reads(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_internvl: WriteInternVLCheckpoint,
) -> None:
    folder = str(make_internvl("internvl"))
    short = plan(capsys, folder, "--size", "400x300")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "read_config_file", lambda model: None)
        assert plan(capsys, folder, "--size", "400x300") == short


@pytest.mark.slow
def test_a_process_of_its_own_needs_no_vllm(folder: Path) -> None:
    """And runs no code of the checkpoint."""
    code = (
        "import sys; from vllm_hired.tools.cli import main; "
        f"assert main(['plan', {str(folder)!r}, '--size', '640x480']) == 0; "
        "assert not {'torch', 'transformers', 'vllm'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        # 36 layers of keys and values of 8 heads of 128 numbers of 2 bytes.
        ("internvl3.5-8b", 144 * 2**10),
        # 28 layers, 4 heads.
        ("internvl3-8b", 56 * 2**10),
    ],
)
def test_the_published_8b(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    bytes_per_token: int,
) -> None:
    """Figures that can be checked by hand: a photograph of 4 to 3 has 4 x 3 tiles and a
    thumbnail of 256 cells."""
    folder = write_internvl_checkpoint(tmp_path, INTERNVL_SHAPES[name], seed=None)
    stock, fifth = plan(capsys, str(folder), "--size", "1600x1200", "--budget", "0.2")
    assert (stock["tile grid"], stock["kept tokens"]) == ("3x4", 13 * 256)
    assert fifth["kept tokens"] == 13 * 256 // 5
    assert fifth["KV bytes/image"] == 665 * bytes_per_token
    assert stock["tower FLOPs"] == fifth["tower FLOPs"]
    (small, *_) = plan(capsys, str(folder), "--size", "400x400")
    assert small["kept tokens"] == 256


def test_forms_of_the_processor_file(
    capsys: pytest.CaptureFixture[str],
    make_internvl: WriteInternVLCheckpoint,
    tmp_path: Path,
) -> None:
    """Without one, the limits must be given."""
    config = (make_internvl("internvl") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    arguments = [str(tmp_path), "--size", "252x168"]
    assert main(["plan", *arguments]) == 2
    assert "give --min-tiles and --max-tiles" in capsys.readouterr().err
    (stock, *_) = plan(capsys, *arguments, "--min-tiles", "1", "--max-tiles", "2")
    assert stock["tile grid"] == "1x2"
    file = {"image_processor": {"min_patches": 1, "max_patches": 2}}
    (tmp_path / "processor_config.json").write_text(json.dumps(file))
    assert plan(capsys, *arguments)[0] == stock


def test_wrong_limits_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], folder: Path, checkpoint: Path
) -> None:
    for arguments, said in (
        ([str(folder), "--max-tiles", "0"], "--max-tiles 0: it must be above 0"),
        ([str(folder), "--max-pixels", "9"], "leave --min-pixels and"),
        ([str(checkpoint), "--max-tiles", "9"], "leave --min-tiles and"),
    ):
        assert main(["plan", *arguments, "--size", "10x10"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert said in captured.err
