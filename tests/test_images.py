"""How the tools read image files, against vLLM's own loading of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageSequence
from vllm.multimodal.parse import MultiModalDataParser

from tests.front_end import served
from tests.pictures import PICTURES, REFUSED, huge_png
from vllm_hired.tools.images import (
    ImageFileError,
    image_endings,
    image_files,
    open_image,
    read_image,
    upright_size,
)

TO_THE_RIGHT = Image.Transpose.ROTATE_270


def handed_over(image: Image.Image) -> Image.Image:
    """As an offline request's PIL image comes out of the parser."""
    items: Any = MultiModalDataParser().parse_mm_data({"image": image})
    parsed: Image.Image = items["image"].get(0)
    return parsed


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_read_as_the_engine_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(PICTURES[name]())
    image = read_image(path)
    for engine in (served(path).media, handed_over(Image.open(path))):
        assert engine.mode == image.mode == "RGB"
        assert np.array_equal(np.asarray(engine), np.asarray(image))

    def refuse(image: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    # Every reader passes here when it decodes; that of icons does so on opening.
    if path.suffix != ".ico":
        monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", refuse)
        with pytest.raises(ImageFileError, match="decoded"):
            read_image(path)
    assert upright_size(path) == image.size


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("alpha.png", lambda image: image.convert("RGB")),
        ("orientation 6.jpg", lambda image: image.transpose(TO_THE_RIGHT)),
        ("animated.gif", lambda image: ImageSequence.Iterator(image)[1]),
    ],
    ids=["alpha dropped", "turned already", "second frame"],
)
def test_a_pil_image_is_what_the_program_made_of_it(
    tmp_path: Path, name: str, make: Callable[[Image.Image], Image.Image]
) -> None:
    """Where it differs from the file, as the documentation says."""
    path = tmp_path / name
    path.write_bytes(PICTURES[name]())
    engine = handed_over(make(Image.open(path)))
    assert not np.array_equal(np.asarray(engine), np.asarray(read_image(path)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_server_refuses_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(REFUSED[name]())
    with pytest.raises(ImageFileError, match=f"{name} is not an image"):
        read_image(path)
    with pytest.raises((ValueError, Image.DecompressionBombError)):
        served(path)


def test_a_large_picture_is_no_bomb(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Pillow warns of it; vLLM takes up to 178,956,970 pixels."""
    path = tmp_path / "large.png"
    path.write_bytes(huge_png(12000, 10000))
    assert upright_size(path) == (12000, 10000)
    assert not recwarn


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.png", "No such file"),
        ("dangling.png", "No such file"),
        ("itself.png", "Too many levels of symbolic links"),
        ("folder.png", "it is not a regular file"),
        ("pipe.png", "it is not a regular file"),
        ("empty.png", "it is empty"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    with (
        pytest.raises(ImageFileError, match=f"{name} is not .*: {said}"),
        open_image(tmp_path / name),
    ):
        pass


def test_folders_within_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are followed, in circles too; each folder is entered once."""
    images = ["a.png", "b.d/c.JPEG", "b.d/e.png/f.webp", "linked/g.mpo", "locked/h.png"]
    others = ["notes.txt", "scan.pdf", ".hidden.png", ".cache/i.png", "bare/j"]
    for name in images + others:
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).touch()
    top = tmp_path / "top"
    (top / "linked").rename(tmp_path / "elsewhere")
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (top / "b.d" / "circle").symlink_to(top)
    # The superuser can read every folder.
    scandir = os.scandir

    def guarded(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    skipped: list[str] = []
    found = [
        str(path.relative_to(tmp_path))
        for path in image_files([top, top / "b.d", top / "a.png"], skipped.append)
    ]
    assert found == [
        "top/a.png",
        "top/b.d/c.JPEG",
        "top/b.d/e.png/f.webp",
        "top/linked/g.mpo",
        "top/a.png",
    ]
    assert skipped == [f"{top / 'locked'}: Permission denied"]
    assert [*image_files([top / "bare"], skipped.append)] == []
    assert skipped[1:] == [f"{top / 'bare'}: no image in this folder or below it"]


def test_endings_are_those_of_readable_formats() -> None:
    endings = image_endings()
    assert {".jpg", ".png", ".mpo", ".avif", ".tif"} <= endings
    assert endings.isdisjoint({".eps", ".pdf", ".h5", ".mpg"})
