"""Settings on the command line, and what is refused before an engine starts."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, SiglipVisionConfig
from vllm import ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tests.conftest import WriteCheckpoint, expect_refusal
from vllm_hired import register
from vllm_hired.engine.arguments import parse_overrides
from vllm_hired.engine.models import MODELS


def model_config(checkpoint: Path, options: str) -> Any:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(["--model", str(checkpoint), *shlex.split(options)])
    return EngineArgs.from_cli_args(args).create_model_config()


@pytest.mark.parametrize(
    "options",
    [
        "--hf-overrides hired_budget=0.2",
        "--hf-overrides=hired_budget=0.2",
        "--hf-overrides 'hired_budget=0.2,hired_selector=hired'",
        """--hf-overrides '{"hired_budget": 0.2}'""",
        "--hf-overrides.hired_budget 0.2",
        "--hf_overrides hired_budget=0.2",
    ],
)
def test_every_way_to_write_it(checkpoint: Path, options: str) -> None:
    assert model_config(checkpoint, options).hf_config.hired_budget == 0.2


def test_values_are_json_or_else_text() -> None:
    text = "hired_budget=0.2, hired_selector=hired,hired_token_cap=9,x=[1]"
    assert parse_overrides(text) == {
        "hired_budget": 0.2,
        "hired_selector": "hired",
        "hired_token_cap": 9,
        "x": [1],
    }


@pytest.mark.parametrize("text", ["hired_budget", "=0.2", "hired_budget=0.2,x", ""])
def test_text_that_is_neither(checkpoint: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"--hf-overrides hired_budget=0\.2"):
        EngineArgs(str(checkpoint), hf_overrides=text).create_model_config()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--hf-overrides hired_budget=half", r"hired_budget='half'.*\(0, 1\]"),
        ("--hf-overrides hired_budget=0", r"hired_budget=0 .*\(0, 1\]"),
        ("--hf-overrides hired_budget=nan", r"hired_budget='nan'.*\(0, 1\]"),
        ("--hf-overrides hired_budget=NaN", r"hired_budget=nan.*\(0, 1\]"),
        ("--hf-overrides hired_alpha=2", r"hired_alpha=2 .*\[0, 1\]"),
        ("--hf-overrides hired_final_layer=3", "layers 0 to 2"),
        ("--hf-overrides hired_selector=best", "one of hired"),
        ("--hf-overrides hired_budgte=0.2", "known settings are hired_budget"),
    ],
)
def test_bad_settings_are_refused_at_once(
    checkpoint: Path, options: str, said: str
) -> None:
    with expect_refusal(match=said):
        model_config(checkpoint, options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feature_strategy": "full"}, 'must be "default"'),
        ({"feature_layer": [-2, -3]}, "not a list of layers"),
    ],
)
def test_towers_that_cannot_be_used(
    make_checkpoint: WriteCheckpoint, changes: dict[str, Any], said: str
) -> None:
    folder = make_checkpoint(**changes)
    assert model_config(folder, "")
    with expect_refusal(match=said):
        model_config(folder, "--hf-overrides hired_budget=0.2")


def test_a_tower_without_cls_whose_strategy_cuts_it_off(
    checkpoint: Path, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(checkpoint)
    config.vision_config = SiglipVisionConfig(image_size=56, patch_size=7)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config.save_pretrained(tmp_path)
    assert model_config(tmp_path, "")
    with expect_refusal(match='must be "full"'):
        model_config(tmp_path, "--hf-overrides hired_budget=0.2")


@pytest.mark.slow
def test_settings_for_a_model_that_would_ignore_them(tmp_path: Path) -> None:
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    options = "--skip-tokenizer-init"
    assert model_config(tmp_path, options)
    with expect_refusal(match="serves this model as LlamaForCausalLM"):
        model_config(tmp_path, options + " --hf-overrides hired_budget=0.2")


@pytest.mark.slow
def test_settings_for_an_implementation_that_would_ignore_them(
    checkpoint: Path,
) -> None:
    with expect_refusal(match="model_impl='transformers'"):
        model_config(
            checkpoint, "--model-impl transformers --hf-overrides hired_budget=0.2"
        )


def test_registering_twice_changes_nothing() -> None:
    register()
    wrapped = EngineArgs.create_model_config
    register()
    assert EngineArgs.create_model_config is wrapped
    assert set(MODELS) <= set(ModelRegistry.get_supported_archs())
