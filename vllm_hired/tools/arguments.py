"""Command-line arguments that several commands take."""

import argparse

from vllm_hired.tools.checkpoint import ImageLimits

LIMITS = {"pixels": "Qwen-VL", "tiles": "InternVL"}
"""What is limited -> the family whose processor has such limits of an image."""


def add_limits(parser: argparse.ArgumentParser, *names: str) -> None:
    """`--min-NAME` and `--max-NAME` for names in `LIMITS`."""
    for name in names:
        for end in ("min", "max"):
            parser.add_argument(
                f"--{end}-{name}",
                type=int,
                help=f"{LIMITS[name]}: a request's or the engine's "
                "(default: the checkpoint's)",
            )


def read_limits(args: argparse.Namespace) -> ImageLimits:
    """Raises `ValueError` for limits that are none."""
    found = {}
    for name in LIMITS:
        for end, word in (("min", "least"), ("max", "most")):
            value = getattr(args, f"{end}_{name}", None)
            if value is not None and value < 1:
                raise ValueError(f"--{end}-{name} {value}: it must be above 0")
            found[f"{word}_{name}"] = value
    return ImageLimits(**found)


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
