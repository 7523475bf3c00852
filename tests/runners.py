"""How the engines of a process run: by which of vLLM's model runners, and compiled?

On a GPU vLLM chooses Model Runner V2 for most models, on a CPU V1; and users compile,
while tests start faster without. All engines of a process run one way, named by the
environment variable `HIRED_TEST_RUNNER`; `tests/e2e/test_runners.py` lists which tests
run which way. Import this module before vLLM, which decides on its import.
"""

import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

VARIABLE = "HIRED_TEST_RUNNER"


@dataclass(frozen=True)
class Runner:
    """One way to run.

    Attributes:
        is_v2: whether vLLM's Model Runner V2 is meant.
        is_compiled: whether torch.compile is.
        environment: what vLLM must find in the environment.
    """

    is_v2: bool = False
    is_compiled: bool = False
    environment: dict[str, str] = field(default_factory=dict)


RUNNERS = {
    "v1": Runner(environment={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    "v1-compiled": Runner(
        is_compiled=True,
        environment={
            "VLLM_USE_V2_MODEL_RUNNER": "0",
            # Ahead-of-time compilation gives each engine a cache of its own;
            # without it, engines that differ in settings alone share Inductor's.
            "VLLM_USE_AOT_COMPILE": "0",
        },
    ),
    "v2": Runner(
        is_v2=True,
        environment={"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"},
    ),
}

RUNNER = RUNNERS[os.environ.get(VARIABLE, "v1")]
"""This process's."""

os.environ |= RUNNER.environment

CORES = "0-1"
"""Where engines run."""

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # One of several processes that share the tests: with a core each, their threads
    # do not wait for each other.
    CORES = str(int(worker.removeprefix("gw")) % (os.cpu_count() or 1))
    os.environ["OMP_NUM_THREADS"] = "1"

if RUNNER.is_v2:
    # V2's kernels are written in Triton, whose interpreter runs them on a CPU. vLLM
    # asks only whether a driver is active.
    from triton.backends import backends

    backends.clear()
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))


def _running(worker: Any) -> tuple[bool, bool]:
    """Whether a worker runs V2, and whether its model was compiled."""
    runner = worker.model_runner
    bases = {base.__module__ for base in type(runner).__mro__}
    return (
        "vllm.v1.worker.gpu.model_runner" in bases,
        # vLLM sets it after the first compiled call, at start-up.
        any(getattr(m, "compiled", False) for m in runner.get_model().modules()),
    )


def check_runner(llm: Any) -> None:
    """Fails unless all workers of the engine `llm` run as this process is meant to."""
    expected = (RUNNER.is_v2, RUNNER.is_compiled)
    running = llm.collective_rpc(_running)
    assert running == [expected] * len(running), (running, expected)
