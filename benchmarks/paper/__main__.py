"""The paper's eight benchmarks by one command, through lmms-eval and this plugin.

    python -m benchmarks.paper --model llava-hf/llava-v1.6-vicuna-7b-hf \\
      --budgets 1.0 0.4 0.2 --selectors hired --device cuda

One engine a budget and method, and stock, each asked every task. lmms-eval downloads
the data sets. What an engine has answered to a task lies in a file of its own in
`--runs`, and is not asked again: a command that was interrupted goes on where it was.
The first call makes lmms-eval's environment, which takes minutes.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.harness import RESULTS, write_results
from benchmarks.paper.environment import LMMS_EVAL, EnvironmentMakingError, lmms_python
from benchmarks.paper.report import Found, draw, rows_of
from benchmarks.paper.runs import Folder, Run, RunError, Worker, all_runs
from benchmarks.paper.tasks import TASKS, paper_size
from vllm_hired.config import HiredConfig
from vllm_hired.errors import HiredConfigError
from vllm_hired.selectors import selector_names
from vllm_hired.selectors.probe import needs_problem
from vllm_hired.tools.checkpoint import CheckpointError, read_config
from vllm_hired.towers import tower_type


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="directory or id")
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0, 0.4, 0.2])
    parser.add_argument("--selectors", nargs="+", default=["hired"])
    parser.add_argument(
        "--tasks", nargs="+", default=[*TASKS], help="default: the paper's eight"
    )
    parser.add_argument(
        "--lite",
        action="store_true",
        help="about 500 questions of each but OCRBench and MME, which are asked whole",
    )
    parser.add_argument(
        "--limit", type=int, help="ask the first questions of each task alone"
    )
    parser.add_argument(
        "--include",
        nargs="+",
        default=[],
        help="folders of task files of yours, for --tasks",
    )
    parser.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--max-model-len", type=int, help="default: the model's")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument(
        "--batch-size", type=int, default=64, help="questions handed over at a time"
    )
    parser.add_argument("--environment", type=Path, default=Path(".venv-lmms-eval"))
    parser.add_argument("--runs", type=Path, help="default: out/paper/MODEL")
    parser.add_argument("--out", type=Path, default=RESULTS, help="of the report")
    parser.add_argument("--name", default="paper", help="of the report's files")
    return parser


def check(args: argparse.Namespace) -> tuple[Any, list[Run]]:
    """The model's HF config, and the engines to start.

    Raises:
        ValueError: what an engine would refuse, before any is started.
    """
    hf_config = read_config(args.model)
    for selector in args.selectors:
        if selector not in selector_names():
            raise HiredConfigError(
                "--selectors", selector, f"there are {', '.join(selector_names())}"
            )
    runs = all_runs(args.selectors, args.budgets)
    for run in runs[1:]:
        hf_config.update({"hired_budget": run.budget, "hired_selector": run.selector})
        hired = HiredConfig.from_hf_config(hf_config)
        problem = needs_problem(run.selector, tower_type(hf_config), hired.attention)
        if problem is not None:
            raise HiredConfigError(*problem)
    return hf_config, runs


def asked_tasks(args: argparse.Namespace) -> dict[str, int | None]:
    """lmms-eval's names of the tasks, and how many of the first questions: None is
    all."""
    if not args.lite:
        return dict.fromkeys(args.tasks, args.limit)
    asked = {}
    for name in args.tasks:
        task = TASKS.get(name)
        limit = args.limit or (task.lite_limit if task else None)
        asked[task.lite if task and task.lite else name] = limit
    return asked


def engine_arguments(args: argparse.Namespace) -> dict[str, object]:
    """Of lmms-eval's vLLM backend."""
    arguments: dict[str, object] = {
        "model": args.model,
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "tensor_parallel_size": args.tensor_parallel_size,
        "gpu_memory_utilization": args.gpu_memory_utilization,
        "enforce_eager": args.device == "cpu",
        # Not more than each task's own length; upstream's default is 4,096.
        "max_new_tokens": 1,
        # Upstream's defaults run a checkpoint's code, and divide by zero where no
        # answer has two tokens.
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if args.max_model_len is not None:
        arguments["max_model_len"] = args.max_model_len
    return arguments


def ask_all(
    folder: Folder, runs: Sequence[Run], worker: Worker
) -> tuple[Found, list[str]]:
    """What was answered, and why some was not. An engine that fails does not keep the
    others from being asked: where all tokens do not fit, fewer may.

    Raises:
        RunError: the folder holds answers of other settings, or no engine can be asked
            these tasks.
    """
    total = len(runs) * len(folder.limits)
    left = sum(len(folder.pending(run)) for run in runs)
    problems = []
    with tqdm(total=total, initial=total - left, desc="tasks", unit="task") as bar:
        for run in runs:
            before = len(folder.pending(run))
            if not before:
                continue
            bar.set_postfix_str(run.name)
            try:
                worker.ask(folder, run)
            except RunError as error:
                if error.is_final:
                    raise
                problems.append(str(error))
            bar.update(before - len(folder.pending(run)))
    found = {
        (run, task): answers
        for run in runs
        for task in folder.limits
        if (answers := folder.read(run, task)) is not None
    }
    return found, problems


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with a line and status 1 where something was not asked."""
    # Unwinds as Ctrl-C does, so that no worker outlives its parent.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        hf_config, runs = check(args)
        worker = Worker(
            lmms_python(args.environment),
            engine_arguments(args),
            [str(Path(folder).resolve()) for folder in args.include],
            hf_config.architectures[0],
        )
        folder = Folder(
            args.runs or Path("out/paper") / Path(args.model).name,
            {"model": args.model, "dtype": args.dtype, "lmms-eval": LMMS_EVAL[0]},
            asked_tasks(args),
        )
        found, problems = ask_all(folder, runs, worker)
    except (
        CheckpointError,
        HiredConfigError,
        EnvironmentMakingError,
        RunError,
    ) as error:
        raise SystemExit(f"benchmarks.paper: {error}") from error
    if found:
        report(args, found, runs, paper_size(hf_config))
    if problems:
        raise SystemExit("\n".join(f"benchmarks.paper: {p}" for p in problems))


def report(
    args: argparse.Namespace, found: Found, runs: Sequence[Run], size: str
) -> None:
    """Writes the table, the picture and each question's score."""
    tasks = [*dict.fromkeys(task for _, task in found)]
    rows = rows_of(found, runs, tasks, size)
    figures = [
        {"method": run.selector, "budget": run.budget, "task": task}
        | answers["figures"]
        for (run, task), answers in found.items()
    ]
    title = (
        "Ours beside the paper's; differences are of the same questions, in percent "
        "points, with 95% intervals"
    )
    write_results(
        args, args.name, {title: rows}, figures, draw(found, runs, tasks, size)
    )


if __name__ == "__main__":
    main()
