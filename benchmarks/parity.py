"""Whether an engine with the plugin and no budget answers as stock vLLM does.

Each engine is a process of its own, with the plugin and without it, on each of vLLM's
model runners that is named. Both are asked the same questions one at a time, greedily;
token ids and prompts must be equal.

    python -m benchmarks.parity --shape tiny --runners v1
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.harness import make_parser, noise, start_engine, write_results
from vllm_hired.tools.tables import Row

RUNNERS = {"v1": "0", "v2": "1"}
"""Name -> the value of vLLM's `VLLM_USE_V2_MODEL_RUNNER`."""

SIZES = ((672, 672), (1008, 336), (336, 1008), (500, 375), (1280, 960), (64, 64))


def answer(args: argparse.Namespace) -> list[Row]:
    """Prompt and answer of each question, as token ids; the last is a text."""
    from vllm import SamplingParams

    llm = start_engine(args, hf_overrides={}, max_num_seqs=1)
    sampling = SamplingParams(max_tokens=args.tokens, temperature=0, ignore_eos=True)
    prompts: list[Any] = [
        {
            "prompt": "USER: <image>\nWhat is this? ASSISTANT:",
            "multi_modal_data": {"image": noise(*size, seed)},
        }
        for seed, size in enumerate(SIZES)
    ]
    answers = []
    for prompt in tqdm([*prompts, "USER: What is a token? ASSISTANT:"], desc="answers"):
        (output,) = llm.generate([prompt], sampling, use_tqdm=False)
        ids = [*(output.prompt_token_ids or [])]
        answers.append({"prompt": ids, "answer": [*output.outputs[0].token_ids]})
    return answers


def answers_of(runner: str, plugin: bool, folder: Path) -> list[Row]:
    """`answer` in a process of its own, started as this one was."""
    out = folder / f"{runner}-{plugin}.json"
    environment = os.environ | {"VLLM_USE_V2_MODEL_RUNNER": RUNNERS[runner]}
    if not plugin:
        environment["VLLM_PLUGINS"] = ""
    command = [sys.executable, "-m", "benchmarks.parity", *sys.argv[1:]]
    subprocess.run([*command, "--answers", out], env=environment, check=True)
    found: list[Row] = json.loads(out.read_text())
    return found


def compare(runner: str, own: list[Row], stock: list[Row]) -> Row:
    """A row of the table; ids differ from the first that does."""
    same = sum(mine == theirs for mine, theirs in zip(own, stock, strict=True))
    prompts = sum(
        mine["prompt"] == theirs["prompt"]
        for mine, theirs in zip(own, stock, strict=True)
    )
    return {
        "model runner": runner,
        "questions": len(own),
        "same prompts": prompts,
        "same answers": same,
        "tokens an answer": len(own[0]["answer"]),
        "equal": "yes" if same == len(own) else "NO",
    }


def draw(rows: list[Row]) -> Figure:
    """Equal answers of all, a bar a runner."""
    figure = Figure(figsize=(4, 0.5 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [row["model runner"] for row in rows]
    axes.barh(names, [row["questions"] for row in rows], color="lightgrey")
    axes.barh(names, [row["same answers"] for row in rows])
    axes.set_xlabel("answers equal to stock's")
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument(
        "--runners",
        nargs="+",
        choices=RUNNERS,
        help="vLLM's model runners (default: v1, and with --device cuda v2)",
    )
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answers is not None:
        args.answers.write_text(json.dumps(answer(args)))
        return
    runners = args.runners or (["v1", "v2"] if args.device == "cuda" else ["v1"])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for runner in runners:
            own, stock = (
                answers_of(runner, plugin, Path(folder)) for plugin in (True, False)
            )
            rows.append(compare(runner, own, stock))
    title = "The plugin without a budget, and stock vLLM: equal token ids"
    write_results(args, "parity", {title: rows}, rows, draw(rows))
    if any(row["equal"] != "yes" for row in rows):
        raise SystemExit("an answer differs from stock's")


if __name__ == "__main__":
    main()
