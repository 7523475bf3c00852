"""`vllm-hired plan`: what a budget saves on given images, before anyone rents a GPU."""

import argparse
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_hired.budget import KeptCount, kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.layouts import ImageSizeError, Layout, image_layout
from vllm_hired.tools.arguments import add_limits, budget_argument, read_limits
from vllm_hired.tools.checkpoint import read_plain_config
from vllm_hired.tools.cost import BYTES, kv_bytes_per_token, prefill_cost
from vllm_hired.tools.tables import Row, as_table

Size = tuple[int, int]
"""Width and height in pixels."""

TOKENS = ("stock tokens", "kept tokens")
FLOPS = ("tower FLOPs", "projector FLOPs", "LLM FLOPs")
SUMMED = (*TOKENS, "KV bytes/image", "KV bytes/request", *FLOPS)
"""Columns whose values over many images have a mean."""


class SizeError(ValueError):
    """An image size that is none, or no image where one was expected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory with a config.json, or a model id")
    parser.add_argument(
        "--size", nargs="+", default=[], metavar="WxH", help="in pixels: 1024x768"
    )
    parser.add_argument(
        "--images", nargs="+", default=[], type=Path, help="images, or folders of them"
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        type=budget_argument,
        default=[0.4, 0.2, 0.1],
        help="fractions such as 0.2, or 20%% (default: 0.4 0.2 0.1)",
    )
    parser.add_argument("--token-cap", type=int, help="hired_token_cap (default: none)")
    add_limits(parser, "pixels", "tiles")
    parser.add_argument(
        "--text-tokens", type=int, default=100, help="prompt and answer (default: 100)"
    )
    parser.add_argument(
        "--kv-cache-gib", type=float, default=8.0, help="its size (default: 8)"
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=BYTES,
        default="bfloat16",
        help="of its numbers (default: bfloat16)",
    )
    parser.add_argument(
        "--block-size", type=int, default=16, help="tokens of a KV block (default: 16)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="rows as JSON")
    form.add_argument("--csv", action="store_true", help="rows as CSV")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> tuple[str, list[str]]:
    """A row for each size and budget, stock first, and with `--images` rows over all.

    Returns:
        The rows as text, empty where no file could be used; a line for each file or
        folder that was left out.

    Raises:
        ValueError: an argument, a size or a checkpoint that cannot be used.
    """
    sizes = Counter(map(parse_size, args.size))
    if not sizes and not args.images:
        raise SizeError("no image size: give --size 1024x768, or --images FOLDER")
    for name in ("text_tokens", "kv_cache_gib", "block_size"):
        if not 0 < getattr(args, name) < math.inf:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} {getattr(args, name)}: it must be a number above 0"
            )
    hf_config = read_plain_config(args.model, read_limits(args))
    found, skipped = measure_images(hf_config, args.images)
    sizes += found
    if not sizes:
        return "", skipped
    by_size = [[*plan_size(hf_config, size, args)] for size in sizes]
    rows = [row for rows in by_size for row in rows]
    if args.images:
        rows = [{"images": sizes[parse_size(row["size"])], **row} for row in rows]
        if len(sizes) > 1:
            rows += over_all(rows, len(by_size[0]), kv_cache_bytes(hf_config, args))
    if args.json:
        return json.dumps(rows, indent=1), skipped
    if args.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip(), skipped
    return as_table([readable(row) for row in rows]), skipped


def parse_size(text: str) -> Size:
    """`WxH` in pixels."""
    match = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)", text, re.ASCII)
    if match is None:
        raise SizeError(
            f"--size {text}: it must be WIDTHxHEIGHT in pixels, both at least 1, "
            "as in 1024x768"
        )
    return int(match[1]), int(match[2])


def measure_images(
    hf_config: Any, paths: Iterable[Path]
) -> tuple[Counter[Size], list[str]]:
    """How many images have which size, upright as vLLM turns them, and a line for each
    file or folder that is left out: no image, or none that the model can take."""
    from vllm_hired.tools.images import ImageFileError, image_files, upright_size

    sizes: Counter[Size] = Counter()
    skipped: list[str] = []
    for path in image_files(paths, skipped.append):
        try:
            width, height = upright_size(path)
            image_layout(hf_config, height, width)
        except ImageFileError as error:
            skipped.append(f"{error}")
        except ImageSizeError as error:
            skipped.append(f"{path}: {error}")
        else:
            sizes[width, height] += 1
    return sizes, [f"skipped: {line}" for line in skipped]


def plan_size(hf_config: Any, size: Size, args: argparse.Namespace) -> Iterator[Row]:
    """Stock, then each budget, for one request with one image of this size."""
    width, height = size
    settings = {} if args.token_cap is None else {"hired_token_cap": args.token_cap}
    layout = image_layout(hf_config, height, width)
    token_bytes = kv_bytes_per_token(hf_config.text_config, args.kv_cache_dtype)
    block_bytes = args.block_size * token_bytes
    cache_bytes = kv_cache_bytes(hf_config, args)
    stock = KeptCount(layout.num_stock_tokens, is_undropped=True)
    stock_cost = prefill_cost(hf_config, layout, stock, args.text_tokens)
    for budget in (None, *args.budget):
        kept = stock
        if budget is not None:
            hf_config.update({"hired_budget": budget, **settings})
            hired = HiredConfig.from_hf_config(hf_config)
            kept = kept_count(layout, hired.budget, hired.token_cap)
        cost = prefill_cost(hf_config, layout, kept, args.text_tokens)
        blocks = -(-(kept.tokens + args.text_tokens) // args.block_size)
        yield {
            "size": f"{width}x{height}",
            "tile grid": tile_grid(layout),
            "budget": "stock" if budget is None else budget,
            "stock tokens": stock.tokens,
            "kept tokens": kept.tokens,
            "KV bytes/image": kept.tokens * token_bytes,
            "KV bytes/request": blocks * block_bytes,
            "requests at once": cache_bytes // (blocks * block_bytes),
            "tower FLOPs": cost.tower,
            "projector FLOPs": cost.projector,
            "LLM FLOPs": cost.llm,
            "arithmetic bound": round(stock_cost.total / cost.total, 3),
        }


def kv_cache_bytes(hf_config: Any, args: argparse.Namespace) -> int:
    """Bytes of the KV cache in whole blocks."""
    token_bytes = kv_bytes_per_token(hf_config.text_config, args.kv_cache_dtype)
    block_bytes = args.block_size * token_bytes
    return int(args.kv_cache_gib * 2**30) // block_bytes * block_bytes


def over_all(
    rows: Sequence[Row], rows_per_size: int, cache_bytes: int
) -> Iterator[Row]:
    """For stock and each budget a row of means over all images.

    Args:
        rows: of `plan_size` with their number of images, size by size.
        rows_per_size: stock and the budgets.
        cache_bytes: of the KV cache.
    """
    groups = [rows[start::rows_per_size] for start in range(rows_per_size)]
    images = sum(row["images"] for row in groups[0])
    totals = [
        {name: sum(row["images"] * row[name] for row in group) for name in SUMMED}
        for group in groups
    ]
    flops = [sum(total[name] for name in FLOPS) for total in totals]
    for group, total, operations in zip(groups, totals, flops, strict=True):
        means = {name: round(value / images) for name, value in total.items()}
        yield (
            group[0]
            | means
            | {
                "images": images,
                "size": "all",
                "tile grid": "-",
                **{name: round(total[name] / images, 1) for name in TOKENS},
                "requests at once": cache_bytes * images // total["KV bytes/request"],
                "arithmetic bound": round(flops[0] / operations, 3),
            }
        )


def tile_grid(layout: Layout) -> str:
    return f"{layout.tile_rows}x{layout.tile_cols}" if layout.num_tiles else "-"


def readable(row: Row) -> Row:
    """Bytes as MiB and operations as TFLOPs, for the table."""
    named: Row = {}
    for name, value in row.items():
        if "bytes" in name:
            named[name.replace("KV bytes/", "KV MiB/")] = f"{value / 2**20:.1f}"
        elif "FLOPs" in name:
            named[name.replace("FLOPs", "TFLOPs")] = f"{value / 1e12:.3f}"
        else:
            named[name] = value
    return named
