"""How long `vllm-hired plan` takes as a whole process, from the shell and back.

python -m benchmarks.start --rounds 10
"""

import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.harness import make_parser, now, spread, write_results
from random_checkpoints.llava import SHAPES, write_checkpoint


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    args = parser.parse_args()
    model = args.model or write_checkpoint(
        Path("out") / args.shape, SHAPES[args.shape], seed=None
    )
    command = [sys.executable, "-m", "vllm_hired.tools.cli", "plan", str(model)]
    command += ["--size", "1024x768", "672x672", "--budget", "0.4", "0.2"]
    seconds = []
    for turn in tqdm(range(args.rounds + 1), desc="start"):
        start = now()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if turn > 0:  # the first reads the files from the disk
            seconds.append(now() - start)
    figure = Figure(figsize=(5, 2.4))
    axes = figure.subplots()
    axes.plot(seconds, marker="o", linestyle="none")
    axes.set(xlabel="round", ylabel="seconds", ylim=(0, None))
    row = {
        "sizes": 2,
        "budgets": 2,
        "rounds": len(seconds),
        "whole process (s)": spread(seconds),
    }
    write_results(args, "start", {"vllm-hired plan": [row]}, seconds, figure)


if __name__ == "__main__":
    main()
