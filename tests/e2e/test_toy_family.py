"""A new family, of two files and two rows, as docs/extending.md says; see
`tests/toy_family`."""

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from transformers import AutoConfig
from vllm import LLM

from tests import oracle
from tests.conftest import MakeEngine, WriteCheckpoint
from tests.e2e.test_methods import MAX_TOKENS, SIZES, answer, request, serving
from tests.engine import noise_image
from tests.front_end import FrontEnd, num_kept
from tests.methods.oracles import ORACLES
from tests.methods.reference import TOLERANCE, Images, difference
from tests.reference import Reference
from tests.toy_family.upstream import LlavaPairConfig
from vllm_hired import register
from vllm_hired.engine.models import MODELS
from vllm_hired.layouts import FAMILIES
from vllm_hired.tools.cli import main

METHODS = ("hired", "globalcom2", "divprune", "visionzip")
NAME = "LlavaPairForConditionalGeneration"


@pytest.fixture(scope="module")
def llava_next(make_checkpoint: WriteCheckpoint) -> Path:
    """With one canvas of two tiles: the weights of the toy."""
    return make_checkpoint(pinpoints=((56, 112),))


@pytest.fixture(scope="module")
def pair(llava_next: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of the toy family, while its rows stand."""
    folder = tmp_path_factory.mktemp("pair") / "checkpoint"
    shutil.copytree(llava_next, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": LlavaPairConfig.model_type, "architectures": [NAME]}
    path.write_text(json.dumps(config))
    AutoConfig.register(LlavaPairConfig.model_type, LlavaPairConfig, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, LlavaPairConfig.model_type, "tests.toy_family.layout")
        for name in (NAME, f"Hired{NAME}"):
            patch.setitem(MODELS, name, f"tests.toy_family.model:Hired{NAME}")
        register()
        yield folder


@pytest.fixture(scope="module")
def llm(make_engine: MakeEngine, pair: Path) -> LLM:
    return make_engine(pair, hired_budget=0.3, hired_max_budget=1.0)


@pytest.fixture(scope="module")
def reference(llava_next: Path) -> Reference:
    return Reference(llava_next)


def test_counts(
    pair: Path, reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the front end and of `vllm-hired plan`; without newline tokens."""
    front_end = FrontEnd(pair)
    for size, budget in product([*SIZES, (300, 20)], ("0.1", "0.3", "0.99", "1.0")):
        image = noise_image(*size)
        shape = reference.layout(image)
        whole = shape.stock_tokens - (shape.bottom - shape.top)
        kept = min(oracle.count(shape, budget, None), whole)
        inputs = front_end(image, budget=float(budget))
        assert front_end.placeholders(inputs) == [kept]
        if budget != "1.0":
            assert num_kept(inputs) == [kept]
        named = ("--size", f"{size[0]}x{size[1]}", "--budget", budget)
        assert main(["plan", str(pair), *named, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {row["kept tokens"] for row in rows} == {kept, whole}


@pytest.mark.parametrize(
    ("name", "budget"), [*product(METHODS, ["0.3"]), ("hired", "1.0")]
)
def test_generations(llm: LLM, reference: Reference, name: str, budget: str) -> None:
    """Those of HF's LLaVA-NeXT, fed the oracle's rows of the other layout."""
    images = Images(reference, request("1.0"), is_pair=True)
    with serving(llm, name):
        given = answer(llm, budget)
    rows = images.kept(ORACLES[name], budget, images.seen)
    assert difference(given, images.answer(rows, MAX_TOKENS)) < TOLERANCE
    # Another order of the same rows would be noticed.
    backwards = [own[::-1] for own in rows]
    assert difference(given, images.answer(backwards, MAX_TOKENS)) > 10 * TOLERANCE
