"""`vllm-hired plan`: its counts against the engine's front end, its arithmetic against
torch's own counter, its refusals."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from random_checkpoints.llava import (
    REAL_PINPOINTS,
    SHAPES,
    make_config,
    make_tokenizer,
    small,
    write_checkpoint,
)
from tests.conftest import ARCHITECTURES, NO_CLS, WriteCheckpoint
from tests.engine import noise_image
from tests.front_end import FrontEnd
from tests.planning import (
    FEW_EXAMPLES,
    check_counts,
    check_llm_flops,
    check_reads_what_transformers_reads,
    check_refused,
    count_flops,
    plan,
)
from tests.reference import Reference
from vllm_hired import __version__
from vllm_hired.tools.cli import main
from vllm_hired.tools.config_file import DEFAULTS, QWEN_DEFAULTS
from vllm_hired.tools.cost import partition_flops, projector_flops
from vllm_hired.tools.inspect.partitions import inner_tower


@pytest.fixture(scope="module", params=ARCHITECTURES)
def front_end(
    make_checkpoint: WriteCheckpoint, request: pytest.FixtureRequest
) -> FrontEnd:
    """Of a checkpoint with the real vision layout."""
    folder = make_checkpoint(
        tile_size=336,
        patch_size=14,
        pinpoints=REAL_PINPOINTS,
        **ARCHITECTURES[request.param],
    )
    return FrontEnd(folder)


@FEW_EXAMPLES
@given(data=st.data())
def test_counts_are_the_engines(
    front_end: FrontEnd,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    """Twenty random sizes an example, 200 in all, each whole and at a random budget."""
    side = st.integers(40, 1500)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=20, max_size=20))
    budget = data.draw(st.integers(1, 99)) / 100
    check_counts(capsys, front_end, sizes, budget)


def test_operations_are_those_that_torch_counts(checkpoint: Path) -> None:
    """Matrix products of HF's modules."""
    reference = Reference(checkpoint)
    model, config = reference.model.model, reference.model.config
    vision = config.vision_config
    tower = model.vision_tower
    encoder = inner_tower(tower).encoder
    encoder.layers = encoder.layers[:3]  # what vLLM builds at layer -2

    side = vision.image_size
    assert count_flops(lambda: tower(torch.rand(1, 3, side, side))) == (
        partition_flops(config)
    )
    features = torch.rand(10, vision.hidden_size)
    assert count_flops(lambda: model.multi_modal_projector(features)) == (
        projector_flops(config, 10)
    )
    check_llm_flops(reference.model, torch.arange(50)[None])


@pytest.mark.parametrize("model_type", [*DEFAULTS, *QWEN_DEFAULTS])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    config = AutoConfig.for_model(model_type)
    stated = (DEFAULTS | QWEN_DEFAULTS)[model_type]
    assert stated == {name: getattr(config, name) for name in stated}


def test_plan_reads_what_transformers_reads(
    capsys: pytest.CaptureFixture[str], make_checkpoint: WriteCheckpoint
) -> None:
    folders = [make_checkpoint(**change) for change in ARCHITECTURES.values()]
    folders += [make_checkpoint(backbone="qwen2"), make_checkpoint(**NO_CLS["siglip"])]
    for folder in folders:
        check_reads_what_transformers_reads(capsys, str(folder))


def test_the_published_7b(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Figures that can be checked by hand."""
    folder = write_checkpoint(tmp_path, SHAPES["llava-next-7b"], seed=None)
    options = ["--kv-cache-gib", "4", "--text-tokens", "31", "--block-size", "128"]
    stock, kept = plan(
        capsys, str(folder), "--size", "672x672", "--budget", "0.2", *options
    )
    assert (stock["kept tokens"], kept["kept tokens"]) == (2928, 576)
    # 32 layers of keys and values of 4,096 numbers of 2 bytes: 512 KiB a token.
    assert kept["KV bytes/image"] == 576 * 2**19
    assert kept["KV bytes/request"] == 5 * 128 * 2**19
    # 64 blocks; 2,959 tokens need 24 of them, 607 need 5.
    assert (stock["requests at once"], kept["requests at once"]) == (2, 12)
    assert 4 < kept["arithmetic bound"] < 5
    assert stock["tower FLOPs"] == kept["tower FLOPs"]
    assert stock["projector FLOPs"] == 5 * kept["projector FLOPs"]


def test_grouped_queries_need_less(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, SHAPES["llava-next-mistral-7b"], seed=None)
    (_, kept) = plan(capsys, str(folder), "--size", "672x672", "--budget", "0.2")
    assert kept["KV bytes/image"] == 576 * 2**19 // 4


def test_sizes_alone_have_no_rows_over_all(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    arguments = ["plan", str(checkpoint), "--size", "60x60", "0100x20"]
    assert main([*arguments, "--csv"]) == 0
    table = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [row["size"] for row in table[::4]] == ["60x60", "100x20"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n|") == 9


@pytest.mark.parametrize(("text", "value"), [("20%", 0.2), ("35%", 0.35), ("0.4", 0.4)])
def test_budgets_in_percent(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, text: str, value: float
) -> None:
    (_, row) = plan(capsys, str(checkpoint), "--size", "112x112", "--budget", text)
    assert row["budget"] == value


@pytest.mark.parametrize("text", ["half", "20%%", "%", "2%0", ""])
def test_budgets_that_are_none(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, text: str
) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(checkpoint), "--size", "9x9", "--budget", text])
    assert "give a fraction such as 0.2, or 20%" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--version"], f"vllm-hired {__version__}"),
        (["plan", "--help"], "(default: 0.4 0.2 0.1)"),
        (["inspect", "--help"], "(default: hired)"),
    ):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 0
        assert said in " ".join(capsys.readouterr().out.split())


def test_a_cap(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    rows = plan(capsys, str(checkpoint), "--size", "112x112", "--token-cap", "40")
    assert [row["kept tokens"] for row in rows] == [336, 40, 40, 32]


@pytest.mark.slow
def test_a_process_of_its_own_needs_no_vllm(checkpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "photo.png"
    noise_image(1024, 768).save(image)
    commands = (
        ["plan", str(checkpoint), "--images", str(image)],
        ["inspect", str(checkpoint), str(image), "-o", str(image)],
    )
    code = (
        "import sys; from vllm_hired.tools.cli import main; "
        f"assert main({commands[0]}) == 0; "
        "assert not {'torch', 'transformers'} & {*sys.modules}; "
        f"assert main({commands[1]}) == 0; assert 'vllm' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "1024x768" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MODEL"], "no image size"),
        (["MODEL", "--size", "0x5"], "--size 0x5: it must be WIDTHxHEIGHT"),
        (["MODEL", "--size", "axb"], "--size axb: it must be WIDTHxHEIGHT"),
        (["MODEL", "--size", "5"], "it must be WIDTHxHEIGHT"),
        (["MODEL", "--size", "1x5 "], "it must be WIDTHxHEIGHT"),
        (["MODEL", "--size", "1x3000"], "too long and thin"),
        (["MODEL", "--size", "9x9", "--budget", "1.5"], "hired_budget=1.5 is not"),
        (["MODEL", "--size", "9x9", "--budget", "nan"], "hired_budget=nan is not"),
        (["MODEL", "--size", "9x9", "--token-cap", "0"], "hired_token_cap=0 is not"),
        (["MODEL", "--size", "9x9", "--kv-cache-gib", "0"], "must be a number above 0"),
        (["MODEL", "--size", "9x9", "--kv-cache-gib", "nan"], "a number above 0"),
        (["MODEL", "--size", "9x9", "--kv-cache-gib", "inf"], "a number above 0"),
        (["MODEL", "--images", "FILE"], "text.png is not an image"),
        (["MODEL", "--images", "EMPTY"], "no image in this folder"),
        (["MODEL", "--images", "EMPTY/none.png"], "No such file"),
        (["EMPTY", "--size", "9x9"], "no checkpoint: it has no config.json"),
        (["BROKEN", "--size", "9x9"], "neither a directory with a config.json"),
        (["no/such-model", "--size", "9x9"], "neither a directory with a config"),
        (["LLM", "--size", "9x9"], "is LlamaForCausalLM; vllm_hired serves"),
        (["PIXTRAL", "--size", "9x9"], "can read the towers clip_vision_model"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    make_checkpoint: WriteCheckpoint,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    names = {
        "MODEL": make_checkpoint(
            tile_size=336, patch_size=14, pinpoints=REAL_PINPOINTS
        ),
        "EMPTY": tmp_path / "empty",
        "BROKEN": tmp_path / "broken",
        "LLM": tmp_path / "llm",
        "PIXTRAL": tmp_path / "pixtral",
        "FILE": tmp_path / "text.png",
    }
    for name in ("EMPTY", "BROKEN", "LLM"):
        names[name].mkdir()
    (names["BROKEN"] / "config.json").write_text("{")
    config = make_config(small(**NO_CLS["pixtral"]), make_tokenizer())
    config.save_pretrained(names["PIXTRAL"])
    (names["LLM"] / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    )
    names["FILE"].write_text("no image")
    filled = [
        str(names[head] / rest) if (head := word.partition("/")[0]) in names else word
        for word in arguments
        for rest in [word.partition("/")[2]]
    ]
    check_refused(capsys, filled, said)
