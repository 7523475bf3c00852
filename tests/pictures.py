"""Image files of many kinds, and files that are no images, for what reads them."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tests.engine import noise_image

SIZE = (75, 40)

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/'
    b'02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    b' tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data.tobytes()


def picture(mode: str, seed: int = 0) -> Image.Image:
    """Smooth noise; where the mode has transparency, from clear to opaque."""
    image = noise_image(*SIZE, seed)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(SIZE))
    if mode == "I;16":
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 251
        return Image.fromarray(levels)
    return image.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def encode(image: Image.Image, ending: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, ending, **options)
    return buffer.getvalue()


def saved(mode: str, ending: str, **options: Any) -> bytes:
    return encode(picture(mode), ending, **options)


def frames(mode: str, ending: str, **options: Any) -> bytes:
    """Two pictures that differ."""
    first, second = (picture(mode, seed) for seed in (1, 2))
    return encode(first, ending, save_all=True, append_images=[second], **options)


def exif_behind_pixels(png: bytes) -> bytes:
    end = png.rindex(b"IEND") - 4
    # Without the "Exif\0\0" that JPEG has in front.
    return png[:end] + chunk(b"eXIf", exif(6)[6:]) + png[end:]


def sixteen_bit_png(channels: int) -> bytes:
    """Truecolour, with alpha where there are four channels; Pillow writes none."""
    levels = np.asarray(picture("RGBA"))[:, :, :channels].astype(">u2") * 251
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2 if channels == 3 else 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def huge_png(width: int, height: int) -> bytes:
    """Its header alone, and no pixels."""
    png = sixteen_bit_png(3)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png[:8] + chunk(b"IHDR", header) + png[33:]


PICTURES: dict[str, Callable[[], bytes]] = {
    **{
        f"orientation {i}.jpg": partial(saved, "RGB", "JPEG", exif=exif(i))
        for i in range(1, 9)
    },
    "damaged exif.jpg": partial(saved, "RGB", "JPEG", exif=exif(6)[:9]),
    "xmp.jpg": partial(saved, "RGB", "JPEG", xmp=XMP),
    "phone.mpo": partial(frames, "RGB", "MPO", exif=exif(6)),
    "exif.png": partial(saved, "RGB", "PNG", exif=exif(6)),
    "exif and alpha.png": partial(saved, "RGBA", "PNG", exif=exif(8)),
    "exif behind pixels.png": lambda: exif_behind_pixels(saved("RGB", "PNG")),
    "exif behind frames.png": lambda: exif_behind_pixels(frames("RGBA", "PNG")),
    "exif.webp": partial(saved, "RGB", "WEBP", exif=exif(5)),
    "exif.avif": partial(saved, "RGB", "AVIF", exif=exif(6)),
    "turned.tiff": partial(saved, "RGB", "TIFF", tiffinfo={274: 6}),
    "turned, lzw.tiff": partial(
        saved, "RGB", "TIFF", tiffinfo={274: 8}, compression="tiff_lzw"
    ),
    "xmp.tiff": partial(saved, "RGB", "TIFF", tiffinfo={700: XMP}),
    "alpha.png": partial(saved, "RGBA", "PNG"),
    "alpha.webp": partial(saved, "RGBA", "WEBP", lossless=True),
    "grey with alpha.png": partial(saved, "LA", "PNG"),
    "grey with a clear level.png": partial(saved, "L", "PNG", transparency=90),
    "palette.png": partial(saved, "P", "PNG"),
    "palette with alpha.png": partial(
        saved, "P", "PNG", transparency=bytes(range(0, 256, 2))
    ),
    "palette with a clear colour.gif": partial(saved, "P", "GIF", transparency=20),
    "a clear colour.png": partial(saved, "RGB", "PNG", transparency=(9, 9, 9)),
    "bilevel.png": partial(saved, "1", "PNG"),
    "16 bits, grey.png": partial(saved, "I;16", "PNG"),
    "16 bits, grey.tiff": partial(saved, "I;16", "TIFF"),
    "16 bits, colour.png": partial(sixteen_bit_png, 3),
    "16 bits, alpha.png": partial(sixteen_bit_png, 4),
    "floats.tiff": partial(saved, "F", "TIFF"),
    "cmyk.jpg": partial(saved, "CMYK", "JPEG"),
    "cmyk, turned.jpg": partial(saved, "CMYK", "JPEG", exif=exif(6)),
    "animated.gif": partial(frames, "RGBA", "GIF"),
    "animated.png": partial(frames, "RGBA", "PNG"),
    "animated with its own cover.png": partial(
        frames, "RGBA", "PNG", default_image=True
    ),
    "animated.webp": partial(frames, "RGBA", "WEBP", lossless=True),
    "icon.ico": lambda: encode(picture("RGBA").resize((32, 32)), "ICO"),
}
"""Files that vLLM's server reads, by name."""


REFUSED: dict[str, Callable[[], bytes]] = {
    "text.png": lambda: b"no image",
    "empty.png": lambda: b"",
    "cut.jpg": lambda: saved("RGB", "JPEG")[:900],
    "cut.png": lambda: saved("RGB", "PNG")[:900],
    "bomb.png": partial(huge_png, 20000, 20000),
    "drawing.eps": partial(saved, "RGB", "EPS"),
}
"""Files that it refuses."""


def write_all(folder: Path, files: dict[str, Callable[[], bytes]]) -> list[Path]:
    paths = [folder / name for name in files]
    for path in paths:
        path.write_bytes(files[path.name]())
    return paths
