"""Other processes that answer for tests: without the plugin, of two ranks, refused.

A process takes vLLM some 20 seconds to start, so tests that need the same environment
share one.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Self
from unittest import mock

import psutil

from tests.engine import answers, prompt, start_engine

STOCK = {"VLLM_PLUGINS": ""}
TWO_RANKS = {
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
# As users start it: a refusal by the engine's own process would reach them as
# "Engine core initialization failed".
ENGINE_APART = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}

Sizes = list[tuple[int, int]]
Run = Callable[..., Any]


class Processes:
    """`processes(STOCK, answer, ...)` calls a function in the process of that
    environment, which the first call starts and the end of the `with` block ends."""

    def __init__(self) -> None:
        self.executors: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> Self:
        return self

    def __call__(
        self, environment: dict[str, str], function: Run, *args: Any, **kwargs: Any
    ) -> Any:
        """What `function`, of a module that can be imported, returns or raises."""
        with mock.patch.dict(os.environ, environment):
            executor = self.executors.setdefault(
                repr(environment), ProcessPoolExecutor(1, get_context("spawn"))
            )
            return executor.submit(function, *args, **kwargs).result()

    def __exit__(self, *_: object) -> None:
        for executor in self.executors.values():
            executor.submit(end)
            executor.shutdown()


def end() -> None:
    """Ends this process and those that its engines have started, since engines of two
    ranks take a minute to stop in good order, and some outlive whoever started them."""
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(0)


def answer(
    model: str,
    requests: list[tuple[Any, float | None]],
    max_tokens: int = 4,
    make: Callable[..., dict[str, Any]] = prompt,
    digest: Callable[[Any], list[int]] | None = None,
    **options: Any,
) -> dict[str, list[Any]]:
    """`tests.engine.answers` of a new engine to requests of noise images, made by
    `make`; and `digests`, what `digest` gives of each worker's model."""
    llm = start_engine(model, **options)
    if options.get("pipeline_parallel_size", 1) > 1:
        llm.collective_rpc(make_room_between_stages)
    prompts = [make(*media, budget=budget) for media, budget in requests]
    found = answers(llm, prompts, max_tokens)
    if digest is not None:
        found["digests"] = llm.apply_model(digest)
    return found


def make_room_between_stages(worker: Any) -> None:
    """For what a stage gets from the one before it.

    vLLM allocates it in its warm-up. A CPU's engine without compilation has none, and
    its second stage fails at the first request, without the plugin too.
    """
    runner = worker.model_runner
    runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
        batch_size=runner.max_num_tokens, dtype=runner.dtype, device=runner.device
    )


def refusal(model: str, **options: Any) -> str:
    """What an engine says that does not start."""
    try:
        start_engine(model, **options)
    except Exception as error:
        return str(error)
    raise AssertionError(f"an engine of {options} has started")
