"""`vllm-hired inspect`: what is kept of an image, and why."""

import argparse
import io
import os
import secrets
from contextlib import suppress
from pathlib import Path

from vllm_hired.config import ATTENTIONS, HiredConfig
from vllm_hired.errors import HiredConfigError
from vllm_hired.selectors import selector_names
from vllm_hired.tools.arguments import (
    add_limits,
    budget_argument,
    read_limits,
)


class OutputError(ValueError):
    """A file that `inspect` does not write, or that cannot be written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory of a checkpoint, or a model id")
    parser.add_argument("image", type=Path, help="file of an image")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="a .png, or a .html page"
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        type=budget_argument,
        default=[0.2],
        help="fractions such as 0.2, or 20%% (default: 0.2)",
    )
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="hired_alpha (default: 0.5)"
    )
    parser.add_argument(
        "--selector",
        choices=selector_names(),
        default="hired",
        help="hired_selector (default: hired)",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help="hired_attention (default: the model's)",
    )
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a setting of the selector, such as hired_scope_alpha 2",
    )
    parser.add_argument("--init-layer", type=int, help="hired_init_layer")
    parser.add_argument("--final-layer", type=int, help="hired_final_layer")
    parser.add_argument("--token-cap", type=int, help="hired_token_cap")
    add_limits(parser, "pixels", "tiles")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[str, list[str]]:
    """Writes the picture or the page, whole or not at all.

    Returns:
        A line that says so, and nothing left out.

    Raises:
        ValueError: an argument, a file, an image size or a checkpoint that cannot be
            used.
        OSError: a checkpoint's file that cannot be read.
    """
    from vllm_hired.tools.images import read_image
    from vllm_hired.tools.inspect.inspection import inspect_image
    from vllm_hired.tools.inspect.page import render_page
    from vllm_hired.tools.inspect.picture import draw_inspection

    kind = args.out.suffix.lower()
    if kind not in (".png", ".html"):
        raise OutputError(f"-o {args.out}: it must end in .png or .html")
    limits = read_limits(args)
    image = read_image(args.image)
    # Not every file name is text.
    name = os.fsencode(args.image.name).decode("utf-8", "backslashreplace")
    configs = [_settings(args, budget) for budget in args.budget]
    inspection = inspect_image(args.model, name, image, configs[0], limits)
    hired = [HiredConfig.from_hf_config(inspection.configured(c)) for c in configs]
    if kind == ".html":
        _write(args.out, render_page(inspection, hired).encode())
    else:
        buffer = io.BytesIO()
        draw_inspection(inspection, hired).save(buffer, "PNG", optimize=True)
        _write(args.out, buffer.getvalue())
    counts = ", ".join(
        f"{inspection.kept_count(config).tokens} at {float(config.budget)}"
        for config in hired
    )
    stock = inspection.layout.num_stock_tokens
    return f"{args.out}: {name} has {stock} visual tokens; kept: {counts}", []


def _settings(args: argparse.Namespace, budget: float) -> dict[str, object]:
    settings = {
        "hired_budget": budget,
        "hired_alpha": args.alpha,
        "hired_selector": args.selector,
        "hired_attention": args.attention,
        "hired_init_layer": args.init_layer,
        "hired_final_layer": args.final_layer,
        "hired_token_cap": args.token_cap,
    }
    for key, value in args.set:
        settings[key] = number_argument(key, value)
    return {key: value for key, value in settings.items() if value is not None}


def number_argument(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise HiredConfigError(key, text, "it must be a number") from error


def _write(out: Path, data: bytes) -> None:
    """Under a hidden name first, so that no half-written file is ever at `out`.

    Raises:
        OutputError: it cannot be written.
    """
    # Chosen here and not by `tempfile`, so that an interrupt right after the file is
    # made still finds its name.
    temporary = out.parent / f".vllm-hired-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(out)
    except OSError as error:
        raise OutputError(f"-o {out} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
