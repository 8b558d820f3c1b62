"""`python -m service models`: what a store holds, and which version of a model is pinned."""

import argparse
import os
import sys
from pathlib import Path
from typing import get_type_hints

from model_store import BUNDLED, Manifest, StoreError, list_store, pin, printable, unpin
from service.arguments import add_number
from service.printing import print_any_name

STORE = "LOGPX_MODEL_STORE"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    _add_store(parser)
    actions = parser.add_subparsers(metavar="ACTION", dest="action", help="without one, list the store's models")
    summary = (
        "Make a version the default of its model, instead of the newest; a service takes it up at its next reload."
    )
    pinning = actions.add_parser("pin", help=summary, description=summary)
    pinning.add_argument("name", metavar="NAME", help="the model")
    add_number(pinning, "version", get_type_hints(Manifest, include_extras=True)["version"], help="the version")
    _add_store(pinning)
    summary = "Make the newest version the default of its model again."
    unpinning = actions.add_parser("unpin", help=summary, description=summary)
    unpinning.add_argument("name", metavar="NAME", help="the model")
    _add_store(unpinning)


def run(parsed: argparse.Namespace) -> int:
    """Do it; returns the exit status: 0, or 2 for an error that has a sentence."""
    print_any_name()
    store = getattr(parsed, "store", None) or Path(os.environ.get(STORE, "").strip() or BUNDLED)
    try:
        if parsed.action == "pin":
            pin(store, parsed.name, parsed.version)
            print(f"{parsed.name}: version {parsed.version} is the default")
        elif parsed.action == "unpin":
            before = unpin(store, parsed.name)
            print(f"{parsed.name}: the newest version is the default" + ("" if before else ", as before"))
        else:
            _print_models(store)
    except StoreError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def _print_models(store: Path) -> None:
    listing = list_store(store)
    for name, versions in listing.versions.items():
        default = listing.candidates(name)[-1]
        pinned = ", pinned" if name in listing.pins else ""
        print(f"{name}: default {default}{pinned}; versions {', '.join(map(str, versions))}")
    for error in listing.unreadable.values():
        print(f"error: {printable(str(error))}", file=sys.stderr)


def _add_store(parser: argparse.ArgumentParser) -> None:
    told = f"the store's folder (default: {STORE}, or the bundled models)"
    parser.add_argument("--store", type=Path, default=argparse.SUPPRESS, help=told)
