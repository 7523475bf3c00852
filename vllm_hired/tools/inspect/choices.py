"""What every method keeps of an image, at each budget and alpha that the page offers.

The selectors themselves choose, so that the page holds no second copy of them. That
decides the steps of its sliders. VisPruner, VisionZip and PruMerge+ choose anew at each
count, for 2,880 cells up to a quarter of a second on one CPU core. So there are 22
budgets, close together where they are small, rather than one for each percent: all
methods together take some 10 s. Greedy methods give one order of the cells for all
budgets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from vllm_hired.budget import kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.errors import HiredConfigError
from vllm_hired.selectors import (
    SELECTORS,
    make_selector,
    selector_class,
    selector_names,
)
from vllm_hired.selectors.base import Selector
from vllm_hired.selectors.probe import needs_problem, probe_problem
from vllm_hired.tools.inspect.inspection import Inspection
from vllm_hired.towers import tower_type

BUDGETS = tuple(
    Fraction(percent, 100)
    for percent in (
        *(1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50),
        *(60, 70, 80, 90, 100),
    )
)
"""Of the page's slider; those that the user asks for join them."""

ALPHAS = tuple(Fraction(quarter, 4) for quarter in range(5))
"""Likewise."""


@dataclass(frozen=True)
class Choices:
    """What one method keeps.

    Attributes:
        name: of the method.
        about: the first line of its docstring.
        uses_alpha: whether alpha makes a difference to it on this image.
        merges: whether it merges dropped cells into some of those that it keeps.
        kept: `[A, B, P * N]` bool, by alpha (a single one where it makes no
            difference), budget and flat cell index.
    """

    name: str
    about: str
    uses_alpha: bool
    merges: bool
    kept: Tensor


def all_choices(
    inspection: Inspection,
    hired: HiredConfig,
    budgets: Sequence[Fraction],
    alphas: Sequence[Fraction],
) -> tuple[list[Choices], list[str]]:
    """Of every method; and a line on each that cannot be used with this model.

    Raises:
        HiredConfigError: `hired.selector` cannot be used.
    """
    choices, left_out = [], []
    for name in selector_names():
        try:
            choices.append(choices_of(name, inspection, hired, budgets, alphas))
        except HiredConfigError as error:
            if name == hired.selector:
                raise
            left_out.append(f"{name}: {error.allowed}")
    return choices, left_out


@torch.inference_mode()
def choices_of(
    name: str,
    inspection: Inspection,
    hired: HiredConfig,
    budgets: Sequence[Fraction],
    alphas: Sequence[Fraction],
) -> Choices:
    """Of one method, with its settings where `hired` has it.

    Raises:
        HiredConfigError: an engine would refuse it, or, being another package's, it
            fails on this image.
    """
    selector = usable_selector(name, inspection, hired)
    layout, observation = inspection.layout, inspection.seen_by(selector)
    # It divides what is kept between a thumbnail and tiles.
    has_both = layout.num_tiles > 0 and layout.num_thumbnail_cells > 0
    uses_alpha = selector.uses_alpha and has_both
    if not uses_alpha:
        alphas = [hired.alpha]
    counts = [
        min(kept_count(layout, budget, hired.token_cap).tokens, layout.num_selectable)
        for budget in budgets
    ]
    kept = torch.zeros(len(alphas), len(budgets), layout.num_cells, dtype=torch.bool)
    merges = False
    try:
        for is_kept, alpha in zip(kept, alphas, strict=True):
            selections = selector.select_each(observation, layout, counts, alpha)
            for row, selection in zip(is_kept, selections, strict=True):
                row[selection.cells] = True
                merges |= selection.rows is not None
    except Exception as error:
        if name in SELECTORS:
            raise
        raise HiredConfigError(
            "hired_selector",
            name,
            f"it raises {type(error).__name__} on this image: {error}",
        ) from error
    about = (selector_class(name).__doc__ or "").partition("\n")[0]
    return Choices(name, about, uses_alpha, merges, kept)


def usable_selector(name: str, inspection: Inspection, hired: HiredConfig) -> Selector:
    """The method as an engine would have it.

    Raises:
        HiredConfigError: an engine would refuse it.
    """
    problem = needs_problem(name, tower_type(inspection.hf_config), hired.attention)
    selector = make_selector(name, hired.method if name == hired.selector else ())
    if problem is None and name not in SELECTORS:
        broken = probe_problem(selector, [inspection.layout], hired.alpha)
        if broken is not None:
            problem = ("hired_selector", name, broken)
    if problem is not None:
        raise HiredConfigError(*problem)
    return selector
