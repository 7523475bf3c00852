"""Whether a method can be served: what it needs, and what it gives."""

import logging
from collections.abc import Iterable
from fractions import Fraction

import torch

from vllm_hired.budget import kept_count
from vllm_hired.layouts.base import Layout
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.base import Selection, Selector
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.uniform import UniformSelector
from vllm_hired.towers import TOWERS, Tower
from vllm_hired.towers.observation import Observation, Quantity

# Under "vllm", where the server has set up its handlers.
logger = logging.getLogger(f"vllm.{__name__}")

PROBE_BUDGETS = (Fraction(1, 50), Fraction(1, 5), Fraction(9, 10))


def needs_problem(
    name: str, tower_type: str, attention: str
) -> tuple[str, object, str] | None:
    """What a method needs and a tower does not offer, as the arguments of a
    `HiredConfigError`, or None.

    Args:
        name: of the method.
        tower_type: the HF vision config's `model_type`.
        attention: the value of `hired_attention`.
    """
    if TOWERS[tower_type].has_cls or attention != "cls":
        return None
    if not _looks_at_attention(name, tower_type):
        return None
    others = [
        other for other in SELECTORS if not _looks_at_attention(other, tower_type)
    ]
    allowed = (
        f"it looks at [CLS] attention, and a {tower_type} has no [CLS]; with this "
        f"tower set hired_attention=received as well, or use one of {', '.join(others)}"
    )
    return "hired_selector", name, allowed


def _looks_at_attention(name: str, tower_type: str) -> bool:
    needs = make_selector(name).needs_on(TOWERS[tower_type])
    return bool({"init_attention", "final_attention"} & needs)


def made_up_observation(layout: Layout, seed: int = 0) -> Observation:
    """Random numbers in the place of all that can be observed, in float32."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.num_partitions, layout.cells_per_partition)
    widths: dict[Quantity, tuple[int, ...]] = {
        "init_attention": (),
        "final_attention": (),
        "features": (32,),
        "keys": (8,),
    }
    return Observation(
        torch.device("cpu"),
        {
            name: torch.rand((*shape, *width), generator=generator)
            for name, width in widths.items()
        },
    )


def probe_problem(
    selector: Selector, layouts: Iterable[Layout], alpha: Fraction
) -> str | None:
    """What is wrong with what a method gives on made-up images, or None.

    Args:
        selector: the method.
        layouts: of images of the model.
        alpha: the thumbnail's share.
    """
    for layout in layouts:
        observation = made_up_observation(layout)
        for budget in PROBE_BUDGETS:
            kept = kept_count(layout, budget, None).tokens
            try:
                selection = selector.select(observation, layout, kept, alpha)
                problem = _selection_problem(selection, observation, layout, kept)
            except Exception as error:
                problem = f"it raises {type(error).__name__}: {error}"
            if problem is not None:
                return f"keeping {kept} of {layout.num_selectable} cells, {problem}"
    return None


def _selection_problem(
    selection: Selection, observation: Observation, layout: Layout, kept: int
) -> str | None:
    cells = selection.cells
    if cells.shape != (kept,) or cells.dtype != torch.int64:
        return (
            f"it gives cells of shape {tuple(cells.shape)} and {cells.dtype}, not "
            f"({kept},) and torch.int64"
        )
    if not 0 <= int(cells.min()) <= int(cells.max()) < layout.num_cells:
        return f"a cell lies outside 0 to {layout.num_cells - 1}"
    if not bool(index_tables(layout, cells.device).valid.flatten()[cells].all()):
        return "a cell is padding"
    if len(cells.unique()) < kept:
        return "a cell comes twice"
    width = observation.features.shape[-1]
    if selection.rows is not None and selection.rows.shape != (kept, width):
        return f"its rows are {tuple(selection.rows.shape)}, not ({kept}, {width})"
    return None


class GuardedSelector(Selector):
    """A method of another package: whatever it does, the count holds.

    vLLM's engine ends with an exception in a model's forward. A method that raises or
    gives another count than asked for is replaced by `uniform` for that image. Running
    out of memory is not caught.
    """

    def __init__(self, inner: Selector) -> None:
        self.inner = inner
        self.fallback = UniformSelector()

    def needs_on(self, tower: Tower) -> frozenset[Quantity]:
        return self.inner.needs_on(tower)

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        try:
            selection = self.inner.select(observation, layout, kept, alpha)
            cells, rows = selection.cells, selection.rows
            if cells.shape != (kept,) or (rows is not None and len(rows) != kept):
                raise ValueError(f"it gives {tuple(cells.shape)}, not ({kept},) cells")
            features = observation.quantities.get("features")
            if rows is not None and features is not None:
                shape = (kept, features.shape[-1])
                if rows.shape != shape:
                    raise ValueError(f"it gives rows {tuple(rows.shape)}, not {shape}")
                # Rows that a method computed in float32 would not fit the projector.
                rows = rows.to(features.dtype)
        except torch.OutOfMemoryError:
            # One tensor-parallel rank alone may, and would keep other cells.
            raise
        except Exception:
            name = type(self.inner).__name__
            logger.exception("%s failed on an image; uniform takes its place", name)
            return self.fallback.select(observation, layout, kept, alpha)
        # An index out of range would end the process on a GPU.
        return Selection(cells.long().clamp(0, layout.num_cells - 1), rows)
