"""The page of `vllm-hired inspect`, opened in a browser."""

from pathlib import Path

import skimage.data
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from vllm_hired.config import HiredConfig
from vllm_hired.tools.cli import main
from vllm_hired.tools.inspect.inspection import Inspection


def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


PHOTOGRAPHS = {
    "astronaut": photograph("astronaut"),
    "coffee": photograph("coffee"),
    "text": photograph("text").resize((1200, 360)),
}


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
    wait_until_drawn(page)
    # Nothing but the file itself and pictures inside it.
    assert [p for p in problems if p != out.as_uri() and p[:5] != "data:"] == []
    return page


def wait_until_drawn(page: Page) -> None:
    """What Python chose is unpacked after the page has loaded."""
    expect(page.locator("#count-kept")).not_to_be_empty()


def shown(page: Page, what: str) -> str:
    return page.locator(f"#{what}").inner_text()


def selected(inspection: Inspection, **settings: object) -> torch.Tensor:
    """`[P * N]` bool: what the selector keeps."""
    hired = HiredConfig.from_hf_config(inspection.configured(settings))
    kept = torch.zeros(inspection.layout.num_cells, dtype=torch.bool)
    kept[inspection.select(hired)] = True
    return kept
