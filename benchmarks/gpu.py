"""All measurements of one machine with a GPU, and one report to send.

    python -m benchmarks.gpu --model llava-hf/llava-v1.6-vicuna-7b-hf

Runs `vllm-hired doctor`, stock parity on both of vLLM's model runners, latency,
throughput, overhead and soak, one after another, each in a process of its own; one
that fails is in the report with its last lines, and the others go on. `report.md` in
`--out` holds all tables; beside it lie each measurement's own files and its log.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import IS_OFFLINE_OURS
from benchmarks.harness import check_device, make_parser
from random_checkpoints.llava import SHAPES, write_checkpoint

MEASUREMENTS: dict[str, list[str]] = {
    "parity": ["--tokens", "4"],
    "latency": ["--rounds", "1", "--size", "336x672", "--budgets", "0.2"],
    "throughput": [
        *("--kv-tokens", "4096", "--batches", "1", "4", "--budgets", "0.2"),
        *("--size", "336x672", "--output-tokens", "3"),
    ],
    "overhead": ["--repeats", "1"],
    "soak": ["--requests", "8", "--rounds", "1"],
}
"""Module of `benchmarks` -> what `--quick` makes it do, to see that all of them run."""

LAST_LINES = 15
"""Of the log of a measurement that failed, in the report."""


@dataclass(frozen=True)
class Outcome:
    """What became of one part.

    Attributes:
        name: of the part.
        failed: whether it ended with a status other than 0.
        text: for the report.
    """

    name: str
    failed: bool
    text: str


def doctor(model: str) -> Outcome:
    """What `vllm-hired doctor` says of the model."""
    command = [sys.executable, "-m", "vllm_hired.tools.cli", "doctor", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = f"```text\n{done.stdout or done.stderr}```"
    return Outcome("doctor", done.returncode != 0, said)


def measure(name: str, options: list[str], out: Path) -> Outcome:
    """Runs one module; its tables, or the end of its log."""
    table, log = out / f"{name}.md", out / f"{name}.log"
    table.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *options]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, check=False)
    text = table.read_text() if table.is_file() else ""
    if done.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        text += (
            f"\nStatus {done.returncode}; {log.name} ends:\n\n```text\n{last}\n```\n"
        )
    return Outcome(name, done.returncode != 0, text)


def report(outcomes: list[Outcome]) -> str:
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    head = f"FAILED: {', '.join(failed)}" if failed else "All parts ended well."
    parts = [f"## {outcome.name}\n\n{outcome.text.strip()}" for outcome in outcomes]
    return "\n\n".join(["# vllm-hired on this machine", head, *parts]) + "\n"


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(device="cuda", out=Path("out/gpu"))
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, help="some of them")
    parser.add_argument(
        "--quick", action="store_true", help="the least that shows that all of them run"
    )
    args = parser.parse_args()
    check_device(args)
    if args.model and IS_OFFLINE_OURS:
        # Of the processes started here: an id may still have to be downloaded.
        os.environ["HF_HUB_OFFLINE"] = "0"
    args.out.mkdir(parents=True, exist_ok=True)
    common = ["--dtype", args.dtype, "--device", args.device]
    common += ["--model", args.model] if args.model else ["--shape", args.shape]
    outcomes = [doctor(args.model or str(shape_config(args)))]
    names = args.only or [*MEASUREMENTS]
    for name in tqdm(names, desc="measurements"):
        options = [*common, *(MEASUREMENTS[name] if args.quick else [])]
        outcomes.append(measure(name, options, args.out))
    path = args.out / "report.md"
    path.write_text(report(outcomes))
    print(f"\n{path}")
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(1)


def shape_config(args: argparse.Namespace) -> Path:
    """A folder with the config of `--shape`, for `doctor`."""
    return write_checkpoint(Path("out") / args.shape, SHAPES[args.shape], seed=None)


if __name__ == "__main__":
    main()
