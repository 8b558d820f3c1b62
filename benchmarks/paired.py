"""Two models on the same test images, one by one: the difference is known far better than either's level.

python benchmarks/paired.py model_store/artifacts/mnist/4 runs/resnet --data mnist --records runs/paired --images 2000

Images are taken in a random order that depends on nothing but their number, binarised as `python -m training evaluate`
binarises them, and each estimate is the one that command would make. They are kept in RECORDS after every few images:
run again, with more images or after a kill, it goes on where it was. Files are named by a hash of graphs and images, so
a model that was trained anew is scored anew. The standard error of a mean over n of N images is sd/√n·√(1 − n/N), since
these N are all there are.
"""

import argparse
import hashlib
import math
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.engine.arrays import Float64Array
from service.engine.chunks import complete
from service.engine.model import Model
from service.engine.proposal import DEFAULT_NUM_SAMPLES, DEFAULT_SEED
from service.engine.runtime import Runtime
from training.data.download import locate
from training.data.image_sets import Reading
from training.data.preparation import Preparation
from training.data.sources import open_source
from training.files import write_atomically
from training.fit.loaded_model import load_model
from training.fit.run import RUN, open_run
from training.publish.evaluation import Protocol, fresh_batches
from training.publish.export import export
from training.publish.held_out import held_out_images
from training.publish.publication import describe, load_engine, open_stored

SAVED_EVERY = 20
CHUNK_ROWS = 64
"""Of a convolution network's activations so many stay in a core's cache: a fifth faster than 512 rows."""
PROPOSALS = ("laplace", "encoder")


def load(path: Path, runtime: Runtime) -> tuple[Model, bytes]:
    """A run's model, or one of a store, and its graphs' bytes."""
    if not (path / RUN).is_file():
        stored = open_stored(path)
        return Model.open(stored, runtime=runtime, chunk_rows=CHUNK_ROWS), stored.encoder + stored.decoder
    run = open_run(path)
    protocol = Protocol("laplace", DEFAULT_NUM_SAMPLES["laplace"], DEFAULT_SEED)
    description, graphs = describe(run.description, "run", protocol), export(load_model(run)[0])
    model = load_engine(description, graphs, runtime=runtime, chunk_rows=CHUNK_ROWS)
    return model, graphs.encoder + graphs.decoder


def read(file: Path) -> Float64Array:
    """Estimates of log P(x) and whether they are reliable, for as many images as there are: [n, 2·proposals]."""
    return np.load(file) if file.exists() else np.empty((0, 2 * len(PROPOSALS)))


def score(model: Model, images: NDArray[np.float32], file: Path) -> Float64Array:
    """Estimates of all of these images, those in the file not computed again."""
    found = read(file)
    with tqdm(total=len(images), initial=min(len(found), len(images)), desc=file.stem, unit="image") as bar:
        while len(found) < len(images):
            batch = images[len(found) : len(found) + SAVED_EVERY]
            columns = []
            for proposal in PROPOSALS:
                record = complete(
                    model.log_likelihood(
                        batch, proposal=proposal, num_samples=DEFAULT_NUM_SAMPLES[proposal], seed=DEFAULT_SEED
                    )
                )
                columns += [record.log_likelihood, record.reliable]
            found = np.concatenate([found, np.stack(columns, axis=1)])
            write_atomically(file, partial(_save, found))
            bar.update(len(batch))
    return found[: len(images)]


def _save(rows: Float64Array, stream: IO[bytes]) -> None:
    np.save(stream, rows)


def mean(values: Float64Array, out_of: int) -> str:
    """The mean with its standard error, as one of all `out_of`."""
    error = values.std(ddof=1) / math.sqrt(len(values)) * math.sqrt(1 - len(values) / out_of)
    return f"{values.mean():.4f} ± {error:.4f}"


def main() -> None:
    """Score what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs=2, help="runs, or versions of a store, that prepare pixels alike")
    parser.add_argument("--data", required=True)
    parser.add_argument("--records", type=Path, required=True, help="folder for the estimates, a file a model")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: one a core")
    parsed = parser.parse_args()
    models, graphs = zip(*(load(path, Runtime("cpu", parsed.threads)) for path in parsed.models), strict=True)
    fitted = [Preparation.of_model(model.description) for model in models]
    reading = Reading(preparation=fitted[0])
    images, what = held_out_images(open_source(locate(parsed.data), reading), models[0].description.provenance)
    pixels = [(said.scale, said.binarisation) for said in (model.description.preparation for model in models)]
    if fitted[0] != fitted[1] or pixels[0] != pixels[1]:
        raise SystemExit("the two models do not prepare pixels alike: their estimates are of different images")
    binarised = np.concatenate(list(fresh_batches(models[0], images, seed=DEFAULT_SEED)))
    chosen = np.random.default_rng(DEFAULT_SEED).permutation(len(images))[: parsed.images]
    parsed.records.mkdir(parents=True, exist_ok=True)
    first, second = (
        score(
            model,
            binarised[chosen],
            parsed.records / f"{hashlib.sha256(content + binarised.tobytes()).hexdigest()}.npy",
        )
        for model, content in zip(models, graphs, strict=True)
    )
    print(f"{len(chosen)} of the {len(images)} images of {what}; standard errors are those of a mean over all of them")
    print(f"{'':16}{parsed.models[0]!s:>26}{parsed.models[1]!s:>26}{'difference':>26}")
    for index, proposal in enumerate(PROPOSALS):
        label = f"{proposal}, {DEFAULT_NUM_SAMPLES[proposal]}"
        columns = [first[:, 2 * index], second[:, 2 * index], second[:, 2 * index] - first[:, 2 * index]]
        print(f"{label:16}" + "".join(f"{mean(column, len(images)):>26}" for column in columns))
        shares = "".join(f"{found[:, 2 * index + 1].mean():>26.1%}" for found in (first, second))
        print(f"{'  reliable':16}{shares}")


if __name__ == "__main__":
    main()
