"""One engine, and the tasks that it is asked: runs in lmms-eval's environment.

Reads a job as JSON from a file, writes a file a task as soon as it is done, and `error`
where something stands in the way. `benchmarks.paper` starts it and reads these files.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmms_eval.tasks
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager, get_task_dict
from loguru import logger


class JobError(Exception):
    """Why a job cannot be done, for people.

    Attributes:
        is_final: whether no other engine could do it either.
    """

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


def task_manager(job: Mapping[str, Any]) -> TaskManager:
    """Of the task files that the job names. To read all of lmms-eval's takes longer
    than a small engine's start.

    Raises:
        JobError: a task that none of them has.
    """
    own = Path(lmms_eval.tasks.__file__).parent
    folders = [str(own / folder) for folder in job["folders"]]
    manager = TaskManager(
        "ERROR", include_path=[*folders, *job["include"]], include_defaults=False
    )
    unknown = [t["name"] for t in job["tasks"] if t["name"] not in manager.all_tasks]
    if unknown:
        raise JobError(
            f"unknown task {', '.join(unknown)}: it is none of the paper's, and no "
            f"file in {', '.join(job['include']) or '--include'} has it",
            is_final=True,
        )
    return manager


def check_data(job: Mapping[str, Any], manager: TaskManager) -> None:
    """Loads each task's data before an engine is started."""
    for task in job["tasks"]:
        try:
            get_task_dict([task["name"]], manager, "chat")
        except Exception as error:
            raise JobError(
                f"{task['name']}: its data cannot be loaded: {reason(error)}",
                is_final=True,
            ) from error


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def score_of(value: Any) -> float:
    """A question's own score, which some tasks wrap in what they aggregate."""
    return float(value["score"] if isinstance(value, Mapping) else value)


def evaluate(
    backend: Any, manager: TaskManager, task: Mapping[str, Any]
) -> dict[str, Any]:
    """Asks one task; its figures and each question's score."""
    name = task["name"]
    found = simple_evaluate(
        backend,
        tasks=[name],
        task_manager=manager,
        limit=task["limit"],
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    figures = {
        key.removesuffix(",none"): value
        for key, value in found["results"][name].items()
        if isinstance(value, int | float)
    }
    samples = found["samples"][name]
    metric = task["metric"] or next(m for m in figures if m in samples[0])
    return {
        "metric": metric,
        "figure": figures[metric],
        "figures": figures,
        "samples": [
            {
                "doc": sample["doc_id"],
                "score": score_of(sample[metric]),
                "answer": sample["filtered_resps"][0],
            }
            for sample in samples
            if metric in sample
        ],
    }


def write(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


def run(job: Mapping[str, Any]) -> None:
    """Raises `JobError`."""
    manager = task_manager(job)
    check_data(job, manager)
    # Not before it is needed: it imports vLLM.
    from benchmarks.paper.backend import TaskLengthVLLM

    try:
        backend = TaskLengthVLLM(**job["engine"])
    except Exception as error:
        raise JobError(f"the engine does not start: {reason(error)}") from error
    for task in job["tasks"]:
        try:
            found = evaluate(backend, manager, task)
        except Exception as error:
            raise JobError(f"{task['name']} fails: {reason(error)}") from error
        write(Path(task["out"]), {**found, "settings": task["settings"]})


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    status = 0
    try:
        run(job)
    except JobError as error:
        write(Path(job["error"]), {"reason": str(error), "is_final": error.is_final})
        status = 1
    sys.stderr.flush()
    # Engines in this process take long to end, and all is written.
    os._exit(status)


if __name__ == "__main__":
    main()
