"""`vllm-hired inspect`: what is kept of an image, and why."""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from vllm_hired.config import HiredConfig
from vllm_hired.selectors import SELECTORS


class OutputError(ValueError):
    """A file of a kind that `inspect` does not write."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path)
    parser.add_argument(
        "--model", required=True, help="directory of a checkpoint, or a model id"
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="a .png, or a .html page"
    )
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[0.2], help="default: 0.2"
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--selector", choices=SELECTORS, default="hired")
    parser.add_argument("--init-layer", type=int, help="hired_init_layer")
    parser.add_argument("--final-layer", type=int, help="hired_final_layer")
    parser.add_argument("--token-cap", type=int, help="hired_token_cap")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> str:
    """Writes the picture or the page, whole or not at all.

    Raises:
        ValueError: an argument, an image size or a checkpoint that cannot be used.
        OSError: a file that cannot be read or written, or that is no image.
    """
    from vllm_hired.inspect.page import render_page
    from vllm_hired.inspect.picture import draw_inspection
    from vllm_hired.inspect.tower import inspect_image, read_image

    kind = args.out.suffix.lower()
    if kind not in (".png", ".html"):
        raise OutputError(f"-o {args.out}: it must end in .png or .html")
    image = read_image(args.image)
    configs = [_settings(args, budget) for budget in args.budget]
    inspection = inspect_image(args.model, args.image.name, image, configs[0])
    hired = [HiredConfig.from_hf_config(inspection.configured(c)) for c in configs]
    if kind == ".html":
        page = render_page(inspection, hired[0])
        _write(args.out, lambda path: path.write_text(page, encoding="utf-8"))
    else:
        picture = draw_inspection(inspection, hired)
        _write(args.out, lambda path: picture.save(path, "PNG", optimize=True))
    counts = ", ".join(
        f"{inspection.kept_count(config)} at {float(config.budget)}" for config in hired
    )
    stock = inspection.geometry.num_stock_tokens
    return f"{args.out}: {args.image.name} has {stock} visual tokens; kept: {counts}"


def _settings(args: argparse.Namespace, budget: float) -> dict[str, object]:
    settings = {
        "hired_budget": budget,
        "hired_alpha": args.alpha,
        "hired_selector": args.selector,
        "hired_init_layer": args.init_layer,
        "hired_final_layer": args.final_layer,
        "hired_token_cap": args.token_cap,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _write(out: Path, write: Callable[[Path], object]) -> None:
    """Under another name first, so that no half-written file is left at `out`."""
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    try:
        write(Path(name))
        # Readable as any new file would be; mkstemp's is the owner's alone.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(out)
    finally:
        Path(name).unlink(missing_ok=True)
