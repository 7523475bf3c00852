"""Scenes: photographs with objects and signs on them; pages; charts.

Everything follows from a generator of random numbers. Held-out pictures show
photographs and words that no training picture shows; the objects are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from training.smol.assets import font, photographs, sticker, words
from training.smol.objects import LETTERS, NAMES

Generator = np.random.Generator
Array = np.ndarray[tuple[int, ...], np.dtype[np.int16]]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

SCENE_SIZES = ((672, 336), (336, 672), (640, 330), (672, 672), (320, 600))
"""Width and height."""
CROP_SIZE = (336, 336)
"""What one partition shows."""
SIDES = (32, 150)
"""Pixels of an object in a scene, as many at each order of magnitude."""
CROP_SIDES = (36, 120)
MOST_THINGS = 5
LETTER_HEIGHTS = (26, 56)
GAP = 6
PAPER = ((255, 255, 255), (250, 230, 120), (200, 240, 255), (225, 255, 205))
INK = ((10, 10, 10), (120, 0, 0), (0, 0, 120))

FIRST_LETTER = 1 + len(NAMES)
"""Class 0 is background, then come the objects, then the letters."""
NUM_CLASSES = FIRST_LETTER + len(LETTERS)


@dataclass(frozen=True)
class Thing:
    """An object and where it lies."""

    name: str
    box: Box


@dataclass
class Picture:
    """An image and all that is asked about it.

    Attributes:
        kind: "scene", "page" or "chart".
        image: RGB.
        things: objects.
        sign: the word on it, in capitals, or "".
        fields: of a page or a chart: names and what stands there.
        classes: `[height, width]` int16, what each pixel shows.
    """

    kind: str
    image: Image.Image
    things: list[Thing] = field(default_factory=list)
    sign: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    classes: Array = field(init=False)

    def __post_init__(self) -> None:
        self.classes = np.zeros(self.image.size[::-1], dtype=np.int16)


def make_crop(rng: Generator, held_out: bool) -> Picture:
    """A scene that fills one partition, with larger things: what is easy."""
    return _scene(rng, held_out, CROP_SIZE, CROP_SIDES, (2, 7))


def make_scene(rng: Generator, held_out: bool) -> Picture:
    """What the model is to be good at."""
    size = SCENE_SIZES[int(rng.integers(len(SCENE_SIZES)))]
    return _scene(rng, held_out, size, SIDES, (1, MOST_THINGS))


def make_page(rng: Generator, held_out: bool) -> Picture:
    """A form: words, each with a number behind it."""
    size = SCENE_SIZES[int(rng.integers(len(SCENE_SIZES)))]
    picture = Picture("page", Image.new("RGB", size, (250, 250, 245)))
    draw = ImageDraw.Draw(picture.image)
    height = int(rng.integers(22, 30))
    left = int(rng.integers(16, 40))
    lines = int(rng.integers(3, 7))
    names = _some(rng, words(held_out), lines)
    for line, name in enumerate(names):
        top = 24 + line * (size[1] - 48) // lines
        value = str(int(rng.integers(10, 10_000)))
        draw.text((left, top), name, font=font(height), fill=(20, 20, 20))
        draw.text((left + 150, top), value, font=font(height), fill=(20, 20, 20))
        draw.line(
            (left, top + height + 8, size[0] - left, top + height + 8), (160,) * 3
        )
        picture.fields[name] = value
    return picture


def make_chart(rng: Generator, held_out: bool) -> Picture:
    """Bars with letters below them, and lines from 0 to 9 behind them."""
    size = SCENE_SIZES[int(rng.integers(len(SCENE_SIZES)))]
    picture = Picture("chart", Image.new("RGB", size, (255, 255, 255)))
    draw = ImageDraw.Draw(picture.image)
    low, high = size[1] - 50, 30
    step = (low - high) / 9
    for value in range(10):
        y = low - value * step
        draw.line((50, y, size[0] - 10, y), (170, 170, 170))
        draw.text((20, y - 12), str(value), font=font(20), fill=(20, 20, 20))
    names = _some(rng, LETTERS, int(rng.integers(3, 6)))
    width = (size[0] - 70) / len(names)
    for bar, name in enumerate(names):
        value = int(rng.integers(1, 10))
        left = 55 + bar * width
        box = (left, low - value * step, left + 0.6 * width, low)
        draw.rectangle(box, fill=_colour(rng, 40, 220))
        draw.text((left, low + 8), name, font=font(30), fill=(20, 20, 20))
        picture.fields[name] = str(value)
    return picture


def _scene(
    rng: Generator,
    held_out: bool,
    size: tuple[int, int],
    sides: tuple[int, int],
    counts: tuple[int, int],
) -> Picture:
    picture = Picture("scene", _background(rng, held_out, size))
    count = int(rng.integers(counts[0], counts[1] + 1))
    if rng.random() < 0.7:
        _put_sign(rng, picture, held_out)
    for name in _some(rng, NAMES, count):
        _put_thing(rng, picture, name, sides, held_out)
    return picture


def _background(rng: Generator, held_out: bool, size: tuple[int, int]) -> Image.Image:
    photos = photographs(held_out)
    photo = photos[int(rng.integers(len(photos)))]
    fit = max(size[0] / photo.width, size[1] / photo.height) * rng.uniform(1.0, 1.5)
    part = [min(int(side / fit), of) for side, of in zip(size, photo.size, strict=True)]
    left = int(rng.integers(0, photo.width - part[0] + 1))
    top = int(rng.integers(0, photo.height - part[1] + 1))
    image = photo.resize(size, box=(left, top, left + part[0], top + part[1]))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if not held_out:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.3))
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.5))
    return image


def _put_thing(
    rng: Generator, picture: Picture, name: str, sides: tuple[int, int], held_out: bool
) -> None:
    side = math.exp(rng.uniform(*np.log(sides)))
    drawn = sticker(name)
    if not held_out:
        if rng.random() < 0.3:
            drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        drawn = drawn.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, True)
        drawn = drawn.crop(drawn.getbbox())
    scale = side / max(drawn.size)
    width, height = (max(8, int(x * scale)) for x in drawn.size)
    drawn = drawn.resize((width, height))
    box = _free_place(rng, picture, drawn.size)
    if box is None:
        return
    picture.image.paste(drawn, box[:2], drawn)
    solid = np.asarray(drawn)[:, :, 3] > 128
    seen = picture.classes[box[1] : box[3], box[0] : box[2]]
    seen[solid] = 1 + NAMES.index(name)
    picture.things.append(Thing(name, box))


def _put_sign(rng: Generator, picture: Picture, held_out: bool) -> None:
    known = words(held_out)
    word = known[int(rng.integers(len(known)))]
    height = int(rng.integers(*LETTER_HEIGHTS))
    letters = font(height)
    width = int(letters.getlength(word)) + 14
    box = _free_place(rng, picture, (width, height + 14))
    if box is None:
        return
    draw = ImageDraw.Draw(picture.image)
    paper = PAPER[int(rng.integers(len(PAPER)))]
    draw.rectangle((*box[:2], box[2] - 1, box[3] - 1), fill=paper, outline=(30, 30, 30))
    ink = INK[int(rng.integers(len(INK)))]
    draw.text((box[0] + 7, box[1] + 4), word, font=letters, fill=ink)
    for place, letter in enumerate(word):
        start, end = (
            box[0] + 7 + int(letters.getlength(word[:n])) for n in (place, place + 1)
        )
        seen = picture.classes[box[1] : box[3], start:end]
        seen[:] = FIRST_LETTER + LETTERS.index(letter)
    picture.sign = word


def _free_place(rng: Generator, picture: Picture, size: tuple[int, int]) -> Box | None:
    """Where nothing is yet; None where there is no room."""
    room = [of - side for side, of in zip(size, picture.image.size, strict=True)]
    if min(room) < 1:
        return None
    for _ in range(30):
        left, top = (int(rng.integers(0, most)) for most in room)
        around = picture.classes[
            max(0, top - GAP) : top + size[1] + GAP,
            max(0, left - GAP) : left + size[0] + GAP,
        ]
        if not around.any():
            return left, top, left + size[0], top + size[1]
    return None


def _some(rng: Generator, of: Sequence[str], count: int) -> list[str]:
    return [of[i] for i in rng.choice(len(of), count, replace=False)]


def _colour(rng: Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue
