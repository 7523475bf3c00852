"""How accuracy falls with the budget, by method, on `llava-next-smol`, through vLLM.

Held-out photographs and words; greedy answers compared with the truth as text. A trial
is one question of each task. Intervals are bootstrapped over trials, and differences
between methods are paired: the same trials. `blind` has one answer for each task.

    python -m training.smol.assemble
    python -m benchmarks.smol_accuracy --model out/llava-next-smol

The tower encodes each partition once, for all methods and budgets; nothing is timed.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from vllm import LLM, SamplingParams

from benchmarks.ablation import forget, selecting_by
from benchmarks.accuracy import (
    Array,
    accuracy_rows,
    as_digits,
    difference_rows,
    draw,
    most_usual,
)
from benchmarks.harness import make_parser, model_of, start_engine, write_results
from training.smol.evaluate import (
    KINDS,
    MOST_NEW_TOKENS,
    SEED,
    Trial,
    trials,
    truth,
)
from vllm_hired.selectors import SELECTORS
from vllm_hired.towers.observation import QUANTITIES, Quantity
from vllm_hired.towers.reading import Reading, readings_for

BUDGETS = (1.0, 0.6, 0.4, 0.2, 0.1, 0.05)


def remember_partitions(model: Any) -> None:
    """What the tower says of a partition depends on no method and no budget."""
    hired, encode = model.hired, model.encode
    every = readings_for(
        QUANTITIES, hired.attention, hired.init_layer, hired.final_layer
    )
    known: dict[bytes, tuple[Tensor, dict[Quantity, Tensor]]] = {}

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
            name: torch.stack([known[key][1][name] for key in keys])
            for name in readings
        }

    model.encode = remembering


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
    llm = start_engine(
        args,
        max_num_seqs=64,
        # Several questions share a picture, and nothing is timed.
        enable_prefix_caching=True,
        mm_processor_cache_gb=2,
    )
    model = model_of(llm)
    remember_partitions(model)
    results = {("stock", 1.0): right(llm, found, 1.0)}
    names = dict.fromkeys(["hired", *args.selectors])
    steps = [(name, b) for name in names for b in args.budgets if b < 1]
    for name, budget in tqdm(steps, desc="accuracy"):
        with selecting_by(model, name):
            forget(llm)
            results[name, budget] = right(llm, found, budget)
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
