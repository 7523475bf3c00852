"""`vllm-hired doctor`: whether this environment, and a model, can drop tokens.

The one command that imports vLLM, and only to ask it.
"""

import argparse
import logging
import platform
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from vllm_hired import __version__
from vllm_hired.config import HiredConfig, given_settings
from vllm_hired.errors import HiredConfigError
from vllm_hired.layouts import image_layout, largest_image_sizes
from vllm_hired.selectors import SELECTORS, selector_names
from vllm_hired.tools.checkpoint import CheckpointError, read_plain_config
from vllm_hired.towers import tower_of, tower_type
from vllm_hired.towers.support import (
    num_tower_layers,
    ranking_layers,
    unsupported_tower,
)

PACKAGES = ("vllm", "torch", "transformers")
WIDTH = 88


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: of what was looked at.
        said: what was found.
        is_fine: whether tokens can be dropped, as far as this goes.
    """

    name: str
    said: str
    is_fine: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        help="directory of a checkpoint, or a model id; its config is read, and no "
        "weights",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The report, and a line that names the checks that failed, if any did."""
    with _quiet_logs():
        checks = [*environment_checks(), *engine_checks()]
        if args.model is not None:
            checks += model_checks(args.model)
    failed = [check.name for check in checks if not check.is_fine]
    text = "\n".join(_as_lines(check) for check in checks)
    return text, [f"doctor: failed: {', '.join(failed)}"] if failed else []


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Holds back what vLLM and transformers log while they are asked."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _as_lines(check: Check) -> str:
    head = f"{'ok' if check.is_fine else 'FAILED':<8}{check.name:<14}"
    return textwrap.fill(
        check.said, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
    )


def environment_checks() -> Iterator[Check]:
    """Versions; a package that is not installed is a failure."""
    yield Check("vllm-hired", f"{__version__}, Python {platform.python_version()}")
    for package in PACKAGES:
        try:
            yield Check(package, version(package))
        except PackageNotFoundError:
            yield Check(package, "not installed in this environment", is_fine=False)


def engine_checks() -> Iterator[Check]:
    """What vLLM itself says, where it can be imported."""
    if find_spec("vllm") is None:
        return
    try:
        from vllm_hired.engine import health
    except Exception as error:
        yield Check("import vllm", _reason(error), is_fine=False)
        return
    problem = health.plugin_problem()
    fine = "registered; vLLM loads it in every process"
    yield Check("plugin", problem or fine, is_fine=problem is None)
    yield _asked("model runner", health.model_runner)
    problems = health.contract_problems()
    fine = "all that the plugin relies on is in this vLLM"
    yield Check("contract", "; ".join(problems) or fine, is_fine=not problems)


def _asked(name: str, ask: Callable[[], str]) -> Check:
    """What a question to vLLM gives, or how it fails."""
    try:
        return Check(name, ask())
    except Exception as error:
        return Check(name, _reason(error), is_fine=False)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def model_checks(model: str) -> Iterator[Check]:
    """What a model's config offers: its family, tower, layers and methods."""
    try:
        hf_config = read_plain_config(model)
    except CheckpointError as error:
        yield Check("model", str(error), is_fine=False)
        return
    yield Check("model", f"{model}: {hf_config.architectures[0]}")
    yield Check("family", hf_config.model_type)
    problem = unsupported_tower(hf_config)
    if problem is not None:
        yield Check("tower", str(HiredConfigError(*problem)), is_fine=False)
        return
    yield Check("tower", _tower_line(hf_config))
    try:
        hired = HiredConfig.from_hf_config(hf_config)
    except HiredConfigError as error:
        yield Check("settings", f"config.json: {error}", is_fine=False)
        return
    given = ", ".join(f"{k}={v}" for k, v in given_settings(hf_config).items())
    yield Check("settings", f"in config.json: {given or 'none'}")
    if find_spec("torch") is not None:
        yield from method_checks(hf_config, hired.attention)


def _tower_line(hf_config: Any) -> str:
    layers = ranking_layers(hf_config)
    count = num_tower_layers(hf_config)
    which = (
        f"0 to {count - 1}"
        if layers == [*range(count)]
        else f"{', '.join(map(str, layers))} of {count}"
    )
    has_cls = tower_of(hf_config).has_cls
    return (
        f"{tower_type(hf_config)}, {'with' if has_cls else 'without'} [CLS]; layers "
        f"whose attention can rank tokens: {which}"
    )


def method_checks(hf_config: Any, attention: str) -> Iterator[Check]:
    """Methods that can be served with a config, and why each other one cannot."""
    problems = {
        name: method_problem(name, hf_config, attention) for name in selector_names()
    }
    usable = [name for name, problem in problems.items() if problem is None]
    yield Check("methods", ", ".join(usable) or "none", is_fine=bool(usable))
    reasons = dict.fromkeys(problem for problem in problems.values() if problem)
    for reason in reasons:
        names = ", ".join(name for name, why in problems.items() if why == reason)
        yield Check("not served", f"{names}: {reason}")


def method_problem(name: str, hf_config: Any, attention: str) -> str | None:
    """Why an engine would refuse a method, or None."""
    from vllm_hired.selectors import make_selector
    from vllm_hired.selectors.probe import needs_problem, probe_problem

    try:
        problem = needs_problem(name, tower_type(hf_config), attention)
        if problem is not None:
            return problem[2]
        selector = make_selector(name)
    except HiredConfigError as error:
        return error.allowed
    if name in SELECTORS:
        return None
    layouts = (image_layout(hf_config, *s) for s in largest_image_sizes(hf_config))
    return probe_problem(selector, layouts, Fraction(1, 2))
