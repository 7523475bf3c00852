"""What is to be asked, what has been answered, and the worker that asks the rest."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.tasks import TASKS

ROOT = Path(__file__).parents[2]


class RunError(RuntimeError):
    """Why an engine's tasks were not all asked, in a line.

    Attributes:
        is_final: whether no other engine could be asked them either.
    """

    def __init__(self, reason: str, is_final: bool = True) -> None:
        super().__init__(reason)
        self.is_final = is_final


@dataclass(frozen=True)
class Run:
    """One engine.

    Attributes:
        selector: "stock", or the value of `hired_selector`.
        budget: 1.0 of stock.
    """

    selector: str
    budget: float

    @property
    def name(self) -> str:
        return self.selector if self.is_stock else f"{self.selector} at {self.budget}"

    @property
    def is_stock(self) -> bool:
        return self.selector == "stock"

    def overrides(self, architecture: str) -> dict[str, object]:
        """`hf_overrides` of its engine: the plugin's own name of the architecture, of
        stock too, so that a missing plugin is an error and not a result."""
        name = "Hired" + architecture.removeprefix("Hired")
        overrides: dict[str, object] = {"architectures": [name]}
        if not self.is_stock:
            overrides["hired_budget"] = self.budget
            overrides["hired_selector"] = self.selector
        return overrides


def all_runs(selectors: Sequence[str], budgets: Sequence[float]) -> list[Run]:
    """Stock first, with which all others are compared; no engine twice."""
    others = [Run(s, b) for b in budgets if b != 1 for s in selectors]
    return [Run("stock", 1.0), *dict.fromkeys(others)]


@dataclass(frozen=True)
class Folder:
    """Where the answers of one model and one set of settings are kept.

    Attributes:
        path: of the folder.
        settings: all that must be the same in it.
        limits: lmms-eval's task -> how many of its first questions are asked; None is
            all.
    """

    path: Path
    settings: Mapping[str, object]
    limits: Mapping[str, int | None]

    def settings_of(self, task: str) -> dict[str, object]:
        """All that decides a task's answers but the engine."""
        return {**self.settings, "limit": self.limits[task]}

    def file(self, run: Run, task: str) -> Path:
        return self.path / f"{run.selector}-{run.budget}" / f"{task}.json"

    def read(self, run: Run, task: str) -> dict[str, Any] | None:
        """The answers, or None where the task is still to be asked.

        Raises:
            RunError: the file is of other settings.
        """
        path = self.file(run, task)
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        for key, value in self.settings_of(task).items():
            if found["settings"].get(key) != value:
                raise RunError(
                    f"{path} was made with {key}={found['settings'].get(key)!r}, not "
                    f"{value!r}: name another folder with --runs, or remove it"
                )
        return found

    def pending(self, run: Run) -> list[str]:
        return [task for task in self.limits if self.read(run, task) is None]


@dataclass(frozen=True)
class Worker:
    """How engines are started.

    Attributes:
        python: of lmms-eval's environment.
        engine: arguments of lmms-eval's vLLM backend, without `hf_overrides`.
        include: folders of further task files.
        architecture: in the checkpoint's config.
    """

    python: Path
    engine: Mapping[str, object]
    include: Sequence[str]
    architecture: str

    def ask(self, folder: Folder, run: Run) -> None:
        """One engine, asked all pending tasks in turn; each answered one has its file.

        Raises:
            RunError
        """
        place = folder.file(run, "job")
        place.parent.mkdir(parents=True, exist_ok=True)
        error = place.with_name("error.json")
        error.unlink(missing_ok=True)
        known = {task: TASKS.get(full_name(task)) for task in folder.pending(run)}
        job = {
            "engine": {
                **self.engine,
                "hf_overrides": run.overrides(self.architecture),
            },
            "include": [*self.include],
            "folders": sorted({task.folder for task in known.values() if task}),
            "error": str(error),
            "tasks": [
                {
                    "name": name,
                    "metric": task and task.metric,
                    "limit": folder.limits[name],
                    "out": str(folder.file(run, name)),
                    "settings": folder.settings_of(name),
                }
                for name, task in known.items()
            ],
        }
        place.write_text(json.dumps(job, indent=1) + "\n")
        done = subprocess.run(
            [self.python, "-m", "benchmarks.paper.worker", place.resolve()],
            env=os.environ
            | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            check=False,
        )
        if done.returncode != 0:
            found = {
                "reason": f"the process ended with status {done.returncode}; "
                "its log is above",
                "is_final": False,
            }
            if error.is_file():
                found = json.loads(error.read_text())
            raise RunError(f"{run.name}: {found['reason']}", bool(found["is_final"]))


def full_name(task: str) -> str:
    """The task of `TASKS` whose smaller version this is, or itself."""
    return next((name for name, known in TASKS.items() if known.lite == task), task)
