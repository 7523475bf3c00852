"""`vllm-hired plan` on InternVL checkpoints: counts, arithmetic, processor files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from random_checkpoints.internvl import write_internvl_checkpoint
from random_checkpoints.internvl_configs import INTERNVL_SHAPES
from tests.conftest import WriteInternVLCheckpoint
from tests.internvl import InternVLFrontEnd, engine_options
from tests.internvl_reference import InternVLReference
from tests.planning import (
    FEW_EXAMPLES,
    check_counts,
    check_llm_flops,
    check_reads_what_transformers_reads,
    check_refused,
    count_flops,
    plan,
)
from vllm_hired.tools.cost import partition_flops, projector_flops


@pytest.fixture(scope="module")
def front_end(internvl: Path, internvl_type: str) -> InternVLFrontEnd:
    return InternVLFrontEnd(internvl, **engine_options(internvl_type))


@FEW_EXAMPLES
@given(data=st.data())
def test_counts_are_the_engines(
    front_end: InternVLFrontEnd,
    internvl_type: str,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    """Ten random sizes an example, each whole and at a random budget, within the
    checkpoint's own limit of tiles, or in HF's format another."""
    side = st.integers(1, 600)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=10, max_size=10))
    budget = data.draw(st.integers(1, 99)) / 100
    # In the other format vLLM's video processor refuses a request's limits.
    most = data.draw(st.sampled_from([2, 5])) if internvl_type == "internvl" else None
    options = ("--max-tiles", str(most)) if most else ()
    limits = {"max_patches": most} if most else {}
    check_counts(capsys, front_end, sizes, budget, options, limits)


def test_operations_are_those_that_torch_counts(
    make_internvl: WriteInternVLCheckpoint,
) -> None:
    """Matrix products of HF's modules."""
    reference = InternVLReference(make_internvl("internvl"))
    model, config = reference.model, reference.model.config
    side = reference.tile_side
    pixels = torch.rand(1, 3, side, side)
    found = count_flops(lambda: model.model.vision_tower(pixels))
    assert found == partition_flops(config)
    features = torch.rand(10, 4 * config.vision_config.hidden_size)
    found = count_flops(lambda: model.model.multi_modal_projector(features))
    assert found == projector_flops(config, 10)
    check_llm_flops(model, torch.arange(50)[None])


def test_plan_reads_what_transformers_reads(
    capsys: pytest.CaptureFixture[str], make_internvl: WriteInternVLCheckpoint
) -> None:
    """Not of the other format, whose config only its own code makes."""
    check_reads_what_transformers_reads(capsys, str(make_internvl("internvl")))


@pytest.mark.slow
def test_a_process_of_its_own_needs_no_vllm(internvl: Path) -> None:
    """And runs no code of the checkpoint."""
    code = (
        "import sys; from vllm_hired.tools.cli import main; "
        f"assert main(['plan', {str(internvl)!r}, '--size', '640x480']) == 0; "
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
    check_refused(capsys, arguments, "give --min-tiles and --max-tiles")
    (stock, *_) = plan(capsys, *arguments, "--min-tiles", "1", "--max-tiles", "2")
    assert stock["tile grid"] == "1x2"
    file = {"image_processor": {"min_patches": 1, "max_patches": 2}}
    (tmp_path / "processor_config.json").write_text(json.dumps(file))
    assert plan(capsys, *arguments)[0] == stock


def test_wrong_limits_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], internvl: Path, checkpoint: Path
) -> None:
    for arguments, said in (
        ([str(internvl), "--max-tiles", "0"], "--max-tiles 0: it must be above 0"),
        ([str(internvl), "--max-pixels", "9"], "leave --min-pixels and"),
        ([str(checkpoint), "--max-tiles", "9"], "leave --min-tiles and"),
    ):
        check_refused(capsys, [*arguments, "--size", "10x10"], said)
