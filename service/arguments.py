"""Types of options on a command line, for argparse."""

import argparse


def positive(text: str) -> int:
    """A whole number from 1.

    >>> positive("3")
    3
    """
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def natural(text: str) -> int:
    """A whole number from 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number
