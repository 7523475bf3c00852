"""`vllm-hired doctor`: environments and models that are fine, and that are not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm import ModelRegistry, envs
from vllm.config import VllmConfig

from random_checkpoints.llava import make_config, make_tokenizer, small
from tests.conftest import NO_CLS, WriteCheckpoint, WriteQwenCheckpoint
from tests.test_contract import BROKEN_SIGNATURES
from vllm_hired import __version__
from vllm_hired.engine import health
from vllm_hired.selectors import SELECTORS
from vllm_hired.tools.cli import main

ROOT = Path(__file__).parent.parent


def doctor(capsys: pytest.CaptureFixture[str], *model: str) -> tuple[int, str, str]:
    """Exit status, the report with its line breaks undone, and what stderr got."""
    status = main(["doctor", *model])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    # One screen, of a terminal of the usual width.
    assert len(lines) < 30
    assert max(map(len, lines)) <= 100
    return status, " ".join(captured.out.split()), captured.err


def test_all_is_fine(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    status, said, errors = doctor(capsys, str(checkpoint))
    assert (status, errors) == (0, "")
    assert "FAILED" not in said
    runner = "V2" if VllmConfig().use_v2_model_runner else "V1"
    for expected in (
        f"vllm-hired {__version__}",
        "ok plugin registered",
        f"ok model runner Model Runner {runner} (VLLM_USE_V2_MODEL_RUNNER=",
        "ok contract all that the plugin relies on",
        "LlavaNextForConditionalGeneration",
        "clip_vision_model, with [CLS]; layers whose attention can rank tokens: 0 to 2",
        f"ok methods {', '.join(SELECTORS)}",
    ):
        assert expected in said


def test_vllms_own_choice_of_a_runner(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once an engine has started, vLLM looks at no environment variable again.
    monkeypatch.setattr(envs, "VLLM_USE_V2_MODEL_RUNNER", None, raising=False)
    assert "vLLM's choice with" in doctor(capsys)[1]


def test_a_qwen(
    capsys: pytest.CaptureFixture[str], make_qwen: WriteQwenCheckpoint
) -> None:
    """Layers with whole attention alone can rank."""
    folder = make_qwen("qwen2_5_vl")
    status, said, _ = doctor(capsys, str(folder))
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    layers = ", ".join(map(str, vision["fullatt_block_indexes"]))
    assert status == 0
    assert f"without [CLS]; layers whose attention can rank tokens: {layers} of" in said


def test_a_tower_without_cls(
    capsys: pytest.CaptureFixture[str], make_checkpoint: WriteCheckpoint
) -> None:
    """What cannot be served is said with its reason, once, and is no failure."""
    folder = make_checkpoint(**NO_CLS["siglip"])
    status, said, _ = doctor(capsys, str(folder))
    assert status == 0
    assert "ok methods uniform, random, divprune" in said
    assert said.count("a siglip_vision_model has no [CLS]") == 1
    assert "ok not served hired, " in said


@pytest.mark.parametrize("name", BROKEN_SIGNATURES)
def test_a_broken_contract(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    BROKEN_SIGNATURES[name][0](monkeypatch)
    status, said, errors = doctor(capsys)
    assert status == 1
    assert "FAILED contract vLLM" in said
    assert "does not fit vllm_hired" in said
    assert errors == "vllm-hired: doctor: failed: contract\n"


def test_the_plugin_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = ["lora_filesystem_resolver", "other"]
    monkeypatch.setattr(envs, "VLLM_PLUGINS", plugins, raising=False)
    status, said, errors = doctor(capsys)
    assert status == 1
    assert "VLLM_PLUGINS='lora_filesystem_resolver,other' leaves 'hired' out" in said
    assert errors == "vllm-hired: doctor: failed: plugin\n"


def failing_register() -> None:
    raise RuntimeError("the registry is full")


def test_the_plugin_cannot_register(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(health, "register", failing_register)
        status, said, _ = doctor(capsys)
        assert status == 1
        assert "FAILED plugin register() raises RuntimeError: the registry" in said
    monkeypatch.setattr(health, "register", lambda: None)
    monkeypatch.delitem(
        ModelRegistry.models, "HiredLlavaForConditionalGeneration", raising=True
    )
    status, said, _ = doctor(capsys)
    assert status == 1
    assert "vLLM did not register HiredLlavaForConditionalGeneration" in said


@pytest.mark.parametrize(
    ("change", "failed", "said"),
    [
        ({"hired_budget": 0.2}, None, "in config.json: hired_budget=0.2"),
        ({"hired_budget": 2}, "settings", "hired_budget=2 is not allowed"),
        ({"hired_max": 1}, "settings", "the known settings are hired_budget"),
        ({"architectures": ["GPT"]}, "model", "is GPT; vllm_hired serves"),
        (
            {"vision_feature_layer": [-2, -1]},
            "tower",
            "it must be one layer, not a list of layers",
        ),
    ],
)
def test_settings_and_models(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    tmp_path: Path,
    change: dict[str, object],
    failed: str | None,
    said: str,
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    status, report, errors = doctor(capsys, str(tmp_path))
    assert said in report
    assert status == (0 if failed is None else 1)
    assert errors == (f"vllm-hired: doctor: failed: {failed}\n" if failed else "")


def test_models_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = make_config(small(**NO_CLS["pixtral"]), make_tokenizer())
    config.save_pretrained(tmp_path)
    status, said, _ = doctor(capsys, str(tmp_path))
    assert status == 1
    assert "FAILED tower" in said
    assert "can read the towers clip_vision_model" in said
    status, said, _ = doctor(capsys, str(tmp_path / "none"))
    assert status == 1
    assert "FAILED model" in said


@pytest.mark.slow
def test_without_vllm(tmp_path: Path, checkpoint: Path) -> None:
    """In an environment with nothing in it, and in one whose vLLM is broken."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True
    )
    broken = tmp_path / "broken/vllm"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13')")
    results = []
    for path in (ROOT, f"{broken.parent}:{ROOT}"):
        done = subprocess.run(
            [
                tmp_path / "venv/bin/python",
                *("-m", "vllm_hired.tools.cli", "doctor", str(checkpoint)),
            ],
            env=os.environ | {"PYTHONPATH": str(path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        results.append((done.stdout, done.stderr))
    (report, errors), (broken_report, broken_errors) = results
    for package in ("vllm", "torch", "transformers"):
        assert f"FAILED  {package:<14}not installed" in report
    assert "clip_vision_model" in report
    assert errors == "vllm-hired: doctor: failed: vllm, torch, transformers\n"
    assert "FAILED  import vllm   ImportError: libcudart.so.13" in broken_report
    assert broken_errors.endswith("transformers, import vllm\n")
