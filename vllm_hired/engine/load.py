"""The load as one front end, an `AsyncLLM` in one process, knows it: its own unfinished
requests, and the scheduler's statistics that reach it."""

import time
from functools import cache, wraps
from typing import Any

from typing_extensions import override
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from vllm_hired.adaptive import Load, Reports
from vllm_hired.engine.contract import load_problem
from vllm_hired.errors import HiredConfigError

WITHOUT_STATISTICS = (
    "not with --disable-log-stats: it goes by the scheduler's statistics"
)


class LoadLogger(AggregateStatLoggerBase):
    """One of the loggers of an `AsyncLLM`, from which it knows its load.

    Where vLLM makes new loggers, when an engine with elastic expert parallelism grows,
    it goes on with its own requests alone.

    Args:
        output_processor: vLLM's, which holds the unfinished requests.
        num_engines: that the `AsyncLLM` talks to.
    """

    def __init__(self, output_processor: Any, num_engines: int) -> None:
        self._requests: dict[str, Any] = output_processor.request_states
        self._num_engines = num_engines
        self._reports = Reports()

    @override
    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            waiting = scheduler_stats.num_waiting_reqs
            self._reports.note(engine_idx, waiting, time.monotonic())

    @override
    def log_engine_initialized(self) -> None:
        """Says nothing."""

    def load(self) -> Load:
        """The load now. Called by the thread that processes images."""
        # A list at once: requests come and go in another thread.
        requests = [*self._requests.values()]
        return Load(
            awaiting=sum(request.is_prefilling for request in requests),
            waiting=self._reports.waiting(time.monotonic()),
            engines=self._num_engines,
        )


@cache
def wrap_async_llm() -> None:
    """Wraps `AsyncLLM.__init__`, once, to tell its processor of images its load."""
    from vllm.v1.engine.async_llm import AsyncLLM

    upstream = AsyncLLM.__init__

    @wraps(upstream)
    def init(self: AsyncLLM, *args: Any, **kwargs: Any) -> None:
        upstream(self, *args, **kwargs)
        adaptive = getattr(self.renderer.mm_processor, "adaptive", None)
        if adaptive is None:
            return
        if self.logger_manager is None:
            raise HiredConfigError("hired_adaptive", True, WITHOUT_STATISTICS)
        # As for its own loggers, of no engine named there is one.
        num_engines = max(1, len(self.engine_core.engine_ranks_managed))
        load_logger = LoadLogger(self.output_processor, num_engines)
        self.logger_manager.stat_loggers.append(load_logger)
        adaptive.load = load_logger.load

    AsyncLLM.__init__ = init


def check_adaptive(args: EngineArgs) -> None:
    """Refuses `hired_adaptive` where no load is known, or where other servers would
    have to choose alike.

    Raises:
        HiredConfigError
    """
    refusals = (
        (
            not isinstance(args, AsyncEngineArgs),
            "not offline: all prompts of a call are prepared before its first step, so "
            "there is no load to go by; use it with vllm serve, or leave it out",
        ),
        (args.disable_log_stats, WITHOUT_STATISTICS),
        (
            args.mm_processor_cache_gb == 0 and args.enable_prefix_caching is False,
            "not with --mm-processor-cache-gb 0 and --no-enable-prefix-caching "
            "together: vLLM then gives an image another name each time, and it would "
            "not keep its step",
        ),
        (
            args.kv_transfer_config is not None or args.ec_transfer_config is not None,
            "not with --kv-transfer-config or --ec-transfer-config: servers that hand "
            "an image on must give it the same budget, and each would choose by its "
            "own load",
        ),
    )
    for is_refused, why in refusals:
        if is_refused:
            raise HiredConfigError("hired_adaptive", True, why)
    if (problem := load_problem(LoadLogger)) is not None:
        raise HiredConfigError("hired_adaptive", True, problem)
