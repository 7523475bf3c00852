"""`benchmarks.paper` without lmms-eval: what it would ask, what it has, and says."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.__main__ import asked_tasks, main, make_parser
from benchmarks.paper.environment import LMMS_EVAL, kept_versions
from benchmarks.paper.report import paired_difference, rows_of
from benchmarks.paper.runs import Folder, Run, RunError, Worker, all_runs
from benchmarks.paper.tasks import PAPER, TASKS, paper_figure, paper_size
from random_checkpoints.llava import SHAPES, make_config, make_tokenizer
from tests.conftest import NO_CLS, WriteCheckpoint

STOCK, HIRED = Run("stock", 1.0), Run("hired", 0.2)
WORKER = Worker(Path("python"), {"model": "m"}, [], "LlavaForConditionalGeneration")


def answered(*scores: float) -> dict[str, Any]:
    samples = [
        {"doc": doc, "score": score, "answer": ""} for doc, score in enumerate(scores)
    ]
    figure = sum(scores) / len(scores)
    return {
        "metric": "anls",
        "figure": figure,
        "figures": {"anls": figure},
        "samples": samples,
    }


def folder_of(path: Path, **limits: int | None) -> Folder:
    return Folder(path, {"model": "m", "dtype": "bfloat16"}, limits)


def store(folder: Folder, run: Run, task: str) -> None:
    file = folder.file(run, task)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {**answered(1.0), "settings": folder.settings_of(task)}
    file.write_text(json.dumps(found))


def test_one_engine_a_budget_and_method() -> None:
    assert all_runs(["hired", "uniform"], [1.0, 0.4, 0.2, 0.4]) == [
        STOCK,
        *(Run(name, 0.4) for name in ("hired", "uniform")),
        *(Run(name, 0.2) for name in ("hired", "uniform")),
    ]
    name = "HiredLlavaForConditionalGeneration"
    assert STOCK.overrides("LlavaForConditionalGeneration") == {"architectures": [name]}
    assert HIRED.overrides(name) == {
        "architectures": [name],
        "hired_budget": 0.2,
        "hired_selector": "hired",
    }


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, pope=None, mme=None)
    assert folder.pending(HIRED) == ["pope", "mme"]
    store(folder, HIRED, "pope")
    assert folder.pending(HIRED) == ["mme"]
    assert folder.pending(STOCK) == ["pope", "mme"]
    with pytest.raises(
        RunError, match=r"pope.json was made with limit=None, not 5: .*"
    ):
        folder_of(tmp_path, pope=5, mme=None).pending(HIRED)
    other = Folder(tmp_path, {"model": "other"}, {"pope": None})
    with pytest.raises(RunError, match="was made with model='m', not 'other'"):
        other.pending(HIRED)


@pytest.mark.parametrize(
    ("error", "said", "is_final"),
    [
        ({"reason": "no memory", "is_final": False}, "hired at 0.2: no memory", False),
        ({"reason": "unknown task", "is_final": True}, "unknown task", True),
        (None, "the process ended with status 9", False),
    ],
)
def test_a_worker_that_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: dict[str, Any] | None,
    said: str,
    is_final: bool,
) -> None:
    jobs: list[dict[str, Any]] = []

    def run(command: list[Any], **options: Any) -> Any:
        jobs.append(json.loads(Path(command[-1]).read_text()))
        if error is not None:
            Path(jobs[-1]["error"]).write_text(json.dumps(error))
        return subprocess.CompletedProcess(command, 9)

    monkeypatch.setattr(subprocess, "run", run)
    folder = folder_of(tmp_path, textvqa_val_lite=None, mine=7)
    with pytest.raises(RunError, match=said) as raised:
        WORKER.ask(folder, HIRED)
    assert raised.value.is_final is is_final
    (job,) = jobs
    assert job["folders"] == ["textvqa"]
    assert [(t["name"], t["metric"], t["limit"]) for t in job["tasks"]] == [
        ("textvqa_val_lite", "exact_match", None),
        ("mine", None, 7),
    ]
    assert job["engine"]["hf_overrides"]["hired_budget"] == 0.2


def test_lite() -> None:
    parse = make_parser().parse_args
    assert asked_tasks(parse(["--model", "m"])) == dict.fromkeys(TASKS)
    lite = asked_tasks(parse(["--model", "m", "--lite"]))
    assert [*lite] == [task.lite or name for name, task in TASKS.items()]
    assert lite["pope"] == lite["scienceqa_img"] == 500
    assert lite["mme"] is lite["ocrbench"] is lite["chartqa_lite"] is None


def test_the_papers_figures() -> None:
    assert paper_figure("docvqa_val", "hired", 0.2, "7b") == 60.8
    assert paper_figure("mme", "stock", 1.0, "13b") == 1572
    assert paper_figure("mme", "uniform", 0.2, "7b") is None
    assert paper_figure("mme", "hired", 0.3, "7b") is None
    assert paper_figure("scenes", "hired", 0.2, "7b") is None
    assert {len(row) for row in PAPER.values()} == {len(TASKS)}
    tokenizer = make_tokenizer()
    sizes = {name: paper_size(make_config(SHAPES[name], tokenizer)) for name in SHAPES}
    assert {name: size for name, size in sizes.items() if size} == {
        "llava-next-7b": "7b",
        "llava-next-13b": "13b",
    }


def test_differences_are_paired() -> None:
    """By the question, whatever the order; in percent points, with their own spread."""
    own = answered(1, 0, 1, 1)["samples"][::-1]
    assert paired_difference(own, answered(1, 0, 1, 1)["samples"]) == (
        "+0.0 (+0.0 to +0.0)"
    )
    # Differences of 0, 0, 0 and 1: a mean of 25 and a standard error of 25.
    assert paired_difference(own, answered(1, 0, 1, 0)["samples"]) == (
        "+25.0 (-24.0 to +74.0)"
    )


def test_the_table_has_what_there_is() -> None:
    found = {
        (STOCK, "ocrbench"): answered(1, 0, 1, 0),
        (HIRED, "ocrbench"): answered(1, 0, 0, 0),
        (HIRED, "scenes"): answered(1, 1),
    }
    first, second, third = rows_of(found, [STOCK, HIRED], ["ocrbench", "scenes"], "7b")
    assert first == {
        "benchmark": "OCRBench",
        "method": "stock",
        "budget": 1.0,
        "questions": 4,
        "score": "500.0",
        "paper": "501",
        "% of stock": "-",
        "points more than stock": "-",
    } | {"% of stock": "100.0"}
    assert (second["score"], second["paper"]) == ("250.0", "475")
    assert second["% of stock"] == "50.0"
    assert second["points more than stock"] == "-25.0 (-74.0 to +24.0)"
    assert (third["benchmark"], third["score"], third["paper"]) == (
        "scenes",
        "100.0",
        "-",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no/such-model"], "neither a directory with a config.json"),
        (["--model", "LLAVA", "--budgets", "1.5"], "hired_budget=1.5 is not allowed"),
        (["--model", "LLAVA", "--selectors", "best"], "there are hired, even"),
        (["--model", "SIGLIP"], "it looks at [CLS] attention"),
    ],
)
def test_bad_input_is_one_line_before_any_engine(
    make_checkpoint: WriteCheckpoint, arguments: list[str], said: str
) -> None:
    models = {
        "LLAVA": str(make_checkpoint()),
        "SIGLIP": str(make_checkpoint(**NO_CLS["siglip"])),
    }
    with pytest.raises(SystemExit) as raised:
        main([models.get(word, word) for word in arguments])
    message = str(raised.value)
    assert message.startswith("benchmarks.paper: ")
    assert said in message
    assert "\n" not in message


def test_the_environment_keeps_what_is_there() -> None:
    lines = kept_versions().splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert {"vllm", "torch", "transformers"} <= set(names)
    assert LMMS_EVAL[0] == "lmms-eval==0.7.3"
