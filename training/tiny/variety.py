"""Training sees 12 photographs and 1,437 glyphs: what makes more of them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Generator = np.random.Generator


def recolour(rng: Generator, image: Image.Image) -> Image.Image:
    """RGB in another order, each brighter or darker."""
    bands = np.asarray(image)[:, :, rng.permutation(3)] / 255
    bands = bands ** rng.uniform(0.5, 2.0, 3)
    return Image.fromarray((bands * 255).round().astype(np.uint8))


def clutter(rng: Generator, image: Image.Image, photos: Sequence[Image.Image]) -> None:
    """Pastes what is no digit: pieces of other photographs, and empty cards."""
    for _ in range(int(rng.integers(0, 7))):
        width, height = (int(side) for side in rng.integers(8, 40, 2))
        left = int(rng.integers(0, image.width - width))
        top = int(rng.integers(0, image.height - height))
        if rng.random() < 0.7:
            photo = photos[int(rng.integers(len(photos)))]
            x = int(rng.integers(0, photo.width - 2 * width))
            y = int(rng.integers(0, photo.height - 2 * height))
            piece = photo.crop((x, y, x + 2 * width, y + 2 * height))
            piece = recolour(rng, piece.resize((width, height)))
        else:
            red, green, blue = (int(value) for value in rng.integers(120, 256, 3))
            piece = Image.new("RGB", (width, height), (red, green, blue))
        if rng.random() < 0.5:
            edge = (0, 0, width - 1, height - 1)
            ImageDraw.Draw(piece).rectangle(edge, outline=(120, 120, 120))
        image.paste(piece, (left, top))


def lean(rng: Generator, ink: Image.Image) -> Image.Image:
    """The glyph turned, stretched and sheared a little, as another writer might."""
    angle = rng.uniform(-0.2, 0.2)
    stretch = rng.uniform(0.85, 1.15, 2)
    turned = np.array([[1.0, -angle], [angle + rng.uniform(-0.15, 0.15), 1.0]])
    turned = turned / stretch
    centre = (ink.width - 1) / 2
    shift = centre - turned @ (centre, centre)
    rows = np.column_stack((turned, shift)).flatten().tolist()
    way = Image.Transform.AFFINE
    return ink.transform(ink.size, way, rows, Image.Resampling.BICUBIC, fillcolor=255)


def warp(rng: Generator, ink: Image.Image) -> Image.Image:
    """The glyph's corners pulled each its own way, its strokes thinner or thicker."""
    size = ink.width
    corners = np.array([0, 0, 0, size, size, size, size, 0])
    corners = corners + size * rng.uniform(-0.15, 0.15, 8)
    way = Image.Transform.QUAD
    ink = ink.transform(
        ink.size, way, corners.tolist(), Image.Resampling.BICUBIC, fillcolor=255
    )
    power = rng.uniform(0.6, 1.6)
    return Image.eval(ink, lambda value: round(255 * (value / 255) ** power))
