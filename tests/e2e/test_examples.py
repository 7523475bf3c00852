"""The files in examples/, on scenes that the small model can answer.

The client's example is in test_getting_started.py, beside the server that it asks."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import LLM

from benchmarks.accuracy import answers, held_out
from tests.conftest import MakeEngine
from tests.test_docs import ROOT
from training.tiny.model import CHECKPOINT

SAMPLES = held_out(8)
QUESTION = SAMPLES[0][1][1].text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes as files, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number, (scene, _) in enumerate(SAMPLES):
        place = folder / "more" if number == 7 else folder
        scene.image.save(place / f"{number}.png")
    return folder


@pytest.fixture
def started(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """What the examples start engines with. They get the engine that tests share."""
    engine = make_engine(CHECKPOINT, hired_max_budget=1.0)
    calls: list[dict[str, Any]] = []

    def start(model: str, **options: Any) -> LLM:
        assert model == str(CHECKPOINT)
        calls.append(options["hf_overrides"])
        return engine

    monkeypatch.syspath_prepend(ROOT / "examples")
    for name in ("offline_batch", "compare_budgets"):
        monkeypatch.setattr(importlib.import_module(name), "LLM", start)
    return calls


def expected(llm: LLM, budget: float) -> list[str]:
    """Answers to the example's question, asked as the benchmarks do."""
    return answers(llm, [(scene, [q[1]]) for scene, q in SAMPLES], budget)


def test_offline_batch(
    started: list[dict[str, Any]],
    make_engine: MakeEngine,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = importlib.import_module("offline_batch")
    example.main([str(CHECKPOINT), str(folder), "--question", QUESTION])
    assert started == [{"hired_budget": 0.2}]
    lines = capsys.readouterr().out.splitlines()
    said = [line.rpartition(": ")[2] for line in lines]
    assert said == expected(make_engine(CHECKPOINT, hired_max_budget=1.0), 0.2)
    assert lines[7].startswith("more/7.png: ")


def test_compare_budgets(
    started: list[dict[str, Any]],
    make_engine: MakeEngine,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pictures of those that differ, as the answers say, and of no others."""
    example = importlib.import_module("compare_budgets")
    example.main(
        [
            *(str(CHECKPOINT), str(folder), "--question", QUESTION),
            *("--budgets", "0.6", "0.01", "--out", str(tmp_path)),
        ]
    )
    assert started == [{"hired_budget": 0.01, "hired_max_budget": 0.6}]
    llm = make_engine(CHECKPOINT, hired_max_budget=1.0)
    pairs = zip(expected(llm, 0.6), expected(llm, 0.01), strict=True)
    different = [number for number, (one, other) in enumerate(pairs) if one != other]
    assert 0 < len(different) < len(SAMPLES)
    pictures = sorted(tmp_path.iterdir())
    assert [int(picture.name[:4]) for picture in pictures] == different
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{len(different)} of 8 answers differ"
    with Image.open(pictures[0]) as picture:
        assert np.asarray(picture).std() > 10


def test_an_empty_folder_is_refused(
    started: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("offline_batch", "compare_budgets"):
        with pytest.raises(SystemExit):
            importlib.import_module(name).main([str(CHECKPOINT), str(tmp_path)])
        assert "no image in this folder" in capsys.readouterr().err
    assert started == []
