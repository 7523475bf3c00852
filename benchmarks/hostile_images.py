"""Images and addresses of images that a server may be sent: odd, broken, none at all.

All are drawn from a random generator that the caller seeds.
"""

import base64
import io
import struct
import zlib
from random import Random

import numpy as np
from PIL import Image

from benchmarks.server import as_url

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "GIF": ("P", "L", "RGB"),
    "BMP": ("1", "L", "RGB"),
    "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "LAB"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("L", "RGB"),
    "ICO": ("RGBA",),
}
"""PIL's formats, and the modes in which each can be written."""

SIDES = (1, 2, 3, 5, 13, 14, 15, 27, 28, 29, 55, 57)
LONG_SIDES = (111, 113, 700, 1000, 3000, 8191, 20000)

BAD_URLS = (
    "",
    " ",
    "image",
    "data:",
    "data:,",
    "data:image/png;base64",
    "data:image/png;base64,",
    "data:image/png;base64,@@@@",
    "data:image/png;base64,AAA",
    "data:image/png,plain",
    "data:text/html;base64,PGI+",
    "data:application/json;base64,e30=",
    "data:image/svg+xml;base64,"
    + base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode(),
    "file:///etc/passwd",
    "file:///dev/zero",
    "ftp://127.0.0.1/a.png",
    "http://127.0.0.1:1/a.png",
    "http://[::1",
    "http://",
    "https://127.0.0.1:1",
    "javascript:alert(1)",
    "//127.0.0.1/a.png",
    "\u0000",
    "🖼",
)


def noise(rng: Random, width: int, height: int) -> Image.Image:
    """Coarse noise, so that patches differ."""
    cells = np.random.default_rng(rng.randrange(2**32)).integers(
        0, 256, (max(height // 9, 1), max(width // 9, 1), 3)
    )
    return Image.fromarray(cells.astype(np.uint8)).resize((width, height))


def ordinary(rng: Random) -> str:
    """An image that any server should answer."""
    return as_url(noise(rng, rng.randrange(40, 400), rng.randrange(40, 400)))


def extreme(rng: Random) -> str:
    """An image much longer than wide, or tiny."""
    sides = [rng.choice(SIDES), rng.choice((*SIDES, *LONG_SIDES))]
    rng.shuffle(sides)
    return as_url(noise(rng, *sides))


def odd(rng: Random) -> str:
    """A valid image in a format or mode that is seldom sent."""
    kind = rng.choice([*FORMATS])
    image = noise(rng, rng.randrange(20, 300), rng.randrange(20, 300))
    image = _in_mode(image, rng.choice(FORMATS[kind]))
    options: dict[str, object] = {}
    if kind == "GIF" and rng.random() < 0.5:
        frames = [noise(rng, *image.size) for _ in range(3)]
        options = {"save_all": True, "append_images": frames}
    if kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(10)  # the orientation: 1 to 8 mean something
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _address(buffer.getvalue(), f"image/{kind.lower()}")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("I;16", "I"):
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(grey if mode == "I;16" else grey.astype(np.int32))
    if mode == "LAB":
        return Image.new("LAB", image.size, (50, 10, 200))
    return image.convert(mode)


def broken(rng: Random) -> str:
    """What calls itself an image and is none, or only the beginning of one."""
    image = noise(rng, rng.randrange(20, 300), rng.randrange(20, 300))
    buffer = io.BytesIO()
    image.save(buffer, rng.choice(("PNG", "JPEG", "WEBP", "GIF")))
    data = bytearray(buffer.getvalue())
    match rng.randrange(5):
        case 0:
            data = data[: rng.randrange(len(data))]
        case 1:
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            data = bytearray(rng.randbytes(rng.randrange(200)))
        case 3:
            data += rng.randbytes(100)
        case _:
            sides = (0, 1, 20_000, 60_000, 2**31 - 1)
            data = bytearray(_png_that_claims(rng.choice(sides), rng.choice(sides)))
    return _address(bytes(data), "image/png")


def _png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header is in order and whose pixels are not there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def _address(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64," + base64.b64encode(data).decode()
