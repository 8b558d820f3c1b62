"""`python -m service score`: log P(x) and anomaly scores of any number of images, as Parquet files."""

import argparse
import os
import sys
from pathlib import Path
from typing import Annotated, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan

from model_store import BUNDLED, CalibrationProtocol, Manifest, StoreError, open_version
from service.arguments import add_number
from service.engine.proposal import PROPOSALS, TooFewSamplesError
from service.images.resampler import ResamplerError, check_resampler
from service.models import STORE
from service.printing import print_any_name

_FDR = Annotated[float, AllowInfNan(False), Gt(0), Lt(1)]
_SHARD = Annotated[int, Ge(1), Le(2**16)]
_WORKERS = Annotated[int, Ge(1), Le(1024)]
_HERE = "a new cluster on this machine"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads."""
    none = argparse.SUPPRESS
    of_scores = get_type_hints(CalibrationProtocol, include_extras=True)
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        required=True,
        default=none,
        help="folders, image files, quoted patterns ('photos/**/*.png'), .txt lists of paths, zip or tar files, "
        "Parquet files with a column of encoded images, .npy arrays",
    )
    parser.add_argument("--model", required=True, default=none, help="the model's name in the store")
    parser.add_argument(
        "--out", type=Path, required=True, default=none, help="folder of the Parquet parts; begun, it goes on"
    )
    version = get_type_hints(Manifest, include_extras=True)["version"]
    add_number(parser, "--version", version, help="version of the model", unset="the pinned or latest")
    parser.add_argument(
        "--store", type=Path, default=none, help=f"the store's folder (default: {STORE}, or the bundled models)"
    )
    parser.add_argument("--proposal", choices=PROPOSALS, default="auto", help="how log P(x) is estimated")
    add_number(parser, "--num-samples", of_scores["num_samples"], help="samples per image", unset="the proposal's own")
    add_number(parser, "--seed", of_scores["seed"], help="seed of the noise", default=0)
    add_number(
        parser,
        "--fdr",
        _FDR,
        help="decide over all images, so that this share of anomalies are false alarms",
        unset="p ≤ 0.05",
    )
    parser.add_argument("--resize", action="store_true", help="resample images of another size, as ?resize=true does")
    add_number(parser, "--shard-size", _SHARD, help="images of a part", unset="64 to 1024")
    add_number(parser, "--workers", _WORKERS, help="processes, of one thread each", unset="one for each core")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        default=none,
        metavar="ADDRESS",
        help=f"score on a Ray cluster (without ADDRESS: {_HERE})",
    )


def run(parsed: argparse.Namespace) -> int:
    """Score; returns the exit status: 0, 2 for an error that has a sentence, 130 after Ctrl-C."""
    print_any_name()
    try:
        from service.scoring.cluster import RayActors
        from service.scoring.crew import Processes
        from service.scoring.errors import ScoringError
        from service.scoring.inputs import find_inputs
        from service.scoring.run import Plan, default_shard_size, score
        from service.scoring.scorer import Options
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        told = f"score needs {error.name}, which is not installed: pip install 'logpx[service,cpu,score]'"
        print(f"error: {told}", file=sys.stderr)
        return 2
    try:
        options = Options.of(
            parsed.proposal, getattr(parsed, "num_samples", None), seed=parsed.seed, resize=parsed.resize
        )
        store = getattr(parsed, "store", None) or Path(os.environ.get(STORE, "").strip() or BUNDLED)
        stored = open_version(store, parsed.model, getattr(parsed, "version", None))
        if warning := check_resampler(stored.manifest.preparation):
            print(f"warning: {stored.path}: {warning}", file=sys.stderr)
        inputs = find_inputs(parsed.images, parsed.out)
        size = getattr(parsed, "shard_size", None) or default_shard_size(len(inputs))
        plan = Plan(stored, options, getattr(parsed, "fdr", None), inputs, size)
        workers = getattr(parsed, "workers", None)
        crew = RayActors(parsed.ray or None, workers) if hasattr(parsed, "ray") else Processes(workers)
        score(plan, parsed.out, crew)
    except (ScoringError, StoreError, ResamplerError, TooFewSamplesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the parts that are done are kept, and the same command goes on with the others",
            file=sys.stderr,
        )
        return 130
    return 0
