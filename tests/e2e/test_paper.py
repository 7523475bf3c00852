"""`benchmarks.paper` with lmms-eval itself, offline: our photographs, our small model.

Where lmms-eval's environment is missing: `python -m benchmarks.paper.environment
.venv-lmms-eval`, or name another in `HIRED_LMMS_EVAL`.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.smol_accuracy import answers, right
from tests.conftest import MakeEngine
from tests.paper_tasks import LENGTHS, write_tasks
from tests.test_docs import ROOT
from training.smol.assemble import assemble
from training.smol.evaluate import Trial, trials

ENVIRONMENT = Path(os.environ.get("HIRED_LMMS_EVAL", ROOT / ".venv-lmms-eval"))
pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(
        not (ENVIRONMENT / "ready").is_file(),
        reason=f"no lmms-eval in {ENVIRONMENT}; benchmarks.paper makes it, in minutes",
    ),
]
MODEL = "llava-next-smol"


@cache
def asked() -> list[Trial]:
    """Ten questions. Their photographs may have to be fetched first."""
    return trials(2, kinds=["scene"])


def paper(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command, at budgets 1.0 and 0.2 unless others are given."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.paper"),
            *("--model", str(folder / MODEL), "--device", "cpu"),
            *("--dtype", "float32", "--max-model-len", "4096"),
            *("--environment", str(ENVIRONMENT), "--include", str(folder / "tasks")),
            *("--runs", str(folder / "runs"), "--out", str(folder / "out")),
            *("--budgets", "1.0", "0.2", *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model, the tasks' files and two engines' answers to all of them."""
    folder = tmp_path_factory.mktemp("paper")
    assemble(folder / MODEL)
    write_tasks(folder / "tasks", asked())
    done = paper(folder, "--tasks", *LENGTHS)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def stored(folder: Path, engine: str, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder / f"runs/{engine}/{task}.json").read_text()
    )
    return found


@pytest.mark.parametrize(("engine", "budget"), [("stock-1.0", 1.0), ("hired-0.2", 0.2)])
def test_scores_are_those_of_benchmarks_smol_accuracy(
    folder: Path, make_engine: MakeEngine, engine: str, budget: float
) -> None:
    """Question by question, of the same engine in this process."""
    found = stored(folder, engine, "scenes")
    llm = make_engine(
        folder / MODEL,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        num_gpu_blocks_override=None,
        hired_max_budget=1.0,
    )
    expected = right(llm, asked(), budget)
    scores = [sample["score"] for sample in found["samples"]]
    assert scores == expected.flatten().tolist()
    assert found["figure"] == pytest.approx(expected.mean())
    said = [sample["answer"].strip() for sample in found["samples"]]
    assert said == answers(llm, asked(), budget)


def test_answers_are_cut_where_the_task_says(folder: Path) -> None:
    """After one token, or where the model ends; a task without a length gets its
    whole answer."""
    whole, cut, free = (
        [sample["answer"] for sample in stored(folder, "stock-1.0", task)["samples"]]
        for task in LENGTHS
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
    ids = [tokenizer(answer).input_ids for answer in whole]
    assert cut == [tokenizer.decode(own[:1]) for own in ids]
    assert max(map(len, ids)) > 1
    assert free == whole


def test_the_report(folder: Path) -> None:
    lines = (folder / "out/paper.md").read_text().splitlines()
    rows = [[c.strip() for c in x.strip("|").split("|")] for x in lines if "|" in x]
    assert [row[:4] for row in rows[2:]] == [
        [task, method, budget, "10"]
        for task in LENGTHS
        for method, budget in (("stock", "1.0"), ("hired", "0.2"))
    ]
    assert (folder / "out/paper.png").stat().st_size > 1000


def test_an_interrupted_run_goes_on(folder: Path) -> None:
    """One file is asked again, by one engine, and gets the same answers."""
    files = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/sc*.json")}
    lost = folder / "runs/hired-0.2/scenes_cut.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    done = paper(folder, "--tasks", *LENGTHS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(lost.read_text()) == before
    same = [path for path, when in files.items() if path.stat().st_mtime_ns == when]
    assert set(files) - set(same) == {lost}
    # And where nothing is missing, no engine is started.
    assert paper(folder, "--tasks", *LENGTHS).returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "scenes", "vqa_of_mine"], "unknown task vqa_of_mine: it is none"),
        (["--tasks", "scenes_lost"], "scenes_lost: its data cannot be loaded"),
        (["--tasks", "textvqa_val"], "textvqa_val: its data cannot be loaded"),
    ],
)
def test_tasks_that_cannot_be_asked(
    folder: Path, options: list[str], said: str
) -> None:
    done = paper(folder, *options, "--runs", str(folder / "other"))
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_a_model_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    """Each engine that does not start is named with vLLM's reason; the status is 1."""
    options = ["--max-model-len", "99999", "--runs", str(tmp_path)]
    done = paper(folder, "--tasks", "scenes", *options)
    assert done.returncode == 1
    stock, hired = done.stderr.splitlines()[-2:]
    assert stock.startswith("benchmarks.paper: stock: the engine does not start: ")
    assert hired.startswith("benchmarks.paper: hired at 0.2: the engine does not")
    assert "max_model_len" in stock
