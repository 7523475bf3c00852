"""How accuracy falls with the budget, by method, on `llava-next-smol`, through vLLM.

Held-out photographs and words; greedy answers compared with the truth as text. A trial
is one question of each task. Intervals are bootstrapped over trials, and differences
between methods are paired: the same trials. `blind` has one answer for each task.

    python -m training.smol.assemble
    python -m benchmarks.smol_accuracy --model out/llava-next-smol

Stopped, it goes on where it was when called again.
The tower encodes each partition once, for all methods and budgets; nothing is timed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from vllm import LLM, SamplingParams

from benchmarks.harness import (
    forget,
    make_parser,
    model_of,
    start_engine,
    write_results,
)
from benchmarks.intervals import (
    Array,
    accuracy_rows,
    as_digits,
    difference_rows,
    draw,
    most_usual,
)
from training.smol.evaluate import (
    KINDS,
    MOST_NEW_TOKENS,
    SEED,
    Trial,
    trials,
    truth,
)
from vllm_hired.config import SETTINGS
from vllm_hired.selectors import SELECTORS, make_selector, read_method
from vllm_hired.towers.observation import QUANTITIES, Quantity
from vllm_hired.towers.reading import ATTENTIONS, Reading, readings_for

BUDGETS = (1.0, 0.6, 0.4, 0.2, 0.1, 0.05)
ENGINE = {
    "max_num_seqs": 10,  # more would push each other out of the KV cache
    # Several questions share a picture, and nothing is timed.
    "enable_prefix_caching": True,
    "mm_processor_cache_gb": 2,
}


def remember_partitions(model: Any, layers: Sequence[int] = ()) -> None:
    """What the tower says of a partition depends on no method and no budget.

    Args:
        model: vLLM's, running.
        layers: whose attention is read at once, too, for settings that choose one.
    """
    hired, encode = model.hired, model.encode
    readings = [
        *readings_for(
            QUANTITIES, hired.attention, hired.init_layer, hired.final_layer
        ).values(),
        *(Reading(layer, ATTENTIONS[hired.attention]) for layer in layers),
    ]
    every = {reading: reading for reading in readings}
    known: dict[bytes, tuple[Tensor, dict[Reading, Tensor]]] = {}

    def remembering(
        pixels: Tensor, readings: Mapping[Quantity, Reading]
    ) -> tuple[Tensor, dict[Quantity, Tensor]]:
        keys = [sha256(part.float().numpy()).digest() for part in pixels]
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            features, measured = encode(pixels[new], every)
            for row, i in enumerate(new):
                own = {name: values[row].clone() for name, values in measured.items()}
                known[keys[i]] = features[row].clone(), own
        return torch.stack([known[key][0] for key in keys]), {
            name: torch.stack([known[key][1][reading] for key in keys])
            for name, reading in readings.items()
        }

    model.encode = remembering


class Kept:
    """What a stopped run found out; deleting the file begins anew.

    Attributes:
        path: of the file.
        asked: the model and the questions, which lines of other runs do not have.
    """

    def __init__(self, path: Path, asked: list[Any]) -> None:
        self.path, self.asked = path, asked

    def read(self, selector: str, budget: float, trials: int) -> Array | None:
        """`[trials, tasks]` of 0 and 1, where they are known."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in map(json.loads, lines):
            rows = line["right"].split()
            if line["of"] == [*self.asked, selector, budget] and len(rows) == trials:
                return np.array([[float(x) for x in row] for row in rows])
        return None

    def write(self, selector: str, budget: float, values: Array) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        of = [*self.asked, selector, budget]
        with self.path.open("a") as lines:
            lines.write(json.dumps({"of": of, "right": as_digits(values)}) + "\n")


@contextmanager
def selecting_by(model: Any, name: str) -> Iterator[None]:
    """The running model with another method."""
    method = read_method(name, {}, SETTINGS)
    hired = replace(model.hired, selector=name, method=method)
    selector = make_selector(name, method)
    with mock.patch.multiple(model, hired=hired, selector=selector):
        yield


def answers(llm: LLM, found: list[Trial], budget: float) -> list[str]:
    """Greedy answers, trial by trial and task by task."""
    sampling = SamplingParams(temperature=0, max_tokens=MOST_NEW_TOKENS)
    requests = [query.request(budget) for trial in found for query in trial]
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    return [output.outputs[0].text.strip() for output in outputs]


def right(llm: LLM, found: list[Trial], budget: float) -> Array:
    """`[trials, tasks]` of 0 and 1."""
    said = answers(llm, found, budget)
    same = [a == b for a, b in zip(said, truth(found), strict=True)]
    return np.array(same, dtype=float).reshape(len(found), -1)


def right_or_kept(
    kept: Kept,
    llm: LLM,
    found: list[Trial],
    change: AbstractContextManager[None],
    name: str,
    budget: float,
) -> Array:
    """What is kept of `name`, or else found out under `change` and kept."""
    values = kept.read(name, budget, len(found))
    if values is None:
        with change:
            forget(llm)
            values = right(llm, found, budget)
        kept.write(name, budget, values)
    return values


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=200, help="default: 200")
    parser.add_argument("--seed", type=int, default=SEED, help="of the trials")
    parser.add_argument("--name", default="smol-accuracy", help="of the result files")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--selectors", nargs="+", default=[*SELECTORS])
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="of pictures"
    )
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model: run `python -m training.smol.assemble` for one")
    found = trials(args.trials, args.seed, args.kinds)
    tasks = [query.question.task for query in found[0]]
    llm = start_engine(args, **ENGINE)
    model = model_of(llm)
    remember_partitions(model)
    kept = Kept(Path("out") / f"{args.name}.jsonl", [args.model, args.seed, tasks])
    names = dict.fromkeys(["hired", *args.selectors])
    steps = [("stock", 1.0), *((n, b) for n in names for b in args.budgets if b < 1)]
    results = {}
    for name, budget in tqdm(steps, desc="accuracy"):
        change = selecting_by(model, "hired" if name == "stock" else name)
        results[name, budget] = right_or_kept(kept, llm, found, change, name, budget)
    answered = np.array(truth(found)).reshape(len(found), -1)
    blind = most_usual(answered)
    tables = {
        f"Right answers on {args.trials} held-out trials, 95% intervals": (
            accuracy_rows({**results, ("blind", 0.0): blind}, tasks)
        ),
        "Paired differences in percent points, 95% intervals": (
            difference_rows(results)
        ),
    }
    raw = [
        {"selector": name, "budget": budget, "right": as_digits(values)}
        for (name, budget), values in results.items()
    ]
    write_results(args, args.name, tables, raw, draw(results))


if __name__ == "__main__":
    main()
