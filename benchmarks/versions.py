"""The test suite on each release of vLLM that is supported, and how it went.

Each release has an environment of its own, which `make environment VLLM=0.31` builds.
What is known of the releases that are not asked for stays in the result files.

    python -m benchmarks.versions
    python -m benchmarks.versions --releases 0.31 0.33 -- tests/e2e
    python -m benchmarks.versions --releases 0.32 --name matrix -- -m matrix
"""

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from vllm_hired.tools.tables import Row, as_table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
ENVIRONMENTS = {"0.31": ".venv-0.31", "0.32": ".venv", "0.33": ".venv-0.33"}
"""Release of vLLM -> its environment, as the Makefile names it."""

TWO_PROCESSES = "--numprocesses 2 --dist loadfile --no-loadscope-reorder"
"""How `make test` runs pytest."""

PROVENANCE = (
    "import json; from benchmarks.provenance import provenance; "
    "print(json.dumps(provenance()))"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--releases",
        nargs="+",
        choices=ENVIRONMENTS,
        default=[*ENVIRONMENTS],
        help="default: all",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="default: benchmarks/results"
    )
    parser.add_argument(
        "--name", default="versions", help="of the result files (default: versions)"
    )
    parser.add_argument("tests", nargs="*", help="arguments of pytest (default: all)")
    args = parser.parse_args()
    for release in args.releases:
        if not (ROOT / ENVIRONMENTS[release] / "ready").exists():
            parser.error(f"first run: make environment VLLM={release}")
    outcomes = []
    for release in args.releases:
        python = Path(ENVIRONMENTS[release]) / "bin/python"
        outcomes.append(run_suite(python, args.tests))
        # Now, since a later release's run may be cut short.
        write_outcome(args.out, args.name, release, outcomes[-1])
    raise SystemExit(any(outcome["failed"] for outcome in outcomes))


def run_suite(python: Path, tests: Sequence[str]) -> dict[str, Any]:
    """Runs pytest in an environment.

    Returns:
        provenance of that environment, `passed` and `seconds`, and the names of tests
        that `failed` (or could not be set up) or were `skipped`.
    """
    facts = subprocess.run(
        [python, "-c", PROVENANCE], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    command = [str(python), "-m", "pytest", *TWO_PROCESSES.split(), *tests]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        start = time.perf_counter()
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
        seconds = time.perf_counter() - start
        if not report.exists():
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        cases = [*ElementTree.parse(report).iter("testcase")]
    named = [(f"{case.get('classname')}::{case.get('name')}", case) for case in cases]
    failed = [
        name
        for name, case in named
        if {child.tag for child in case} & {"failure", "error"}
    ]
    skipped = [name for name, case in named if case.find("skipped") is not None]
    return {
        **json.loads(facts.stdout),
        "command": " ".join(command),
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": failed,
        "skipped": skipped,
        "seconds": round(seconds),
    }


def write_outcome(out: Path, name: str, release: str, outcome: dict[str, Any]) -> None:
    """Into `name.json` and `name.md`, beside those of other releases."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known = dict(sorted({**known, release: outcome}.items()))
    file.write_text(json.dumps(known, indent=1) + "\n")
    table = as_table([as_row(outcome) for outcome in known.values()])
    machines = {outcome["machine"]: None for outcome in known.values()}
    commands = (f"`{outcome['command']}`" for outcome in known.values())
    text = [*machines, *commands, table]
    (out / f"{name}.md").write_text("\n\n".join(text) + "\n")


def as_row(outcome: dict[str, Any]) -> Row:
    versions = outcome["versions"]
    return {
        "vLLM": versions["vllm"],
        "torch": versions["torch"],
        "transformers": versions["transformers"],
        "passed": outcome["passed"],
        "failed": len(outcome["failed"]),
        "skipped": len(outcome["skipped"]),
        "seconds": outcome["seconds"],
        "commit": outcome["commit"],
        "date": outcome["date"],
    }


if __name__ == "__main__":
    main()
