"""What scenes are made of: photographs, emoji, words, a font.

Photographs for training come from Debian packages, those that are held out from
scikit-image and scikit-learn, so that evaluation needs the emoji and the words alone.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import matplotlib
import skimage.data
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from training.smol.objects import OBJECTS
from training.smol.wheels import PartsError

FOLDER = Path("out/smol/assets")
PACKAGES = ("fonts-noto-color-emoji", "wamerican")
PHOTOGRAPH_PACKAGES = (
    "gnome-backgrounds",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "opencv-doc",
)

EMOJI_FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
WORD_LIST = "usr/share/dict/american-english"
PHOTOGRAPHS = (
    "usr/share/backgrounds",
    "usr/share/wallpapers",
    "usr/share/doc/opencv-doc/examples",
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LONGEST_SIDE, SHORTEST_SIDE = 1200, 300
"""In pixels, of photographs for training."""

HELD_OUT_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
"""Of scikit-image; and the two of scikit-learn."""


def fetch(packages: tuple[str, ...], folder: Path = FOLDER) -> None:
    """Unpacks Debian packages into `folder`, where they are not yet.

    Raises:
        PartsError: a package cannot be had.
    """
    for package in packages:
        mark = folder / f"{package}.unpacked"
        if mark.exists():
            continue
        command = f"apt-get download {package}"
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise PartsError(f"{package} is a Debian package and there is no apt-get")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["apt-get", "download", package],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        found = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode or not found:
            raise PartsError(f"`{command}` failed; run `apt-get update` and try again")
        subprocess.run(["dpkg", "-x", str(found[-1]), str(folder)], check=True)
        found[-1].unlink()
        mark.touch()


@cache
def photographs(held_out: bool) -> list[Image.Image]:
    """RGB. Those for training are shrunk once and kept beside the packages."""
    if held_out:
        named = [getattr(skimage.data, name)() for name in HELD_OUT_PHOTOGRAPHS]
        named += load_sample_images().images
        return [Image.fromarray(pixels).convert("RGB") for pixels in named]
    small = FOLDER / "photographs"
    if not (small / "done").exists():
        fetch(PHOTOGRAPH_PACKAGES)
        small.mkdir(exist_ok=True)
        for number, path in enumerate(_photograph_files(FOLDER)):
            _shrink(path, small / f"{number:03}.jpg")
        (small / "done").touch()
    return [Image.open(path).convert("RGB") for path in sorted(small.glob("*.jpg"))]


def _photograph_files(folder: Path) -> list[Path]:
    """One of each set of wallpapers: a set is one picture in many sizes."""
    found: dict[Path, Path] = {}
    for root in PHOTOGRAPHS:
        for path in sorted((folder / root).rglob("*")):
            if path.suffix.lower() not in SUFFIXES or "screenshot" in path.name:
                continue
            of_set = path.parents[2] if "contents" in path.parts else path
            found.setdefault(of_set, path)
    return list(found.values())


def _shrink(path: Path, small: Path) -> None:
    try:
        opened = Image.open(path)
        opened.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
        image = opened.convert("RGB")
    except OSError:
        return  # not all of a package's files are pictures
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    if min(image.size) >= SHORTEST_SIDE:
        image.save(small, quality=92)


@cache
def sticker(name: str) -> Image.Image:
    """An object as it is drawn: RGBA, cut to its edges, about 128 pixels."""
    fetch(PACKAGES)
    font = ImageFont.truetype(str(FOLDER / EMOJI_FONT), 109)  # the only size it has
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((8, 8), OBJECTS[name], font=font, embedded_color=True)
    box = image.getbbox()
    if box is None:
        raise PartsError(f"{EMOJI_FONT} does not draw {name}")
    return image.crop(box)


@cache
def words(held_out: bool) -> list[str]:
    """In capitals, 3 to 6 letters; every tenth is held out."""
    fetch(PACKAGES)
    lines = (FOLDER / WORD_LIST).read_text().split()
    found = [w for w in lines if w.isascii() and w.isalpha() and w.islower()]
    found = [w.upper() for w in found if 3 <= len(w) <= 6]
    return [w for i, w in enumerate(found) if (i % 10 == 0) == held_out]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, which comes with matplotlib."""
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size)
