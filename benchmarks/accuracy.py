"""How accuracy falls with the budget, by selector, through the engine that users run.

Held-out scenes of the small model's kind, every task on each, greedy answers compared
with the truth as text. Intervals are bootstrapped over scenes, and differences between
selectors are paired: the same scenes, the same questions.

    python -m benchmarks.accuracy --model checkpoints/llava-next-tiny

`--model` takes what `training.tiny.train` made: questions and answers are its own.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm
from vllm import LLM, SamplingParams

from benchmarks.harness import make_parser, start_engine, write_results
from training.tiny.data import TASKS, Question, Scene, make_scene
from training.tiny.model import prompt_of
from vllm_hired.selectors import SELECTORS
from vllm_hired.tools.tables import Row

BUDGETS = (1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05)
SEED = 20_261_122
"""Of the scenes that are reported. Those of 20261121 were measured while the training
was being worked out; glyphs and photographs are the same."""
Array = np.ndarray[Any, np.dtype[Any]]


def held_out(count: int, seed: int = SEED) -> list[tuple[Scene, list[Question]]]:
    """Scenes of glyphs and backgrounds that training never saw, with all tasks."""
    found = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = make_scene(rng, held_out=True)
        found.append((scene, [task(rng, scene) for task in TASKS]))
    return found


def start_answering(args: argparse.Namespace, selector: str) -> LLM:
    """A small engine, one of several in this process."""
    return start_engine(
        args,
        max_model_len=1024,
        max_num_batched_tokens=4096,
        max_num_seqs=32,
        gpu_memory_utilization=0.15,
        num_gpu_blocks_override=256,
        # Several questions share a picture, and nothing is timed.
        enable_prefix_caching=True,
        mm_processor_cache_gb=1,
        hf_overrides={"hired_max_budget": 1.0, "hired_selector": selector},
    )


def requests_of(
    samples: Sequence[tuple[Scene, list[Question]]], budget: float
) -> list[Any]:
    return [
        {
            "prompt": "<image>".join(prompt_of(question.text)),
            "multi_modal_data": {"image": scene.image},
            "mm_processor_kwargs": {"hired_budget": budget},
        }
        for scene, questions in samples
        for question in questions
    ]


def answers(
    llm: LLM, samples: Sequence[tuple[Scene, list[Question]]], budget: float
) -> list[str]:
    """Greedy answers, scene by scene and task by task."""
    sampling = SamplingParams(temperature=0, max_tokens=12)
    outputs = llm.generate(requests_of(samples, budget), sampling, use_tqdm=False)
    return [output.outputs[0].text.strip() for output in outputs]


def right(
    llm: LLM, samples: Sequence[tuple[Scene, list[Question]]], budget: float
) -> Array:
    """`[scenes, tasks]` of 0 and 1."""
    truth = [question.answer for _, questions in samples for question in questions]
    said = answers(llm, samples, budget)
    same = [a == b for a, b in zip(said, truth, strict=True)]
    return np.array(same, dtype=float).reshape(len(samples), -1)


def as_digits(values: Array) -> str:
    """`[scenes, tasks]` of 0 and 1 as text, a word a scene: `1101 1111 ...`."""
    return " ".join("".join(str(int(x)) for x in scene) for scene in values)


def blind(samples: Sequence[tuple[Scene, list[Question]]]) -> Array:
    """`[scenes, tasks]` of 0 and 1, where each task has one answer for all scenes."""
    return most_usual(np.array([[q.answer for q in own] for _, own in samples]))


def most_usual(truth: Array) -> Array:
    """`[scenes, tasks]` of 0 and 1: where the task's most usual answer is right."""
    usual = [Counter(column).most_common(1)[0][0] for column in truth.T.tolist()]
    return (truth == np.array(usual)).astype(float)


def interval(values: Array, of: Array | None = None, draws: int = 2000) -> str:
    """`mean (low to high)` in percent: 95% bootstrap over the first axis.

    Args:
        values: `[scenes, ...]`.
        of: `[scenes, ...]`, by whose mean the other is divided, scenes drawn alike.
        draws: of as many scenes as there are.
    """
    rng = np.random.default_rng(0)
    part = values.reshape(len(values), -1).mean(axis=1)
    whole = np.ones_like(part) if of is None else of.reshape(len(of), -1).mean(axis=1)
    picks = rng.integers(0, len(part), (draws, len(part)))
    drawn = part[picks].mean(axis=1) / whole[picks].mean(axis=1)
    low, high = np.percentile(100 * drawn, [2.5, 97.5])
    return f"{100 * part.mean() / whole.mean():.1f} ({low:.1f} to {high:.1f})"


def accuracy_rows(
    found: dict[tuple[str, float], Array], names: Sequence[str]
) -> list[Row]:
    """A row a selector and budget, a column for each of the tasks' names."""
    return [
        {
            "selector": selector,
            "budget": budget,
            "all tasks (%)": interval(values),
            "of stock's (%)": interval(values, found["stock", 1.0]),
            **{f"{name} (%)": interval(values[:, i]) for i, name in enumerate(names)},
        }
        for (selector, budget), values in found.items()
    ]


def difference_rows(found: dict[tuple[str, float], Array]) -> list[Row]:
    """HiRED less each other selector at the same budget, in percent points."""
    budgets = dict.fromkeys(b for s, b in found if s == "hired")
    others = dict.fromkeys(s for s, _ in found if s not in ("stock", "hired"))
    return [
        {
            "budget": budget,
            **{
                f"hired - {other}": interval(
                    found["hired", budget] - found[other, budget]
                )
                for other in others
            },
        }
        for budget in budgets
    ]


def draw(found: dict[tuple[str, float], Array]) -> Figure:
    """Accuracy over the budget, a line a selector; stock is where all begin."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    stock = found["stock", 1.0].mean()
    for selector in dict.fromkeys(name for name, _ in found if name != "stock"):
        points = [(1.0, stock)]
        points += [(b, v.mean()) for (s, b), v in found.items() if s == selector]
        plot_selector(axes, selector, [(x, 100 * share) for x, share in points])
    axes.set(xlabel="hired_budget", ylabel="right answers (%)", xscale="log")
    axes.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend()
    return figure


def plot_selector(axes: Axes, name: str, points: Sequence[tuple[float, float]]) -> None:
    """A selector's line."""
    # Wide and pale, or a line as good as HiRED's would hide it.
    width, alpha = (6, 0.4) if name == "hired" else (1.5, 1.0)
    axes.plot(*zip(*points, strict=True), "o-", lw=width, alpha=alpha, label=name)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=1000, help="default: 1000")
    parser.add_argument("--seed", type=int, default=SEED, help="of the scenes")
    parser.add_argument("--name", default="accuracy", help="of the result files")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--selectors", nargs="+", default=[*SELECTORS])
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model: a checkpoint that can answer is needed")
    samples = held_out(args.scenes, args.seed)
    names = dict.fromkeys(["hired", *args.selectors])
    engines = {name: start_answering(args, name) for name in names}
    found = {("stock", 1.0): right(engines["hired"], samples, 1.0)}
    steps = [(name, b) for name in engines for b in args.budgets if b < 1]
    for name, budget in tqdm(steps, desc="accuracy"):
        found[name, budget] = right(engines[name], samples, budget)
    tables = {
        f"Right answers on {args.scenes} held-out scenes, 95% intervals": (
            accuracy_rows(
                {**found, ("blind", 0.0): blind(samples)},
                [task.__name__ for task in TASKS],
            )
        ),
        "Paired differences in percent points, 95% intervals": difference_rows(found),
    }
    raw = [
        {"selector": name, "budget": budget, "right": as_digits(values)}
        for (name, budget), values in found.items()
    ]
    write_results(args, args.name, tables, raw, draw(found))


if __name__ == "__main__":
    main()
