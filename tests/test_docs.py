"""Commands and code in the documentation: whole, in the form that vLLM wants, and the
selector that it teaches to write works."""

import ast
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import test_algorithm
from tests.observations import attended
from vllm_hired.layouts.llava_next import anyres_layout
from vllm_hired.selectors import SELECTORS, make_selector

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "benchmarks", "examples", "checkpoints/llava-next-smol")
    for path in (ROOT / folder).glob("*.md")
)
LITERAL = "vllm serve --model llava-next --hf-overrides hired_budget=0.2"
OFFLINE = "from vllm import LLM"


def code(page: str, language: str, having: str = "") -> list[str]:
    """The page's blocks in a language that contain a text."""
    text = (ROOT / page).read_text()
    blocks = re.findall(
        rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL
    )
    return [block for block in blocks if having in block]


@pytest.mark.parametrize("page", PAGES)
def test_the_model_is_vllm_serves_first_argument(page: str) -> None:
    """The literal line stands once in the README and once among the settings."""
    text = (ROOT / page).read_text()
    expected = [LITERAL] * (page in ("README.md", "docs/settings.md"))
    assert re.findall(r"vllm serve --model[^`\n]*", text) == expected
    for block in code(page, "console"):
        for first in re.findall(r"vllm serve (\S+)", block):
            assert not first.startswith("-"), block


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page in PAGES for block in code(page, "python", "import ")],
)
def test_python_is_whole(page: str, block: str) -> None:
    """All names are imported, and processes that import the file start no engine."""
    subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", "-"],
        input=block,
        text=True,
        check=True,
    )
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.FunctionDef | ast.If):
            continue
        assert "LLM(" not in ast.unparse(statement)


def test_every_python_block_is_whole_or_a_row_of_a_table() -> None:
    for page in PAGES:
        for block in code(page, "python"):
            assert "import " in block or re.fullmatch(r'"\w+": ".*",\n', block), block


def test_tests_that_the_deployment_page_names_exist() -> None:
    page = (ROOT / "docs/deployment.md").read_text()
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", page)
    assert len(named) > 10
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(), (path, test)


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the selector in docs/extending.md, added as the page says."""
    (block,) = code("docs/extending.md", "python", "class LateSelector")
    (row,) = code("docs/extending.md", "python", 'LateSelector",')
    ((name, path),) = ast.literal_eval(f"{{{row}}}").items()
    module = ModuleType(path.partition(":")[0])
    exec(block, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(SELECTORS, name, path)
    return str(name)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 0.0])
def test_the_selector_of_the_page_keeps_exact_counts(
    taught: str, poison: float
) -> None:
    test_algorithm.test_every_selector_keeps_the_exact_count_of_valid_patches(
        taught, poison
    )
    test_algorithm.test_selection_reads_nothing_back_to_the_host(taught)


def test_the_selector_of_the_page_does_what_its_docstring_says(taught: str) -> None:
    layout = anyres_layout(672, 672, test_algorithm.REAL_PINPOINTS, 336, 14)
    final = torch.ones(5, 576)
    final[2] *= 3
    final[4, 500:] = 1.5  # a little more, and these patches first
    scores = attended(torch.rand(5, 576), final)
    chosen = make_selector(taught).select(scores, layout, 576, Fraction(1, 2)).cells
    split = torch.bincount(chosen // 576, minlength=5).tolist()
    # 288 among the tiles in the ratio 576 : 1728 : 576 : 614, largest remainders first.
    assert split == [288, 48, 142, 47, 51]
    assert (chosen[chosen >= 4 * 576] >= 4 * 576 + 500).all()
