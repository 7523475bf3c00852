"""Image files as vLLM's server reads them, found and opened without vLLM.

The rules are those of vLLM's `ImageMediaIO.load_bytes`
(`vllm/multimodal/media/image.py`), which loads whatever comes over HTTP: pictures are
turned upright as their metadata says, transparency is painted on white, and of an
animation the first frame counts.
"""

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

REFUSED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""What Pillow may open and vLLM's `open_image` does not: readers that need another
program to decode."""

PNG_PIXELS = {b"IDAT", b"fdAT", b"acTL", b"fcTL"}
"""Chunks of a PNG that hold its pixels or order its frames."""

PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


class ImageFileError(ValueError):
    """A file that holds no image that vLLM's server could read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not an image that can be read: {reason}")


def image_files(paths: Iterable[Path], skip: Callable[[str], None]) -> Iterator[Path]:
    """Files as given, and the images in folders and in what lies below them, by name.

    In a folder a file counts as an image by its ending, and hidden files and folders
    are passed over. Links are followed. A folder is entered once, however many ways
    lead to it, so that links in a circle end.

    Args:
        paths: of files and folders.
        skip: is told of each folder that cannot be read or has no image.
    """
    endings = image_endings()
    seen: set[tuple[int, int]] = set()

    def is_new(folder: str) -> bool:
        try:
            status = os.stat(folder)
        except OSError:
            # Gone since it was listed, or locked: `os.walk` will report it.
            return True
        identity = (status.st_dev, status.st_ino)
        is_new = identity not in seen
        seen.add(identity)
        return is_new

    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        if not is_new(str(path)):
            continue
        errors: list[OSError] = []
        found = 0
        walk = os.walk(path, onerror=errors.append, followlinks=True)
        for root, folders, names in walk:
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and is_new(os.path.join(root, name))
            )
            for name in sorted(names):
                ending = os.path.splitext(name)[1].lower()
                if ending in endings and not name.startswith("."):
                    found += 1
                    yield Path(root, name)
        for error in errors:
            skip(f"{error.filename}: {error.strerror}")
        if not found and not errors:
            skip(f"{path}: no image in this folder or below it")


def image_endings() -> set[str]:
    """Lower-case file endings of the formats that vLLM reads, dots included."""
    # Multi-picture files, as phones make them, are opened by the reader of JPEG.
    formats = {*image_formats(), "MPO"}
    known = Image.registered_extensions()
    return {ending for ending, name in known.items() if name in formats}


def image_formats() -> list[str]:
    """Pillow's names of the formats that vLLM reads, in the order in which it tries."""
    Image.init()
    return sorted({*Image.OPEN} - REFUSED_FORMATS)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The image in a file, not decoded yet. Pillow's warnings are not shown.

    Raises:
        ImageFileError: no such image, or one that turns out damaged within the block.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for ever.
            raise ImageFileError(path, "it is not a regular file")
        if status.st_size == 0:
            raise ImageFileError(path, "it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=image_formats()) as image:
                yield image
    except ImageFileError:
        raise
    except UnidentifiedImageError as error:
        reason = "it is damaged, or of no format that vLLM reads"
        raise ImageFileError(path, reason) from error
    # Pillow's readers meet damage with errors of many kinds.
    except Exception as error:
        strerror = getattr(error, "strerror", None)
        reason = strerror or str(error) or type(error).__name__
        raise ImageFileError(path, reason) from error


def read_image(path: Path) -> Image.Image:
    """The whole image in RGB, as vLLM's server makes it of the file's bytes.

    Raises:
        ImageFileError: no image, or not all of it.
    """
    with open_image(path) as image:
        picture = upright(image)
        # `upright` passes over damaged pixels as well as damaged metadata.
        picture.load()
        return as_rgb(picture)


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF or XMP orientation says; as stored where that is unreadable.

    vLLM's `normalize_image`.
    """
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def as_rgb(image: Image.Image) -> Image.Image:
    """In RGB, transparency painted on white.

    vLLM's `convert_image_mode`. A picture in RGB is left as it is, even if it names one
    of its colours as transparent.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of what `read_image` gives, from the header alone.

    Raises:
        ImageFileError: no image. Damaged pixels are not noticed.
    """
    with open_image(path) as image:
        width, height = image.size
        # Two pixels with the same metadata turn as the picture would.
        stand_in = Image.new("1", (2, 1))
        stand_in.info = metadata(image, path)
        is_turned = upright(stand_in).size == (1, 2)
    return (height, width) if is_turned else (width, height)


def metadata(image: Image.Image, path: Path) -> dict[Any, Any]:
    """What says how an opened image is turned, beyond what its size says already."""
    # Pillow states the size of a TIFF as it is once its own tag has been obeyed.
    if ExifTags.Base.Orientation in getattr(image, "tag_v2", {}):
        return {}
    if image.format == "PNG":
        # EXIF may follow the pixels, where Pillow finds it when it decodes.
        with suppress(Exception), path.open("rb") as file:
            header = io.BytesIO(png_without_pixels(file))
            with Image.open(header, formats=["PNG"]) as rest:
                return dict(rest.info)
    return dict(image.info)


def png_without_pixels(file: BinaryIO) -> bytes:
    """A PNG of the same metadata, up to the second frame where there is one."""
    kept = [file.read(8)]
    seen: set[bytes] = set()
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        is_second_frame = kind == b"fcTL" and {b"acTL", b"IDAT"} <= seen
        if kind == b"IEND" or is_second_frame:
            break
        seen.add(kind)
        if kind in PNG_PIXELS:
            file.seek(length + 4, os.SEEK_CUR)
        else:
            kept.append(head + file.read(length + 4))
    return b"".join([*kept, PNG_END])
