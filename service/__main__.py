"""Without a command, serve the model store over HTTP; settings come from the environment (docs/operations.md)."""

import argparse
import sys
from collections.abc import Sequence

from service import calibrate, models, processes, score
from service.arguments import Parser

_SERVE = "Serve the model store over HTTP until SIGTERM; settings come from the environment (docs/operations.md)."
_CALIBRATE = "Calibrate a model's anomaly scores on images of your own; publishes a new version of it."
_MODELS = "List a store's models and versions, or change which version of a model is the default."
_SCORE = "log P(x) and anomaly scores of any number of images, as Parquet files; killed, it goes on."


def main(arguments: Sequence[str] | None = None, prog: str = "python -m service") -> int:
    """Do what the command line says; returns the exit status."""
    parser = Parser(prog=prog, description=__doc__)
    parser.set_defaults(command=processes.run, processes=None, devices=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    processes.add_options(commands.add_parser("serve", help=_SERVE, description=_SERVE))
    for name, module, summary in (
        ("calibrate", calibrate, _CALIBRATE),
        ("models", models, _MODELS),
        ("score", score, _SCORE),
    ):
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.add_options(command)
        command.set_defaults(command=module.run)
    parsed = parser.parse_args(arguments)
    return int(parsed.command(parsed))


if __name__ == "__main__":
    sys.exit(main())
