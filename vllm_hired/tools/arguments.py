"""Command-line arguments that several commands take."""

import argparse


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
