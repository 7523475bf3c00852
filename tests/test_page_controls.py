"""The page of `vllm-hired inspect`: sliders, keyboard, names and widths."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageDraw
from playwright.sync_api import Browser

from tests.conftest import ARCHITECTURES, WriteCheckpoint
from tests.pages import PHOTOGRAPHS, open_page, selected, shown, wait_until_drawn
from vllm_hired.config import HiredConfig
from vllm_hired.tools.cli import main
from vllm_hired.tools.inspect.inspection import inspect_image
from vllm_hired.tools.inspect.page import render_page

TILES = ["Tile 1", "Tile 2", "Tile 3", "Tile 4"]


def test_without_tiles(
    browser: Browser, make_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = make_checkpoint(**ARCHITECTURES["llava"])
    page = open_page(browser, folder, PHOTOGRAPHS["coffee"], tmp_path)
    assert shown(page, "count-kept") == str(64 // 5)
    assert page.locator("[data-tile]").count() == 0
    assert page.locator("#alpha").is_disabled()
    page.close()


def test_by_keyboard(browser: Browser, checkpoint: Path, tmp_path: Path) -> None:
    """Each step of a slider shows the counts that Python gives."""
    image = PHOTOGRAPHS["coffee"]
    page = open_page(browser, checkpoint, image, tmp_path, "--budget", "0.4", "0.43")
    inspection = inspect_image(str(checkpoint), "coffee", image, {})
    layout = inspection.layout
    stock = layout.num_stock_tokens

    def assert_shows(**settings: float) -> None:
        kept = selected(inspection, **settings).view(layout.num_partitions, -1)
        assert shown(page, "count-kept") == str(int(kept.sum()))
        assert shown(page, "count-stock") == str(stock)
        assert shown(page, "count-dropped") == str(stock - int(kept.sum()))
        amounts = page.locator("#shares .amount").all_inner_texts()
        counts = zip(kept.sum(dim=1), layout.partition_capacities, strict=True)
        assert amounts == [f"{count} of {capacity}" for count, capacity in counts]

    page.focus("#budget")
    for budget in (0.43, 0.45, 0.5, 0.6):
        page.keyboard.press("ArrowRight")
        assert shown(page, "budget-value") == f"{100 * budget:g}%"
        assert_shows(hired_budget=budget)
    page.focus("#alpha")
    page.keyboard.press("Home")
    assert_shows(hired_budget=0.6, hired_alpha=0.0)
    page.focus("#budget")
    page.keyboard.press("End")
    assert shown(page, "count-kept") == str(stock)
    assert "Nothing is dropped" in shown(page, "count-note")
    page.wait_for_url(re.compile("#budget=100&alpha=0&"))
    page.reload()
    wait_until_drawn(page)
    assert shown(page, "budget-value") == "100%"
    page.locator("#whole-panel canvas").focus()
    page.keyboard.press("ArrowLeft")
    first = re.search(r"first kept at ([\d.]+)%", shown(page, "cell"))
    assert first
    assert selected(inspection, hired_budget=float(first[1]) / 100, hired_alpha=0.0)[0]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_phone_width_nothing_is_cut_off(
    browser: Browser, checkpoint: Path, tmp_path: Path, scheme: Any
) -> None:
    page = open_page(browser, checkpoint, PHOTOGRAPHS["text"], tmp_path)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_page_and_picture_number_tiles_alike(
    browser: Browser, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same names for the same tiles: each has the same count in both."""
    image = PHOTOGRAPHS["coffee"]
    page = open_page(browser, checkpoint, image, tmp_path)
    listed = page.locator("#shares li").all()
    on_page = [
        (row.locator("strong").inner_text(), row.locator(".amount").inner_text())
        for row in listed
    ]
    assert [name for name, _ in on_page] == ["Thumbnail", *TILES]
    # By keyboard to the first cell of each tile's column and row.
    page.locator("#canvas-panel canvas").focus()
    pointed = []
    for keys in (["Home", "PageUp"], ["End"], ["Home", "PageDown"], ["End"]):
        for key in keys:
            page.keyboard.press(key)
        pointed.append(page.locator("#cell b").inner_text())
    assert pointed == TILES
    page.close()

    captions: list[str] = []
    draw_text = ImageDraw.ImageDraw.text

    def record(draw: Any, place: Any, text: str, *rest: Any, **options: Any) -> None:
        captions.append(text)
        draw_text(draw, place, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    arguments = [str(checkpoint), str(tmp_path / "photo.png")]
    assert main(["inspect", *arguments, "-o", str(tmp_path / "kept.png")]) == 0
    in_picture = [
        (name.capitalize(), counts.removesuffix(" cells"))
        for name, _, counts in (caption.partition(": ") for caption in captions[1:])
    ]
    assert in_picture == on_page


def test_a_name_cannot_end_the_script(
    browser: Browser, checkpoint: Path, tmp_path: Path
) -> None:
    name = "</script><b id=broken>.png"
    inspection = inspect_image(str(checkpoint), name, PHOTOGRAPHS["coffee"], {})
    hired = HiredConfig.from_hf_config(inspection.configured({"hired_budget": 0.2}))
    (tmp_path / "page.html").write_text(render_page(inspection, [hired]))
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    wait_until_drawn(page)
    assert page.locator("#broken").count() == 0
    assert name in page.locator("header").inner_text()
    page.close()
