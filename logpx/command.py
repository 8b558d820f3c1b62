"""The command `logpx`: one name for the commands of the service and of training, imported only when asked for."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

_SERVICE, _TRAINING = "service,cpu", "service,cpu,training"
_OURS = {"logpx", "model_store", "service", "training"}


@dataclass(frozen=True)
class Command:
    """A command of another package.

    Attributes:
        module: has `main(arguments, prog)`, which returns the exit code.
        extras: what must be installed for it.
        summary: one line of the help.
    """

    module: str
    extras: str
    summary: str


COMMANDS = {
    "serve": Command("service.__main__", _SERVICE, "serve the model store over HTTP"),
    "score": Command("service.__main__", "service,cpu,score", "score any number of images into Parquet files"),
    "models": Command(
        "service.__main__", _SERVICE, "list a store's models; pin one of a model's versions, or unpin it"
    ),
    "calibrate": Command("service.__main__", _SERVICE, "calibrate a model's anomaly scores on images of your own"),
    "fit": Command("training.__main__", _TRAINING, "train a model on images"),
    "evaluate": Command("training.__main__", _TRAINING, "measure a model on held-out images"),
    "features": Command("training.__main__", _TRAINING, "make a feature graph for fit --features, from a network"),
    "publish": Command("training.__main__", _TRAINING, "publish a trained model into a store"),
}
_HELP = """usage: logpx COMMAND [options]

{commands}

logpx COMMAND --help lists a command's options; logpx --version says which logpx this is.
In Python, a client: from logpx import Client (docs/client.md).

exit codes:
  0    done
  1    the service failed while it served
  2    an error that has a sentence: a wrong option, a missing extra, a model that is not there
  130  interrupted by Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, *rest = given or [""]
    if name in ("", "-h", "--help"):
        lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name == "--version":
        print(f"logpx {version('logpx')}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        print(f"error: logpx has no command {name!r} (logpx --help lists them)", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        # The service's image has no package `training`; a module missing from a package of ours is a fault.
        if error.name is None or (error.name not in _OURS and error.name.partition(".")[0] in _OURS):
            raise
        told = f"logpx {name} needs {error.name}, which is not installed: pip install 'logpx[{command.extras}]'"
        print(f"error: {told}", file=sys.stderr)
        return 2
    return int(module.main([name, *rest], prog="logpx"))
