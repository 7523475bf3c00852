"""The files in examples/, on noise and a model with random weights.

The client's example is in test_getting_started.py, beside the server that it asks."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import LLM, SamplingParams

from tests.engine import noise_image
from tests.test_docs import ROOT

IMAGES = [noise_image(120, 100, seed) for seed in range(8)]
QUESTION = "What is this?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as files, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number, image in enumerate(IMAGES):
        place = folder / "more" if number == 7 else folder
        image.save(place / f"{number}.png")
    return folder


@pytest.fixture
def started(
    engine: LLM, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """What the examples start engines with. They get the engine that tests share."""
    calls: list[dict[str, Any]] = []

    def start(model: str, **options: Any) -> LLM:
        assert model == str(checkpoint)
        calls.append(options["hf_overrides"])
        return engine

    monkeypatch.syspath_prepend(ROOT / "examples")
    for name in ("offline_batch", "compare_budgets"):
        monkeypatch.setattr(importlib.import_module(name), "LLM", start)
    return calls


def expected(llm: LLM, budget: float, max_tokens: int) -> list[str]:
    """Tokens and answers to the example's question, as an example prints them."""
    requests: list[Any] = [
        {
            "prompt": f"USER: <image>{QUESTION}\nASSISTANT:",
            "multi_modal_data": {"image": image},
            "mm_processor_kwargs": {"hired_budget": budget},
        }
        for image in IMAGES
    ]
    outputs = llm.generate(
        requests, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False
    )
    return [
        f"{len(output.prompt_token_ids or [])} tokens: {output.outputs[0].text.strip()}"
        for output in outputs
    ]


def test_offline_batch(
    started: list[dict[str, Any]],
    engine: LLM,
    checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = importlib.import_module("offline_batch")
    options = ["--question", QUESTION, "--max-tokens", "8"]
    example.main([str(checkpoint), str(folder), *options])
    assert started == [{"hired_budget": 0.2}]
    names = [*(f"{number}.png" for number in range(7)), "more/7.png"]
    said = expected(engine, 0.2, max_tokens=8)
    assert len({line.partition(": ")[2] for line in said} - {""}) > 1
    lines = zip(names, said, strict=True)
    printed = "".join(f"{name}: {line}\n" for name, line in lines)
    assert capsys.readouterr().out == printed


def test_compare_budgets(
    started: list[dict[str, Any]],
    engine: LLM,
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pictures of those that differ, as the answers say, and of no others."""
    example = importlib.import_module("compare_budgets")
    example.main(
        [
            *(str(checkpoint), str(folder), "--question", QUESTION),
            # Of longer answers none would be the same at both budgets.
            *("--max-tokens", "1", "--budgets", "0.6", "0.01", "--out", str(tmp_path)),
        ]
    )
    assert started == [{"hired_budget": 0.01, "hired_max_budget": 0.6}]
    first, second = (
        [said.partition(" tokens: ")[2] for said in expected(engine, budget, 1)]
        for budget in (0.6, 0.01)
    )
    different = [n for n in range(len(IMAGES)) if first[n] != second[n]]
    assert 0 < len(different) < len(IMAGES)
    pictures = sorted(tmp_path.iterdir())
    assert [int(picture.name[:4]) for picture in pictures] == different
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{len(different)} of 8 answers differ"
    with Image.open(pictures[0]) as picture:
        assert np.asarray(picture).std() > 10


def test_an_empty_folder_is_refused(
    started: list[dict[str, Any]],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("offline_batch", "compare_budgets"):
        with pytest.raises(SystemExit):
            importlib.import_module(name).main([str(checkpoint), str(tmp_path)])
        assert "no image in this folder" in capsys.readouterr().err
    assert started == []
