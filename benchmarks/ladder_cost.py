"""What `auto` takes an image, beside the default of before annealing, `laplace` as a03dac9 had it.

    PYTHONPATH=. python benchmarks/ladder_cost.py --data ../shared/data --font FONT.ttf [--images 64] [--rounds 3]
    PYTHONPATH=. python benchmarks/ladder_cost.py --model STORE/NAME --pixels IMAGES.npy [--images 24]

Each set is one batch. Both commits are processes of their own, in turn, with all cores, and the models that each
brings; with --model both open the same one. The sets are those of benchmarks/ladder.py, which were not tuned on. Run it
on an idle machine.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hostile_parts.honest import checkout
from ladder import arguments, chosen_sets

BEFORE = "a03dac9"
BARS = {"test digits": 1.2, "omniglot": 0.35, "letters": 0.35}
BAR_OF_OWN = 1 / 8
OF_PREPARATION = ("scale", "binarisation", "binarisation_seed")
"""What a manifest said of it then."""
MEASURE = """
import json, sys, time
import numpy as np
from pathlib import Path
from model_store import open_version
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.runtime import Runtime
stored, images, proposal = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
model = Model.open(open_version(stored.parent, stored.name), runtime=Runtime("cpu"), tried=True)
complete(model.log_likelihood(images[:2], proposal=proposal))
rows, started, processor = model.decoder_rows, time.perf_counter(), time.process_time()
record = complete(model.log_likelihood(images, proposal=proposal))
print(json.dumps({"ms": 1000 * (time.perf_counter() - started) / len(images),
                  "processor": 1000 * (time.process_time() - processor) / len(images),
                  "rows": (model.decoder_rows - rows) / len(images), "reliable": float(record.reliable.mean())}))
"""


def main() -> None:
    """Print a line for each set."""
    parser = arguments(__doc__, images=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", default=BEFORE)
    parsed = parser.parse_args()
    print(f"{'':22}{'ms':>28}{'rows':>18}{'reliable':>16}    ratio of ms (bar)   of processor time")
    print(f"{'':22}{'before':>10}{'laplace':>9}{'auto':>9}{'before':>9}{'auto':>9}{'before':>8}{'auto':>8}", flush=True)
    with checkout(parsed.before) as before, tempfile.TemporaryDirectory() as folder:
        here = Path(__file__).parents[1]
        for name, stored, pixels in chosen_sets(parser, parsed):
            file = Path(folder) / "images.npy"
            np.save(file, pixels)
            own = _as_before(stored, folder) if parsed.model else before / "model_store" / "artifacts" / stored.name
            kinds = {
                "before": (before, own, "laplace"),
                "laplace": (here, stored, "laplace"),
                "auto": (here, stored, "auto"),
            }
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
            for number in range(parsed.rounds):
                for kind in sorted(kinds, reverse=bool(number % 2)):
                    found[kind].append(_measure(*kinds[kind], file))
            middle = {kind: _medians(records) for kind, records in found.items()}
            bar = BAR_OF_OWN if parsed.model else BARS.get(name)
            print(_line(name, middle, bar), flush=True)


def _as_before(stored: Path, folder: str) -> Path:
    """A copy of the model whose manifest has no entries that came later; its graphs are the same."""
    own = Path(folder) / stored.name
    shutil.copytree(stored, own, dirs_exist_ok=True)
    for file in own.glob("*/manifest.json"):
        manifest = json.loads(file.read_text())
        manifest.pop("space", None)
        manifest["preparation"] = {key: manifest["preparation"][key] for key in OF_PREPARATION}
        file.write_text(json.dumps(manifest))
    return own


def _measure(tree: Path, stored: Path, proposal: str, file: Path) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, str(stored.resolve()), str(file), proposal]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    record: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return record


def _medians(records: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(record[key] for record in records) for key in records[0]}


def _line(name: str, of: dict[str, dict[str, Any]], bar: float | None) -> str:
    before, laplace, auto = (of[kind] for kind in ("before", "laplace", "auto"))
    ratio, processor = (auto[key] / before[key] for key in ("ms", "processor"))
    told = "" if bar is None else f" ({bar:.3g}: {'kept' if ratio <= bar else 'MISSED'})"
    return (
        f"{name:22}{before['ms']:10.1f}{laplace['ms']:9.1f}{auto['ms']:9.1f}{before['rows']:9.0f}{auto['rows']:9.0f}"
        f"{before['reliable']:8.2f}{auto['reliable']:8.2f}    {ratio:.2f}{told}   {processor:.2f}"
    )


if __name__ == "__main__":
    main()
