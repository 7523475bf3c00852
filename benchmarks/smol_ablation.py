"""What each part of HiRED is worth: the paper's Table 5, on `llava-next-smol`.

One setting is changed at a time, in a running engine: the thumbnail's share, the layers
that attention is read from, and an even split among tiles. Photographs, questions and
intervals are those of `benchmarks.smol_accuracy`; differences are paired with HiRED as
the checkpoint's own config has it.

    python -m benchmarks.smol_ablation --model out/llava-next-smol --dtype float32

Stopped, it goes on where it was when called again.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.harness import (
    draw_bars,
    make_parser,
    model_of,
    start_engine,
    write_results,
)
from benchmarks.intervals import Array, as_digits, interval
from benchmarks.smol_accuracy import ENGINE, Kept, remember_partitions, right_or_kept
from training.smol.evaluate import SEED, trials
from vllm_hired.config import HiredConfig
from vllm_hired.selectors import make_selector
from vllm_hired.tools.tables import Row

TASKS = ("presence", "naming", "place", "counting")
"""Reading was not learnt."""
ALPHAS = (0, 0.25, 0.5, 0.75, 1)
Variant = tuple[str, Any]
"""What is changed, and to what."""
DEFAULT: Variant = ("nothing", "-")


def variants(
    hired: HiredConfig, init_layers: Iterable[int], final_layers: Iterable[int]
) -> list[Variant]:
    """The default first, then all that differs from it in one thing."""
    return [
        DEFAULT,
        ("split among tiles", "even"),
        *(("alpha", a) for a in ALPHAS if a != hired.alpha),
        *(("init layer", layer) for layer in init_layers if layer != hired.init_layer),
        *(
            ("final layer", layer)
            for layer in final_layers
            if layer != hired.final_layer
        ),
    ]


@contextmanager
def changed(model: Any, variant: Variant) -> Iterator[None]:
    """The running model with one thing changed."""
    what, value = variant
    hired, selector = model.hired, model.selector
    if what == "split among tiles":
        selector = make_selector(value)
    elif what == "alpha":
        hired = replace(hired, alpha=Fraction(value))
    elif what == "init layer":
        hired = replace(hired, init_layer=value)
    elif what == "final layer":
        hired = replace(hired, final_layer=value)
    with mock.patch.multiple(model, hired=hired, selector=selector):
        yield


def rows_of(found: dict[tuple[Variant, float], Array]) -> list[Row]:
    budgets = list(dict.fromkeys(budget for _, budget in found))
    return [
        {
            "changed": what,
            "to": value,
            **{
                heading: text
                for budget in budgets
                for heading, text in (
                    (f"right at {budget} (%)", interval(found[variant, budget])),
                    (
                        f"less the default at {budget}",
                        interval(found[variant, budget] - found[DEFAULT, budget]),
                    ),
                )
            },
        }
        for variant in dict.fromkeys(variant for variant, _ in found)
        for what, value in [variant]
    ]


def draw(found: dict[tuple[Variant, float], Array]) -> Figure:
    """A bar a variant and budget."""
    shares = {
        (f"{what} {value}", budget): 100 * float(right.mean())
        for ((what, value), budget), right in found.items()
    }
    return draw_bars(shares, xlabel="right answers (%)")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=40, help="default: 40")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.1])
    parser.add_argument("--init-layers", nargs="+", type=int, default=[0, 3, 5, 9])
    parser.add_argument("--final-layers", nargs="+", type=int, default=[3, 7, 9, 10])
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model: run `python -m training.smol.assemble` for one")
    found = [
        tuple(query for query in trial if query.question.task in TASKS)
        for trial in trials(args.trials, SEED, ["scene"])
    ]
    llm = start_engine(args, **ENGINE)
    model = model_of(llm)
    remember_partitions(model, sorted({*args.init_layers, *args.final_layers}))
    kept = Kept(Path("out/smol-ablation.jsonl"), [args.model, SEED, [*TASKS]])
    steps = [
        (variant, budget)
        for variant in variants(model.hired, args.init_layers, args.final_layers)
        for budget in args.budgets
    ]
    results = {}
    for variant, budget in tqdm(steps, desc="ablation"):
        name = " ".join(map(str, variant))
        change = changed(model, variant)
        results[variant, budget] = right_or_kept(kept, llm, found, change, name, budget)
    title = (
        f"Right answers on {args.trials} held-out photographs, {', '.join(TASKS)}; "
        "95% intervals"
    )
    raw = [
        {"changed": what, "to": value, "budget": budget, "right": as_digits(values)}
        for ((what, value), budget), values in results.items()
    ]
    write_results(args, "smol-ablation", {title: rows_of(results)}, raw, draw(results))


if __name__ == "__main__":
    main()
