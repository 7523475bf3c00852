"""The wheel and the sdist: complete, well described, installable elsewhere."""

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_of(*folders: str) -> set[str]:
    """Their files, from the root of the checkout."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """(sdist, wheel), the wheel built from the sdist, as pip would."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_both_pass_twine_and_hold_the_whole_package(
    distributions: Sequence[Path],
) -> None:
    sdist, wheel = distributions
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    files = files_of("vllm_hired")
    assert {
        "vllm_hired/py.typed",
        "vllm_hired/tools/inspect/page_files/page.html",
    } <= files
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert files <= names
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)
    with tarfile.open(sdist) as source:
        sources = {name.partition("/")[2] for name in source.getnames()}
    packages = ("benchmarks", "demo", "random_checkpoints", "tests", "training")
    folders = ("checkpoints", "docs", "examples", "tools")
    assert files | files_of(*packages, *folders) <= sources
    for name in ("README.md", "LICENSE", "setup.py", "Makefile", "Containerfile"):
        assert name in sources
    assert {"mkdocs.yml", "CITATION.cff", "SECURITY.md"} <= sources
    assert ".pre-commit-config.yaml" in sources


def test_the_sdist_passes_its_own_tests(
    distributions: Sequence[Path], tmp_path: Path
) -> None:
    """All of them are collected; those run that read pages, results and checkpoints."""
    with tarfile.open(distributions[0]) as source:
        source.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    part = "readme or docs or find_python or config or selectors or chat"
    # Before the checkout, for processes that the tests start.
    command = ["env", f"PYTHONPATH={folder}", sys.executable, "-m", "pytest"]
    said = run(*command, "-v", "-m", "not slow", "-k", part, cwd=folder)
    for tests in ("test_readme", "test_docs", "test_find_python", "test_chat_template"):
        assert f"tests/{tests}.py::" in said
    assert re.search(r" \d{3,} passed, \d{3,} deselected", said), said


def test_the_wheel_installs_and_registers_elsewhere(
    distributions: Sequence[Path], checkpoint: Path, tmp_path: Path
) -> None:
    """In a clean environment that has vLLM; its dependencies are taken as they are."""
    run(sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site = run(
        python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path
    ).strip()
    here = run(
        sys.executable, "-c", "import site; print(site.getsitepackages()[0])"
    ).strip()
    (Path(site) / "vllm.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    # pip would take the editable install of this checkout for the one asked for.
    run(
        python,
        *["-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed"],
        distributions[1],
        cwd=tmp_path,
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import vllm_hired, vllm.plugins\n"
        "assert vllm_hired.__file__.startswith(sys.argv[1]), vllm_hired.__file__\n"
        "vllm.plugins.load_general_plugins()\n"
        "from vllm import ModelRegistry\n"
        "assert 'HiredLlavaNextForConditionalGeneration' in ModelRegistry.models\n"
        "from importlib.metadata import metadata, requires\n"
        "found = metadata('vllm-hired')\n"
        "assert found['Version'] == vllm_hired.__version__\n"
        "assert found['License-Expression'] == 'Apache-2.0'\n"
        "need = {r for r in requires('vllm-hired') if 'extra' not in r}\n"
        "assert need == {'vllm>=0.31', 'torch', 'transformers'}, need\n"
        "print('registered')\n"
    )
    assert run(python, "-c", code, site, cwd=tmp_path).endswith("registered\n")
    options = ["--size", "112x112", "--budget", "0.2", "--csv"]
    command = python.with_name("vllm-hired")
    plan = run(command, "plan", checkpoint, *options, cwd=tmp_path)
    assert plan.splitlines()[2].startswith("112x112,2x2,0.2,336,64,")
