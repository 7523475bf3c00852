"""What each part of HiRED is worth on `llava-next-smol`: one setting changed at a time.

Photographs, questions and intervals are those of `benchmarks.smol_accuracy`;
differences are paired with HiRED as the checkpoint's own config has it.

    python -m benchmarks.smol_ablation --model out/llava-next-smol --dtype float32

Stopped, it goes on where it was when called again.
"""

from pathlib import Path

from tqdm import tqdm

from benchmarks.ablation import (
    ALPHAS,
    DEFAULT,
    Variant,
    changed,
    draw,
    forget,
    rows_of,
)
from benchmarks.accuracy import as_digits
from benchmarks.harness import make_parser, model_of, start_engine, write_results
from benchmarks.smol_accuracy import ENGINE, Kept, remember_partitions, right
from training.smol.evaluate import SEED, trials
from vllm_hired.config import HiredConfig

TASKS = ("presence", "naming", "place", "counting")
"""Reading was not learnt."""


def variants(
    hired: HiredConfig, init_layers: list[int], final_layers: list[int]
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
        values = kept.read(name, budget, len(found))
        if values is None:
            with changed(model, variant):
                forget(llm)
                values = right(llm, found, budget)
            kept.write(name, budget, values)
        results[variant, budget] = values
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
