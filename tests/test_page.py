"""The page of `vllm-hired inspect`, driven in a headless browser, against Python."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.checkpoints import REAL_PINPOINTS
from tests.conftest import WriteCheckpoint
from vllm_hired.config import HiredConfig
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.tools.cli import main
from vllm_hired.tools.inspect.tower import Inspection, inspect_image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

SCORED = [name for name in SELECTORS if isinstance(make_selector(name), ScoreSelector)]
"""What the page can show: it ranks scores by itself."""

TILES = ["Tile 1", "Tile 2", "Tile 3", "Tile 4"]


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


# Five shapes: 2 x 2 tiles, letterboxed both ways, 1 x 2, 1 x 3 and 3 x 1.
PHOTOGRAPHS = {
    "astronaut": photograph("astronaut"),
    "coffee": photograph("coffee"),
    "retina, wide": photograph("retina").crop((0, 400, 1400, 1020)),
    "text": photograph("text").resize((1200, 360)),
    "rocket, tall": photograph("rocket").crop((200, 0, 330, 427)),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path is not None, f"`make test` installs one of {BROWSERS}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(make_checkpoint: WriteCheckpoint) -> Path:
    """With the real vision layout: 24 x 24 patches a tile."""
    return make_checkpoint(tile_size=336, patch_size=14, pinpoints=REAL_PINPOINTS)


def open_page(
    browser: Browser, folder: Path, image: Image.Image, tmp_path: Path, *options: str
) -> Page:
    image.save(tmp_path / "photo.png")
    out = tmp_path / "page.html"
    arguments = [str(folder), str(tmp_path / "photo.png"), "-o", str(out)]
    assert main(["inspect", *arguments, *options]) == 0
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(out.as_uri())
    # Nothing but the file itself and pictures inside it.
    assert [p for p in problems if p != out.as_uri() and p[:5] != "data:"] == []
    return page


def expected(inspection: Inspection, **settings: object) -> dict[str, Any]:
    """What Python selects, as the page reports it."""
    hired = HiredConfig.from_hf_config(inspection.configured(settings))
    indices = inspection.select(hired)
    partitions = indices // inspection.layout.cells_per_partition
    counts = torch.bincount(partitions, minlength=inspection.layout.num_partitions)
    thumbnail, *tiles = counts.tolist()
    return {
        "count": inspection.kept_count(hired).tokens,
        "indices": indices.tolist(),
        "thumbnail": thumbnail,
        "tiles": tiles,
    }


SELECT_ALL = """([selector, alpha]) => Array.from({length: 100}, (_, i) => {
    const {count, indices, thumbnail, tiles} =
        window.hired.select(selector, i + 1, alpha);
    return {count, indices: [...indices], thumbnail, tiles: [...tiles]};
})"""


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_budget_selects_what_python_selects(
    browser: Browser, folder: Path, tmp_path: Path, name: str
) -> None:
    page = open_page(browser, folder, PHOTOGRAPHS[name], tmp_path)
    inspection = inspect_image(str(folder), name, PHOTOGRAPHS[name], {})
    runs = [("hired", 0), ("hired", 35), *((name, 50) for name in SCORED)]
    for selector, alpha in runs:
        budgets = page.evaluate(SELECT_ALL, [selector, alpha])
        for percent, found in enumerate(budgets, start=1):
            assert found == expected(
                inspection,
                hired_budget=percent / 100,
                hired_alpha=alpha / 100,
                hired_selector=selector,
            ), (selector, alpha, percent)
    page.close()


def test_without_tiles(
    browser: Browser, make_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(architecture="llava", tile_size=336, patch_size=14)
    image = PHOTOGRAPHS["coffee"]
    page = open_page(browser, folder, image, tmp_path)
    inspection = inspect_image(str(folder), "coffee", image, {})
    budgets = page.evaluate(SELECT_ALL, ["hired", 50])
    for percent, found in enumerate(budgets, start=1):
        assert found == expected(inspection, hired_budget=percent / 100)
    assert page.locator("[data-tile]").count() == 0
    page.close()


def shown(page: Page, what: str) -> str:
    return page.locator(f"#{what}").inner_text()


def test_by_keyboard(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """Each step of the slider shows the counts that Python gives."""
    image = PHOTOGRAPHS["coffee"]
    page = open_page(browser, folder, image, tmp_path, "--budget", "0.4")
    inspection = inspect_image(str(folder), "coffee", image, {})
    page.focus("#budget")
    for percent in range(41, 61):
        page.keyboard.press("ArrowRight")
        python = expected(inspection, hired_budget=percent / 100)
        state = page.evaluate("window.hired.state()")
        assert (state["budget"], state["count"]) == (percent, python["count"])
        assert [*state["indices"]] == python["indices"]
        assert shown(page, "count-kept") == str(python["count"])
        assert shown(page, "count-stock") == "2144"
        assert shown(page, "count-dropped") == str(2144 - python["count"])
        for tile, kept in enumerate(python["tiles"]):
            text = page.locator(f"[data-tile='{tile}']").first.inner_text()
            assert f"{kept} of 384" in text
    page.focus("#alpha")
    page.keyboard.press("Home")
    python = expected(inspection, hired_budget=0.6, hired_alpha=0.0)
    assert page.evaluate("window.hired.state().tiles") == python["tiles"]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_phone_width_nothing_is_cut_off(
    browser: Browser, folder: Path, tmp_path: Path, scheme: Any
) -> None:
    page = open_page(browser, folder, PHOTOGRAPHS["text"], tmp_path)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_page_and_picture_number_tiles_alike(
    browser: Browser, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names for the same tiles: each has the same count in both."""
    image = PHOTOGRAPHS["coffee"]
    page = open_page(browser, folder, image, tmp_path)
    listed = page.locator("#shares li").all()
    on_page = [
        (row.locator("strong").inner_text(), row.locator(".amount").inner_text())
        for row in listed
    ]
    assert [name for name, _ in on_page] == ["Thumbnail", *TILES]
    # By keyboard to the first patch of each tile's column and row.
    page.locator("#canvas-panel canvas").focus()
    pointed = []
    for keys in (["Home", "PageUp"], ["End"], ["Home", "PageDown"], ["End"]):
        for key in keys:
            page.keyboard.press(key)
        pointed.append(page.locator("#patch b").inner_text())
    assert pointed == TILES
    page.close()

    captions: list[str] = []
    draw_text = ImageDraw.ImageDraw.text

    def record(draw: Any, place: Any, text: str, *rest: Any, **options: Any) -> None:
        captions.append(text)
        draw_text(draw, place, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    arguments = [str(folder), str(tmp_path / "photo.png")]
    assert main(["inspect", *arguments, "-o", str(tmp_path / "kept.png")]) == 0
    in_picture = [
        (name.capitalize(), counts.removesuffix(" patches"))
        for name, _, counts in (caption.partition(": ") for caption in captions[1:])
    ]
    assert in_picture == on_page


def test_a_name_cannot_end_the_script(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    from vllm_hired.tools.inspect.page import render_page

    name = "</script><b id=broken>.png"
    inspection = inspect_image(str(folder), name, PHOTOGRAPHS["coffee"], {})
    hired = HiredConfig.from_hf_config(inspection.configured({"hired_budget": 0.2}))
    (tmp_path / "page.html").write_text(render_page(inspection, hired))
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("#broken").count() == 0
    assert name in page.locator("header").inner_text()
    page.close()
