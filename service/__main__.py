"""Without a command, serve the model store over HTTP; settings come from the environment (docs/operations.md)."""

import argparse
import sys
from collections.abc import Sequence

from service import calibrate
from service.arguments import Parser
from service.serve import serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = Parser(prog="python -m service", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND")
    summary = "Calibrate a model's anomaly scores on images of your own; publishes a new version of it."
    command = commands.add_parser(
        "calibrate",
        help=summary,
        description=summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    calibrate.add_options(command)
    command.set_defaults(command=calibrate.run)
    parsed = parser.parse_args(arguments)
    return int(parsed.command(parsed)) if hasattr(parsed, "command") else serve()


if __name__ == "__main__":
    sys.exit(main())
