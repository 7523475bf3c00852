"""Selection methods of other packages: listed, probed, guarded.

`tests/e2e/test_methods.py` installs and serves one.
"""

import re
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

import vllm_hired.selectors as registry
from tests.conftest import expect_refusal
from tests.engine import noise_image
from tests.front_end import FrontEnd
from vllm_hired.config import HiredConfig
from vllm_hired.layouts import Layout
from vllm_hired.selectors.base import Selection, Selector
from vllm_hired.selectors.probe import GuardedSelector, made_up_observation
from vllm_hired.selectors.uniform import UniformSelector
from vllm_hired.tools.cli import main
from vllm_hired.tools.inspect.inspection import inspect_image
from vllm_hired.tools.inspect.page import page_data
from vllm_hired.towers.observation import Observation

EXAMPLE = Path(__file__).parents[1] / "examples/custom_selector"
HALF = Fraction(1, 2)


class GoodSelector(UniformSelector):
    """As `uniform`, under another name."""

    version = 3


class WrongCount(UniformSelector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        cells = super().select(observation, layout, kept, alpha).cells
        return Selection(cells[:-1])


class WrongType(UniformSelector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        return Selection(super().select(observation, layout, kept, alpha).cells.int())


class OutOfRange(UniformSelector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        cells = super().select(observation, layout, kept, alpha).cells
        return Selection(cells + layout.num_cells)


class Repeats(UniformSelector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        cells = super().select(observation, layout, kept, alpha).cells
        return Selection(cells[:1].expand(kept))


class WrongRows(UniformSelector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        cells = super().select(observation, layout, kept, alpha).cells
        return Selection(cells, torch.zeros(kept, 3))


class TooFewRows(UniformSelector):
    """Without a look at features, which tell how wide a row is."""

    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        cells = super().select(observation, layout, kept, alpha).cells
        return Selection(cells, torch.zeros(kept - 1, 3))


class Float32Rows(UniformSelector):
    """As a method that computes in float32, and leaves it at that."""

    needs = frozenset({"features"})

    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        cells = super().select(observation, layout, kept, alpha).cells
        return Selection(cells, observation.features.flatten(0, 1)[cells].float())


class OutOfMemory(Selector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        raise torch.OutOfMemoryError("on purpose")


class Raises(Selector):
    def select(self, observation: Any, layout: Any, kept: int, alpha: Any) -> Selection:
        raise ZeroDivisionError("on purpose")


BROKEN: dict[str, tuple[Any, str]] = {
    "too few": (WrongCount, r"it gives cells of shape \(\d+,\) and torch.int64, not"),
    "another type": (WrongType, "and torch.int32, not"),
    "out of range": (OutOfRange, "a cell lies outside 0 to"),
    "the same cell": (Repeats, "a cell comes twice"),
    "rows of another width": (WrongRows, r"its rows are \(\d+, 3\), not"),
    "an exception": (Raises, "it raises ZeroDivisionError: on purpose"),
    "no selector": (dict, "is no subclass of vllm_hired.selectors.base.Selector"),
    "no such name": (None, "cannot be imported: AttributeError"),
}

Provide = Callable[[Any], None]


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Provide:
    """Makes a class the method `theirs` of another package."""

    def add(provided: Any) -> None:
        module = ModuleType("their_package")
        if provided is not None:
            module.__dict__["Theirs"] = provided
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entry = EntryPoint("theirs", "their_package:Theirs", registry.GROUP)
        monkeypatch.setattr(registry, "third_party", lambda: {"theirs": entry})

    return add


def test_a_method_is_named_with_its_version_in_hashes(
    checkpoint: Path, provide: Provide
) -> None:
    provide(GoodSelector)
    image = noise_image(100, 80)
    hashes = []
    for version in (3, 4):
        GoodSelector.version = version
        front_end = FrontEnd(
            checkpoint, hf_overrides={"hired_budget": 0.2, "hired_selector": "theirs"}
        )
        inputs = front_end(image)
        assert front_end.placeholders(inputs) == [front_end.expected(image, "0.2")]
        hashes.append(inputs["mm_hashes"]["image"][0])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_is_refused_by_name(
    checkpoint: Path, provide: Provide, name: str
) -> None:
    """At start-up, on a layout of the model."""
    method, said = BROKEN[name]
    provide(method)
    overrides = {"hired_budget": 0.2, "hired_selector": "theirs"}
    with expect_refusal(match=f"hired_selector='theirs' is not allowed: .*{said}"):
        FrontEnd(checkpoint, hf_overrides=overrides)


@pytest.mark.parametrize("method", [WrongCount, OutOfRange, Raises])
def test_whatever_a_method_does_the_count_holds(method: type[Selector]) -> None:
    """On an image that the probe did not foresee."""
    layout = Layout(4, 6, 2, 1, 0, 1, 8, 4)
    for kept in (1, 10, layout.num_selectable):
        selector = GuardedSelector(method())
        selection = selector.select(made_up_observation(layout), layout, kept, HALF)
        assert selection.cells.shape == (kept,)
        assert int(selection.cells.min()) >= 0
        assert int(selection.cells.max()) < layout.num_cells


def test_rows_are_counted_where_features_are_not_seen() -> None:
    layout = Layout(4, 6, 2, 1, 0, 1, 8, 4)
    observation = Observation(made_up_observation(layout).device, {})
    selection = GuardedSelector(TooFewRows()).select(observation, layout, 10, HALF)
    assert selection.rows is None
    assert selection.cells.shape == (10,)


def test_ranks_do_not_part_where_one_runs_out_of_memory() -> None:
    layout = Layout(4, 6, 2, 1, 0, 1, 8, 4)
    with pytest.raises(torch.OutOfMemoryError):
        GuardedSelector(OutOfMemory()).select(
            made_up_observation(layout), layout, 10, HALF
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_have_the_models_dtype(dtype: torch.dtype) -> None:
    """No other fits the projector."""
    layout = Layout(4, 6, 2, 1, 0, 1, 8, 4)
    made_up = made_up_observation(layout)
    features = made_up.features.to(dtype)
    observation = Observation(made_up.device, {"features": features})
    selector = GuardedSelector(Float32Rows())
    selection = selector.select(observation, layout, 10, HALF)
    assert selection.rows is not None
    assert selection.rows.dtype == dtype
    assert torch.equal(selection.rows, features.flatten(0, 1)[selection.cells])


def test_settings_of_a_method_belong_to_it(
    checkpoint: Path, provide: Provide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    provide(import_module("vllm_hired_centre").CentreSelector)
    base = {"hired_budget": 0.2, "hired_selector": "theirs"}
    for value, said in (
        (100, r"hired_theirs_stretch=100 is not allowed: a number in \[0.1, 10\]"),
        (True, "hired_theirs_stretch=True is not allowed"),
        ("wide", "hired_theirs_stretch='wide' is not allowed"),
    ):
        with expect_refusal(match=said):
            FrontEnd(checkpoint, hf_overrides=base | {"hired_theirs_stretch": value})
    with expect_refusal(match="it is a setting of hired_selector=theirs, not of hired"):
        FrontEnd(
            checkpoint, hf_overrides={"hired_budget": 0.2, "hired_theirs_stretch": 2}
        )
    hashes = {
        FrontEnd(checkpoint, hf_overrides=base | own)(noise_image(60, 60))["mm_hashes"][
            "image"
        ][0]
        for own in ({}, {"hired_theirs_stretch": 1.0}, {"hired_theirs_stretch": 2})
    }
    assert len(hashes) == 2


def test_the_command_lists_it(
    checkpoint: Path, provide: Provide, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(GoodSelector)
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    assert "theirs" in capsys.readouterr().out


def page_of(checkpoint: Path, **settings: object) -> dict[str, Any]:
    settings = {"hired_budget": 0.2} | settings
    inspection = inspect_image(str(checkpoint), "", noise_image(100, 80), settings)
    hired = HiredConfig.from_hf_config(inspection.configured(settings))
    return page_data(inspection, [hired])


def test_the_page_of_inspect_shows_it(checkpoint: Path, provide: Provide) -> None:
    provide(GoodSelector)
    *ours, theirs = page_of(checkpoint)["methods"]
    (uniform,) = (method for method in ours if method["name"] == "uniform")
    assert theirs["name"] == "theirs"
    assert theirs["about"] == "As `uniform`, under another name."
    assert theirs["kept"] == uniform["kept"]


class RaisesOnImages(UniformSelector):
    """Where features are not those that the probe makes up."""

    needs = frozenset({"features"})

    def token_scores(self, observation: Any, layout: Any) -> torch.Tensor:
        if observation.features.shape[-1] != 32:
            raise ZeroDivisionError("on purpose")
        return super().token_scores(observation, layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no such name", "too few", "on images"])
def test_the_page_of_inspect_leaves_a_broken_one_out(
    checkpoint: Path, provide: Provide, name: str
) -> None:
    broken = BROKEN | {"on images": (RaisesOnImages, "it raises ZeroDivisionError on")}
    provided, said = broken[name]
    provide(provided)
    data = page_of(checkpoint)
    assert [method["name"] for method in data["methods"]] == [*registry.SELECTORS]
    (line,) = data["left_out"]
    assert re.search(f"^theirs: .*{said}", line)
    with expect_refusal(match=said):
        page_of(checkpoint, hired_selector="theirs")


def test_a_request_under_a_broken_method_is_refused(
    checkpoint: Path, provide: Provide
) -> None:
    """The method comes with the engine; a request only sets a budget."""
    provide(GoodSelector)
    front_end = FrontEnd(
        checkpoint, hf_overrides={"hired_budget": 0.2, "hired_selector": "theirs"}
    )
    with pytest.raises(VLLMValidationError, match="hired_selector is not a setting"):
        front_end(noise_image(60, 60), hired_selector="hired")
