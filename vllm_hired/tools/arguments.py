"""Command-line arguments that several commands take."""

import argparse


def add_pixel_limits(parser: argparse.ArgumentParser) -> None:
    """`--min-pixels` and `--max-pixels`, between which a family resizes images."""
    for name in ("min", "max"):
        parser.add_argument(
            f"--{name}-pixels",
            type=int,
            help="Qwen-VL: a request's or the engine's (default: the checkpoint's)",
        )


def check_pixel_limits(args: argparse.Namespace) -> None:
    """Raises `ValueError` for limits that are none."""
    for name in ("min_pixels", "max_pixels"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {value}: it must be above 0")


def budget_argument(text: str) -> float:
    """A fraction such as `0.2`, or a percentage such as `20%`.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    number, percent, rest = text.strip().partition("%")
    try:
        if rest:
            raise ValueError(text)
        # Through text, so that 35% is 0.35 and not the nearest sum of floats.
        return float(f"{number}e-2") if percent else float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no budget: give a fraction such as 0.2, or 20%"
        ) from error
