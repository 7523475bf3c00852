"""The small model's training, for a few steps, and what is measured on its outcome."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vllm import SamplingParams

from benchmarks.accuracy import blind, held_out, interval, requests_of
from tests.conftest import MakeEngine
from tests.reference import Reference
from training.tiny import train
from training.tiny.data import TASKS

# The recipe is as it was; its outcome is what the other tests run on.
pytestmark = pytest.mark.matrix


class StoppedError(Exception):
    pass


def run_training(out: Path) -> None:
    """A few steps of each stage, from the committed seed."""
    train.main(
        [
            *["--out", str(out), "--every", "1", "--products", "float32"],
            *["--tower-steps", "2", "--tower-batch", "2", "--places-steps", "1"],
            *["--language-steps", "4", "--language-batch", "1"],
        ]
    )


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training.jsonl").open()]


# Two trainings, on a core that may be ten times slower than another.
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    run_training(out)
    return out


def test_training_learns(trained: Path) -> None:
    lines = lines_of(trained)
    assert [line["tower"] for line in lines if "tower" in line] == [1, 2]
    assert [line["places"] for line in lines if "places" in line] == [1]
    losses = [line["loss"] for line in lines if "language" in line]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.matrix
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the first stage and in the last: the same losses and weights."""
    note, stops = train.Training.note, [{"tower": 1}, {"language": 2}]

    def stop(training: train.Training, facts: dict[str, float]) -> None:
        note(training, facts)
        if stops and stops[0].items() <= facts.items():
            stops.pop(0)
            raise StoppedError

    monkeypatch.setattr(train.Training, "note", stop)
    for _ in range(2):
        with pytest.raises(StoppedError):
            run_training(tmp_path)
    run_training(tmp_path)
    assert lines_of(tmp_path) == lines_of(trained)
    weights, again = (
        load_file(out / "model.safetensors") for out in (trained, tmp_path)
    )
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_vllm_and_hf_give_the_same_answers(
    trained: Path, make_engine: MakeEngine
) -> None:
    samples = held_out(3)
    engine = make_engine(trained, max_num_seqs=1)
    sampling = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    requests = requests_of(samples, 1.0)
    outputs = engine.generate(requests, sampling, use_tqdm=False)
    reference = Reference(trained)
    for request, output in zip(requests, outputs, strict=True):
        assert reference.generate_whole(request, 6) == [*output.outputs[0].token_ids]


def test_accuracy_is_measured_and_paired(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy", "--model", str(trained)]
    command += ["--dtype", "float32", "--out", str(tmp_path), "--scenes", "3"]
    command += ["--budgets", "1.0", "0.2", "--selectors", "random"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "accuracy.json").read_text())
    asked = [(row["selector"], row["budget"]) for row in result["raw"]]
    assert asked == [("stock", 1.0), ("hired", 0.2), ("random", 0.2)]
    right = {
        row["selector"]: np.array([[*map(int, word)] for word in row["right"].split()])
        for row in result["raw"]
    }
    assert all(values.shape == (3, len(TASKS)) for values in right.values())
    accuracy, differences = result["tables"].values()
    assert [row["selector"] for row in accuracy] == [*dict(asked), "blind"]
    less = interval(right["hired"] - right["random"])
    assert differences == [{"budget": 0.2, "hired - random": less}]


def test_a_share_of_twice_as_much_is_half() -> None:
    whole = np.random.default_rng(0).integers(0, 2, (100, 4)).astype(float)
    assert interval(whole / 2, of=whole) == "50.0 (50.0 to 50.0)"


def test_blind_is_the_most_frequent_answer() -> None:
    samples = held_out(40)
    for task, values in enumerate(blind(samples).T):
        answers = [questions[task].answer for _, questions in samples]
        shares = [answers.count(answer) / len(answers) for answer in answers]
        assert values.mean() == pytest.approx(max(shares))


def test_intervals_are_those_of_a_known_spread() -> None:
    """100 scenes, half of them right: 50% give or take 1.96 times 5."""
    said = interval(np.repeat([0.0, 1.0], 50))
    mean, low, high = (float(x) for x in re.findall(r"[\d.]+", said))
    assert mean == 50.0
    assert low == pytest.approx(50 - 1.96 * 5, abs=1.5)
    assert high == pytest.approx(50 + 1.96 * 5, abs=1.5)
