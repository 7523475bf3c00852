"""A very short training of `llava-next-smol`: it learns, goes on, and is served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.smol_agreement import differences
from tests.conftest import MakeEngine
from tests.smol.parts import gguf_file
from training.smol import curve, train
from training.smol.assemble import assemble
from training.smol.curriculum import Stage
from training.smol.evaluate import trials
from training.smol.features import Features, make_shard
from training.smol.language import prompt_of, read_tokenizer
from training.smol.learner import Learner
from training.smol.questions import TRAINING, ask
from training.smol.sequences import (
    Asked,
    Writer,
    answer_loss,
    drop_tokens,
    visual_rows,
)

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(2400)]


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few pictures, on photographs that need no package of Debian's."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("features")
    for name, size in (("crops", 12), ("scenes", 4), ("scenes-held-out", 2)):
        (folder / name).mkdir()
        make_shard(name.split("-")[0], 0, True, folder / name, size)
    torch.set_num_threads(threads)
    return folder


def run_training(features: Path, out: Path, *more: str) -> None:
    steps = ["--projector-steps", "150", "--crop-steps", "4", "--scene-steps", "2"]
    train.main(
        [
            *("--features", str(features), "--out", str(out), *steps, "--batch", "2"),
            *("--every", "0", "--validation", "2", *more),
        ]
    )


def lines_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "training.jsonl").open()]
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in lines
    ]


TIMES = ("cpu_seconds", "minutes")


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    run_training(features, out)
    return out


def test_training_learns_and_is_measured(trained: Path) -> None:
    lines = lines_of(trained)
    (projector,) = [line for line in lines if line.get("stage") == "projector"]
    assert projector["patches"] > 100
    losses = [line["loss"] for line in lines if line.get("stage") == "crops"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    points = [line for line in lines if "validation" in line]
    assert [(p["validation"], p["step"], p["kept"]) for p in points][-4:] == [
        (*("scenes", 1), 1.0),
        (*("scenes", 1), 0.3),
        (*("scenes", 2), 1.0),
        (*("scenes", 2), 0.3),
    ]
    stages = json.loads((trained / "training.json").read_text())["stages"]
    assert [stage["steps"] for stage in stages.values()] == [4, 2]


@pytest.mark.parametrize("kind", ["crops", "scenes"])
def test_questions_side_by_side_are_each_question_alone(
    kind: str, features: Path
) -> None:
    """Several pictures and questions in one batch, padded, against transformers' own
    causal mask and positions on one picture and one question."""
    gguf = gguf_file()
    learner, tokenizer = Learner(gguf, torch.device("cpu")), read_tokenizer(gguf)
    speaker, samples = learner.speaker, Features(features / kind)
    rng = np.random.default_rng(0)
    asked = [
        Asked(
            sample := samples[index],
            ask(rng, sample.facts, TRAINING[sample.facts.kind])[:3],
            None if kind == "scenes" and index == 0 else drop_tokens(rng, sample, 0.1),
        )
        for index in range(2)
    ]
    losses = []
    with torch.inference_mode():
        loss, _ = answer_loss(speaker, Writer(tokenizer).batch(asked))
        embed = speaker.language.get_input_embeddings()
        for one in asked:
            visual = visual_rows(
                speaker.projector(one.sample.features.flatten(0, 1).float()),
                one.sample.layout,
                speaker.newline,
                one.keep,
            )
            for question in one.questions:
                before, after = (
                    torch.tensor(tokenizer(text).input_ids)
                    for text in prompt_of(question.text)
                )
                answer = torch.tensor(
                    tokenizer(f"{question.answer}<|im_end|>").input_ids
                )
                rows = [embed(before), visual, embed(after), embed(answer)]
                logits = speaker.language(inputs_embeds=torch.cat(rows)[None]).logits[0]
                own = logits[-len(answer) - 1 : -1]
                losses.append(torch.nn.functional.cross_entropy(own, answer))
    assert len(losses) >= 4
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_workers_change_nothing(trained: Path, features: Path, tmp_path: Path) -> None:
    run_training(features, tmp_path, "--workers", "1", "--tokens-at-once", "10000")
    ours, theirs = (
        [line["loss"] for line in lines_of(out) if "loss" in line]
        for out in (tmp_path, trained)
    )
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_training_ends_in_time(features: Path, tmp_path: Path) -> None:
    run_training(features, tmp_path, "--minutes", "0.0001")
    stages = json.loads((tmp_path / "training.json").read_text())["stages"]
    assert [stage["steps"] for stage in stages.values()] == [1, 0]


def test_the_curve_shows_each_point_once(trained: Path, tmp_path: Path) -> None:
    curve.main(["--trained", str(trained), "--out", str(tmp_path)])
    text = (tmp_path / "smol-training.md").read_text()
    rows = [line for line in text.splitlines() if "with dropping" in line]
    assert len(rows) == len(set(rows))
    assert sum("scenes" in row for row in rows) == 4


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    trained: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, stops = train.Training.validate, [("crops", 2), ("scenes", 1)]

    def stop(training: train.Training, stage: Stage) -> None:
        validate(training, stage)
        if (stage.kind, stage.done) in stops:
            stops.remove((stage.kind, stage.done))
            raise StoppedError

    monkeypatch.setattr(train.Training, "validate", stop)
    for _ in range(2):
        with pytest.raises(StoppedError):
            run_training(features, tmp_path)
    run_training(features, tmp_path)
    assert lines_of(tmp_path) == lines_of(trained)
    weights, again = (
        load_file(out / "trained.safetensors") for out in (trained, tmp_path)
    )
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_training_begins_with_a_trained_part(
    trained: Path, features: Path, tmp_path: Path
) -> None:
    part = trained / "trained.safetensors"
    args = ["--start", str(part), "--crop-steps", "0", "--scene-steps", "1"]
    run_training(features, tmp_path, *args)
    before, after = load_file(part), load_file(tmp_path / "trained.safetensors")
    assert before.keys() == after.keys()
    # One step, averaged: near, and not the same.
    for name in ("image_newline", "multi_modal_projector.linear_1.weight"):
        assert torch.allclose(before[name].float(), after[name].float(), atol=1e-2)
        assert not torch.equal(before[name], after[name])


def test_the_control_drops_nothing(
    trained: Path, features: Path, tmp_path: Path
) -> None:
    args = ["--no-dropping", "--crop-steps", "1", "--scene-steps", "1"]
    run_training(features, tmp_path, *args)
    first, control = (
        next(line["loss"] for line in lines_of(out) if "loss" in line)
        for out in (trained, tmp_path)
    )
    assert first != control


def test_vllm_and_transformers_answer_alike(
    trained: Path, tmp_path: Path, make_engine: MakeEngine
) -> None:
    assemble(tmp_path, trained=trained / "trained.safetensors")
    engine = make_engine(
        tmp_path,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        num_gpu_blocks_override=None,
        max_num_seqs=1,
        hired_max_budget=1.0,
    )
    queries = [*trials(1)[0][:2], trials(1)[0][-1]]
    assert differences(engine, tmp_path, queries) == []
