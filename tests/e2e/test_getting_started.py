"""The commands of docs/getting-started.md, run as they stand.

Those after `make demo` ask `llava-next-smol`, whose parts come from a package index."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import CHECKPOINT as SMOL
from demo.__main__ import large_scenes
from tests.e2e.server import Server, serving
from tests.engine import noise_image
from tests.test_docs import OFFLINE, ROOT, code
from training.smol.assemble import assemble

PAGE = "docs/getting-started.md"
CURLS = code(PAGE, "console", "curl ")
URL = "http://localhost:8000"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands use of a checkout in which `make demo` has run."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "out").mkdir()
    assemble(folder / SMOL)
    (scene,) = large_scenes(1)
    scene[0].image.save(folder / "out/scene.png")
    return folder


@pytest.fixture(scope="module")
def server(checkout: Path) -> Iterator[Server]:
    (command,) = code(PAGE, "console", ".venv/bin/vllm serve")
    command = command.replace("\\\n", " ")
    with serving(command, checkout, checkout / SMOL) as server:
        yield server


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def answers(server: Server, checkout: Path) -> list[dict[str, Any]]:
    """Of the page's requests by curl, in their order."""
    said = [
        run(["sh", "-c", command.replace(URL, server.url)], checkout)
        for command in CURLS
    ]
    return [json.loads(line) for line in said]


@pytest.mark.matrix
def test_the_answer_is_the_pages(answers: list[dict[str, Any]]) -> None:
    page = (ROOT / PAGE).read_text()
    assert "The answer is `1`." in page
    assert "The answer is the same." in page
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert [text.strip() for text in texts] == ["1", "1"]


@pytest.mark.matrix
def test_the_second_prompt_is_longer_by_what_the_page_says(
    answers: list[dict[str, Any]],
) -> None:
    page = " ".join((ROOT / PAGE).read_text().split())
    assert "is 576 larger, because the picture has 1152 visual tokens in place" in page
    first, second = (answer["usage"]["prompt_tokens"] for answer in answers)
    assert second - first == 576
    assert 576 < first < 640


@pytest.mark.matrix
def test_the_client_for_python(server: Server, checkout: Path) -> None:
    (block,) = code(PAGE, "python", "OpenAI")
    said = run([sys.executable, "-c", block.replace(URL, server.url)], checkout)
    assert said.strip() == "1"


@pytest.mark.matrix
def test_the_examples_client(server: Server, checkout: Path) -> None:
    """Budgets of its own, one of which the server refuses."""
    said = run(
        [
            *(
                sys.executable,
                str(ROOT / "examples/client_budgets.py"),
                "out/scene.png",
            ),
            *("--question", "How many objects are there?", "--url", f"{server.url}/v1"),
            *("--budgets", "0.4", "0.2", "1.5"),
        ],
        checkout,
    )
    first, second, refused = said.splitlines()
    assert first.startswith("0.4: ")
    assert first.endswith("tokens: 1")
    assert int(first.split()[1]) - int(second.split()[1]) == 576
    assert refused.startswith("1.5: refused: ")
    assert "hired_budget=1.5 is not allowed" in refused


def test_offline(tmp_path: Path, checkpoint: Path) -> None:
    """A file of its own, whose engine is another process, as outside of tests. It ends
    well; what random weights say is not looked at."""
    (tmp_path / "llava-next").symlink_to(checkpoint)
    noise_image(120, 110).save(tmp_path / "table.jpg")
    (block,) = code(PAGE, "python", OFFLINE)
    (tmp_path / "ask.py").write_text(block)
    settings = ["VLLM_ENABLE_V1_MULTIPROCESSING=1", "TORCH_COMPILE_DISABLE=1"]
    run(["env", *settings, sys.executable, "ask.py"], tmp_path)
