"""What each part of HiRED is worth on `llava-next-smol`: one setting changed at a time.

Photographs, questions and intervals are those of `benchmarks.smol_accuracy`;
differences are paired with HiRED as the checkpoint's own config has it.

    python -m benchmarks.smol_ablation --model out/llava-next-smol --dtype float32

Stopped, it goes on where it was when called again.
"""

from pathlib import Path

from tqdm import tqdm

from benchmarks.ablation import changed, one_changed, write_found
from benchmarks.harness import make_parser, model_of, start_engine
from benchmarks.smol_accuracy import ENGINE, Kept, remember_partitions, right_or_kept
from training.smol.evaluate import SEED, trials

TASKS = ("presence", "naming", "place", "counting")
"""Reading was not learnt."""


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
        for variant in one_changed(model.hired, args.init_layers, args.final_layers)
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
    write_found(args, "smol-ablation", title, results)


if __name__ == "__main__":
    main()
