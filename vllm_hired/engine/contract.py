"""What this package relies on in vLLM, compared with the vLLM that is installed.

vLLM calls our overrides by their upstream names and mostly by keyword. A release that
renames one would go on to serve, and drop nothing or fail in the middle of a request.
So a budget is refused by name where something is missing, on releases too that did not
exist when this was written.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from inspect import Parameter, signature, unwrap
from types import CodeType
from typing import Any

import vllm
from vllm.engine.arg_utils import EngineArgs

_MODELS = "vllm.model_executor.models"


def contract_problem(*classes: type) -> str | None:
    """What the installed vLLM lacks of all that `classes` of ours rely on, or None.

    Args:
        classes: the model class, its processor's and its processing info's.
    """
    problem = next(_problems(classes), None)
    return problem and f"vLLM {vllm.__version__} does not fit vllm_hired: {problem}"


def _problems(classes: tuple[type, ...]) -> Iterator[str]:
    for cls in classes:
        yield from override_problems(cls)
        yield from attribute_problems(getattr(cls, "relies_on", {}))
    yield from wrap_problems()


def override_problems(cls: type) -> Iterator[str]:
    """Methods of ours, marked `@override`, that upstream lacks or calls otherwise."""
    for place, ours in enumerate(cls.__mro__):
        for name, method in vars(ours).items():
            if not getattr(method, "__override__", False):
                continue
            upstream = next(
                (
                    vars(base)[name]
                    for base in cls.__mro__[place + 1 :]
                    if name in vars(base) and not _is_ours(base)
                ),
                None,
            )
            if upstream is None:
                yield f"{ours.__name__} overrides {name}, which vLLM no longer has"
            elif wrong := _other_parameters(method, upstream):
                yield (
                    f"vLLM calls {name} of {ours.__name__} with other parameters: "
                    + (", ".join(sorted(wrong)))
                )


def wrap_problems() -> Iterator[str]:
    """The method that `engine_args` wraps, if it is gone or takes other parameters."""
    wrapped = getattr(EngineArgs, "create_model_config", None)
    if wrapped is None or {*signature(wrapped).parameters} != {"self"}:
        yield "EngineArgs.create_model_config() is gone or takes parameters now"


RENDER_CHAT = ("conversations", "prompt_extras")
"""Parameters that the wrap of `detail.py` reads, of those of upstream's methods."""


def render_chat_problem() -> str | None:
    """What is missing to find a chat's `image_url.detail`, or None."""
    try:
        renderer = import_module("vllm.renderers.base").BaseRenderer
        methods = renderer.render_chat, renderer.render_chat_async
        fits = "mm_processor" in _names(renderer.__init__.__code__) and all(
            {*RENDER_CHAT} <= {*signature(method).parameters} for method in methods
        )
    except (ImportError, AttributeError):
        fits = False
    return (
        None
        if fits
        else f"vLLM {vllm.__version__} has no BaseRenderer with mm_processor and with "
        f"render_chat() of {' and '.join(RENDER_CHAT)}, by which vllm_hired finds an "
        "image's detail"
    )


FRONT_END = {
    "engine.async_llm:AsyncLLM.__init__": (
        "renderer",
        "output_processor",
        "engine_core",
        "engine_ranks_managed",
        "logger_manager",
    ),
    "engine.output_processor:OutputProcessor.__init__": ("request_states",),
    "engine.output_processor:RequestState.__init__": ("is_prefilling",),
    "metrics.loggers:StatLoggerManager.__init__": ("stat_loggers",),
    "metrics.stats:SchedulerStats.__init__": ("num_waiting_reqs",),
}
"""What `engine.load` reads of vLLM's front end, in the form of `relies_on`."""


def load_problem(logger: type) -> str | None:
    """What is missing for a front end to know its load, or None.

    Args:
        logger: the class of ours that gets the scheduler's statistics.
    """
    try:
        found = [
            *attribute_problems(FRONT_END, "vllm.v1"),
            *override_problems(logger),
        ]
    except ImportError as error:
        found = [str(error)]
    return f"vLLM {vllm.__version__} does not fit: {found[0]}" if found else None


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _other_parameters(ours: Any, upstream: Any) -> set[str]:
    """Names that one of two functions knows and the other does not accept."""
    mine, theirs = signature(ours).parameters, signature(upstream).parameters
    variadic = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    accepts_any = any(p.kind is Parameter.VAR_KEYWORD for p in mine.values())
    given = {name for name, p in theirs.items() if p.kind not in variadic}
    needed = {
        name
        for name, p in mine.items()
        if p.kind not in variadic and p.default is Parameter.empty
    }
    passed_on = any(p.kind in variadic for p in theirs.values())
    unknown = set() if accepts_any else given - set(mine)
    return unknown | (set() if passed_on else needed - given)


def attribute_problems(
    relies_on: Mapping[str, Sequence[str]], package: str = _MODELS
) -> Iterator[str]:
    """What vLLM's classes no longer have.

    Args:
        relies_on: `module:Class.method` -> attributes that the method must mention,
            because we read the class by them.
        package: of vLLM, where the modules are.
    """
    for path, attributes in relies_on.items():
        module, _, qualified = path.partition(":")
        class_name, _, method = qualified.partition(".")
        cls = getattr(import_module(f"{package}.{module}"), class_name, None)
        found = getattr(cls, method, None)
        code = getattr(unwrap(found) if callable(found) else None, "__code__", None)
        if not isinstance(code, CodeType):
            yield f"{qualified} is no longer in vLLM's {module}"
            continue
        for attribute in attributes:
            if attribute not in _names(code):
                yield f"{qualified} knows no attribute {attribute}"


@cache
def _names(code: CodeType) -> frozenset[str]:
    """Attributes and globals that a function mentions, those of inner ones too."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return frozenset(code.co_names).union(*(_names(c) for c in inner))
