"""What the measurements on `llava-next-smol` compute, without that model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import LLM, SamplingParams

from benchmarks.harness import forget, model_of
from benchmarks.smol_ablation import changed, variants
from benchmarks.smol_accuracy import Kept, remember_partitions, selecting_by
from benchmarks.smol_tradeoff import draw, joined, seconds_by_budget, shares
from tests.engine import kept_digest, prompt
from vllm_hired.selectors import SELECTORS
from vllm_hired.towers.attention import cls_attention, summed_keys
from vllm_hired.towers.reading import Reading

LATENCY = {
    "raw": [
        {"size": "672x672", "budget": b, "rounds": [{"first token": t} for t in times]}
        for b, times in ((1.0, (5.0, 4.0, 9.0)), (0.2, (1.5, 1.0, 1.2)))
    ]
}
ACCURACY = {
    "raw": [
        {"selector": "stock", "budget": 1.0, "right": "11 11"},
        {"selector": "hired", "budget": 0.2, "right": "11 10"},
        {"selector": "uniform", "budget": 0.2, "right": "01 00"},
        {"selector": "uniform", "budget": 0.1, "right": "00 00"},
    ]
}


def test_a_point_is_a_budgets_time_and_a_methods_answers() -> None:
    seconds, found = seconds_by_budget(LATENCY), shares(ACCURACY)
    assert seconds == {1.0: 5.0, 0.2: 1.2}
    assert found["hired", 0.2] == 75
    assert found["uniform", 0.2] == 25
    lines = {
        line.get_label(): np.array(line.get_xydata()).tolist()
        for line in draw(found, seconds).axes[0].get_lines()
        if not str(line.get_label()).startswith("_")
    }
    # What was not timed has no place in the picture.
    assert lines == {
        "hired": [[5.0, 100.0], [1.2, 75.0]],
        "uniform": [[5.0, 100.0], [1.2, 25.0]],
    }


def test_the_table_has_what_both_measured() -> None:
    times = [
        {
            "image": "672x672",
            "budget": budget,
            "visual tokens": int(1000 * budget),
            "first token (s)": f"{10 * budget}",
            "stock / this": f"{1 / budget:.1f}",
        }
        for budget in (1.0, 0.4, 0.2)
    ]
    answers = [
        {"selector": selector, "budget": budget, "all tasks (%)": right}
        for selector, budget, right in (
            ("stock", 1.0, "66"),
            ("hired", 0.2, "62"),
            ("uniform", 0.4, "50"),
            ("uniform", 0.2, "40"),
            ("blind", 0.0, "20"),
        )
    ]
    found = joined(
        {"tables": {"times": times, "parts": []}},
        {"tables": {"answers": answers, "differences": []}},
    )
    assert [[*row.values()] for row in found] == [
        [1.0, 1000, "10.0", "1.0", "66"],
        [0.2, 200, "2.0", "5.0", "62"],
    ]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    values = np.array([[1.0, 0.0], [1.0, 1.0]])
    kept = Kept(tmp_path / "more" / "kept.jsonl", ["model", 7, ["a", "b"]])
    assert kept.read("hired", 0.2, 2) is None
    kept.write("hired", 0.2, values)
    read = kept.read("hired", 0.2, 2)
    assert read is not None
    assert read.tolist() == values.tolist()
    for other in (("even", 0.2, 2), ("hired", 0.1, 2), ("hired", 0.2, 3)):
        assert kept.read(*other) is None
    assert Kept(kept.path, ["another", 7, ["a", "b"]]).read("hired", 0.2, 2) is None


def test_a_partition_is_encoded_once_and_is_what_it_was() -> None:
    seen: list[int] = []

    def encode(pixels: Tensor, readings: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(len(pixels))
        return 2 * pixels, {
            name: reading.layer + pixels.sum(dim=1)
            for name, reading in readings.items()
        }

    hired = SimpleNamespace(attention="cls", init_layer=0, final_layer=1)
    model: Any = SimpleNamespace(hired=hired, encode=encode)
    remember_partitions(model, layers=[5])
    pixels = torch.arange(12.0).view(4, 3)
    model.encode(pixels[:2], {"keys": Reading(1, summed_keys)})
    for layer in (0, 1, 5):
        reading = {"init_attention": Reading(layer, cls_attention)}
        features, measured = model.encode(pixels, reading)
        assert torch.equal(features, 2 * pixels)
        assert measured.keys() == {"init_attention"}
        assert torch.equal(measured["init_attention"], layer + pixels.sum(dim=1))
    assert seen == [2, 2]


def test_each_variant_changes_what_is_kept_and_leaves_no_trace(engine: LLM) -> None:
    model = model_of(engine)
    usual = kept_digest(model)
    layers = range(len(model.vision_tower.vision_model.encoder.layers))
    first, *others = variants(model.hired, layers, layers)
    with changed(model, first):
        assert kept_digest(model) == usual
    assert {what for what, _ in others} == {
        *("split among tiles", "alpha", "init layer", "final layer"),
    }
    for variant in others:
        with changed(model, variant):
            assert kept_digest(model) != usual, variant
        assert kept_digest(model) == usual, variant


def test_each_method_is_its_own_and_leaves_no_trace(engine: LLM) -> None:
    model = model_of(engine)
    usual = kept_digest(model)
    for name in SELECTORS:
        with selecting_by(model, name):
            assert (kept_digest(model) == usual) == (name == "hired"), name
        assert kept_digest(model) == usual, name


def test_a_variant_is_measured_past_the_caches(engine: LLM) -> None:
    def answers() -> list[list[int]]:
        sampling = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        requests: list[Any] = [prompt((112, 112), seed=i) for i in range(5)]
        outputs = engine.generate(requests, sampling, use_tqdm=False)
        return [[*output.outputs[0].token_ids] for output in outputs]

    usual = answers()
    with changed(model_of(engine), ("final layer", 0)):
        assert answers() == usual
        forget(engine)
        assert answers() != usual
    forget(engine)
    assert answers() == usual
