"""Two budgets on a folder of images: where the answers differ, and what was kept.

    python examples/compare_budgets.py MODEL FOLDER --question "What is this?" \\
      --budgets 0.4 0.1 --out compared

Asks at both budgets in one engine, and draws what either budget keeps, as `vllm-hired
inspect` does, of images whose answers differ (with `--all` of every one).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from offline_batch import ask_all
from vllm import LLM

from vllm_hired.config import HiredConfig
from vllm_hired.tools.images import image_files, read_image
from vllm_hired.tools.inspect.inspection import inspect_image
from vllm_hired.tools.inspect.picture import draw_inspection


def draw(model: str, path: Path, budgets: Sequence[float], out: Path) -> None:
    """Writes a picture of what each budget keeps of an image."""
    settings = [{"hired_budget": budget} for budget in budgets]
    inspection = inspect_image(model, path.name, read_image(path), settings[0])
    configs = [HiredConfig.from_hf_config(inspection.configured(s)) for s in settings]
    draw_inspection(inspection, configs).save(out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="directory of a checkpoint, or a model id")
    parser.add_argument("folder", type=Path, help="with images, and folders of them")
    parser.add_argument("--question", default="What is in this picture?")
    parser.add_argument("--budgets", nargs=2, type=float, default=[0.4, 0.1])
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, help="default: the model's")
    parser.add_argument("--out", type=Path, default=Path("compared"))
    parser.add_argument("--all", action="store_true", help="draw every image")
    args = parser.parse_args(argv)
    paths = [*image_files([args.folder], parser.error)]
    # What requests may ask for, and what vLLM plans memory by.
    overrides = {"hired_max_budget": max(args.budgets)}
    overrides["hired_budget"] = min(args.budgets)
    llm = LLM(args.model, max_model_len=args.max_model_len, hf_overrides=overrides)
    first, second = (
        ask_all(llm, paths, args.question, budget, args.max_tokens)
        for budget in args.budgets
    )
    args.out.mkdir(parents=True, exist_ok=True)
    num_different = 0
    for number, (path, one, other) in enumerate(zip(paths, first, second, strict=True)):
        (tokens, answer), (other_tokens, other_answer) = one, other
        is_different = answer != other_answer
        num_different += is_different
        print(f"{path.relative_to(args.folder)}: {'differs' if is_different else '='}")
        print(f"  {args.budgets[0]}: {tokens} tokens: {answer}")
        print(f"  {args.budgets[1]}: {other_tokens} tokens: {other_answer}")
        if is_different or args.all:
            # Names may repeat in subfolders.
            picture = args.out / f"{number:04}-{path.stem}.png"
            draw(args.model, path, args.budgets, picture)
            print(f"  {picture}")
    print(f"{num_different} of {len(paths)} answers differ")


# The engine runs in a process of its own, which may import this file.
if __name__ == "__main__":
    main()
