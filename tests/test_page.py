"""What the page of `vllm-hired inspect` says is kept, as written and as drawn."""

import base64
import json
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page
from transformers import AutoConfig

from tests.conftest import (
    ARCHITECTURES,
    WriteCheckpoint,
    WriteInternVLCheckpoint,
)
from tests.pages import PHOTOGRAPHS, open_page, selected, shown, wait_until_drawn
from vllm_hired.config import SETTINGS, HiredConfig
from vllm_hired.layouts import Layout
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.probe import made_up_observation
from vllm_hired.tools.inspect.choices import ALPHAS, BUDGETS
from vllm_hired.tools.inspect.inspection import Inspection, inspect_image
from vllm_hired.tools.inspect.page import render_page
from vllm_hired.tools.inspect.picture import LEAST_SIDE, draw_inspection

MERGING = ("visionzip", "prumerge_plus")

PAGES: dict[str, tuple[str, str, dict[str, object]]] = {
    "2 x 2 tiles": ("llava_next", "astronaut", {}),
    "letterboxed": (
        "llava_next",
        "coffee",
        {
            "hired_selector": "scope",
            "hired_scope_alpha": 3,
            "hired_alpha": 0.35,
            "hired_attention": "received",
            "hired_init_layer": 1,
            "hired_final_layer": 0,
        },
    ),
    "1 x 3 tiles": ("llava_next", "text", {"hired_token_cap": 77}),
    "no tiles": ("llava", "coffee", {}),
    "2 x 3 tiles, then a thumbnail": ("internvl", "coffee", {}),
}
"""Architecture, photograph, settings."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_file_has_what_every_selector_keeps(
    make_checkpoint: WriteCheckpoint,
    make_internvl: WriteInternVLCheckpoint,
    name: str,
) -> None:
    architecture, photo, settings = PAGES[name]
    if architecture in ARCHITECTURES:
        folder = make_checkpoint(**ARCHITECTURES[architecture])
    else:
        folder = make_internvl(architecture)
    inspection = inspect_image(str(folder), photo, PHOTOGRAPHS[photo], settings)
    layout = inspection.layout
    hired = [
        HiredConfig.from_hf_config(
            inspection.configured(settings | {"hired_budget": b})
        )
        for b in (0.115, 0.004)
    ]
    page = render_page(inspection, hired)
    _, _, rest = page.partition('<script type="application/json" id="data">')
    data = json.loads(rest.partition("</script>")[0])

    budgets, alphas, start = data["budgets"], data["alphas"], data["start"]
    assert budgets[start["budget"]]["percent"] == "11.5"
    assert "0.4" in [budget["percent"] for budget in budgets]
    assert float(alphas[start["alpha"]]) == 100 * hired[0].alpha
    assert start["selector"] == hired[0].selector
    assert [method["name"] for method in data["methods"]] == [*SELECTORS]
    assert data["left_out"] == []
    for method in data["methods"]:
        is_chosen = method["name"] == hired[0].selector
        common: dict[str, Any] = {
            k: v for k, v in settings.items() if is_chosen or k in SETTINGS
        }
        common["hired_selector"] = method["name"]
        own_alphas = alphas if method["uses_alpha"] else ["50"]
        steps = [(alpha, budget) for alpha in own_alphas for budget in budgets]
        rows = flags(method["kept"], layout.num_cells)
        for row, (alpha, budget) in zip(rows, steps, strict=True):
            step = {
                "hired_alpha": float(alpha) / 100,
                "hired_budget": float(budget["percent"]) / 100,
            }
            expected = selected(inspection, **(common | step))
            assert torch.equal(row, expected), (method["name"], step)
            assert budget["tokens"] in (row.sum(), layout.num_stock_tokens)
        assert method["merges"] == (method["name"] in MERGING)


def flags(packed: str, num_cells: int) -> torch.Tensor:
    """`[rows, num_cells]` bool."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    rows = np.unpackbits(bits.reshape(-1, -(-num_cells // 8)), axis=1)
    return torch.from_numpy(rows[:, :num_cells].astype(bool))


DRAWN = """([panel, rows, cols]) => {
    const canvas = document.querySelector(`#${panel}-panel canvas`);
    const {width, height} = canvas;
    const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
    return Array.from({length: rows * cols}, (_, at) => {
        const x = Math.floor(width * (at % cols + 0.7) / cols);
        const y = Math.floor(height * (Math.floor(at / cols) + 0.7) / rows);
        const pixel = 4 * (y * width + x);
        return data[pixel] - data[pixel + 1] > 60;
    });
}"""
"""By cell, whether the map shows its colour, which dropped ones lose."""


def drawn(page: Page, layout: Layout) -> torch.Tensor:
    """`[P * N]` bool: the cells that the page shows in full colour."""
    kept = torch.zeros(layout.num_cells, dtype=torch.bool)
    whole_partition = 0 if layout.num_partitions == 1 else layout.thumbnail_partition
    if whole_partition is not None:
        whole = page.evaluate(DRAWN, ["whole", layout.rows, layout.cols])
        by_partition = kept.view(layout.num_partitions, -1)
        by_partition[whole_partition] = torch.tensor(whole)
    if layout.num_partitions > 1:
        rows, cols = layout.tile_rows * layout.rows, layout.tile_cols * layout.cols
        for at, is_kept in enumerate(page.evaluate(DRAWN, ["canvas", rows, cols])):
            kept[layout.flat_index(*divmod(at, cols))] = is_kept
    return kept


def wait_for_pictures(page: Page) -> None:
    """They are decoded and drawn."""
    for panel in page.locator(".panel:visible").all():
        name = (panel.get_attribute("id") or "").removesuffix("-panel")
        while not any(page.evaluate(DRAWN, [name, 8, 8])):
            page.wait_for_timeout(20)


def test_the_page_draws_what_every_selector_keeps(
    browser: Browser, checkpoint: Path, tmp_path: Path
) -> None:
    """A red picture: dropped cells are grey."""
    grey = PHOTOGRAPHS["coffee"].convert("L")
    black = Image.new("L", grey.size)
    image = Image.merge("RGB", [grey.point(lambda v: 150 + v * 2 // 5), black, black])
    page = open_page(browser, checkpoint, image, tmp_path)
    inspection = inspect_image(str(checkpoint), "red", image, {})
    wait_for_pictures(page)
    names = page.locator("#selector option").all_inner_texts()
    assert names == [*SELECTORS]
    for budget, alpha in ((6, 50), (30, 25), (80, 100)):
        page.select_option("#selector", "hired")
        page.locator("#budget").fill(str(BUDGETS.index(Fraction(budget, 100))))
        page.locator("#alpha").fill(str(ALPHAS.index(Fraction(alpha, 100))))
        for name in names:
            page.select_option("#selector", name)
            expected = selected(
                inspection,
                hired_budget=budget / 100,
                hired_alpha=alpha / 100,
                hired_selector=name,
            )
            assert torch.equal(drawn(page, inspection.layout), expected), (name, budget)
            assert shown(page, "count-kept") == str(int(expected.sum()))
            assert page.locator("#alpha").is_enabled() == make_selector(name).uses_alpha
            assert ("merged" in shown(page, "keys")) == (name in MERGING)
    page.close()


LAYOUTS = {
    "one piece": (Layout(rows=5, cols=9, least_kept=9), ["Image"]),
    "thumbnail last": (
        Layout(
            *(6, 4, 1, 2),
            height=6,
            width=8,
            thumbnail="last",
            tile_by_tile=True,
        ),
        ["Tile 1", "Tile 2", "Thumbnail"],
    ),
    "one tile": (Layout(*(4, 6, 1, 1), height=4, width=6, thumbnail="none"), ["Image"]),
    "no thumbnail": (
        Layout(*(4, 6, 2, 1), top=1, height=6, width=6, thumbnail="none"),
        ["Tile 1", "Tile 2"],
    ),
}
"""Of families that lay cells out otherwise, and what the page calls the partitions."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_is_drawn(
    browser: Browser, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    """Cells of a made-up image are where the layout says, on the page and in the
    picture."""
    layout, partitions = LAYOUTS[name]
    red = torch.tensor([0.9, 0.0, 0.0]).view(3, 1, 1)
    shape = (layout.num_partitions, 3, 8 * layout.rows, 8 * layout.cols)
    inspection = Inspection(
        name=name,
        model="none",
        width=100,
        height=100,
        layout=layout,
        partitions=red.expand(shape),
        observation=made_up_observation(layout),
        attention="cls",
        hf_config=AutoConfig.from_pretrained(checkpoint),
    )
    given = {"hired_budget": 0.3, "hired_alpha": 0.25}
    hired = HiredConfig.from_hf_config(inspection.configured(given))
    (tmp_path / "page.html").write_text(render_page(inspection, [hired]))
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    wait_until_drawn(page)
    wait_for_pictures(page)
    for selector in ("hired", "uniform"):
        page.select_option("#selector", selector)
        kept = selected(inspection, **given, hired_selector=selector)
        assert 0 < kept.sum() < layout.num_selectable
        assert torch.equal(drawn(page, layout), kept)
    listed = page.locator("#shares strong").all_inner_texts()
    assert listed == partitions
    assert page.locator("#newlines").is_hidden()
    page.close()

    picture = np.asarray(draw_inspection(inspection, [hired]), dtype=int)
    is_red = picture[..., 0] - picture[..., 1] > 100
    factor = -(-LEAST_SIDE // shape[-1])
    kept = selected(inspection, **given)
    assert is_red.sum() == kept.sum() * (8 * factor) ** 2
