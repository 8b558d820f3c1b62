"""The peers of `benchmarks/anomaly.py`: outlier detectors that are trained on the same images and score the same sets.

Runs in an environment of its own, which benchmarks/anomaly.py says how to make:

    python outlier_detectors.py images.npz scores.npz NAME [NAME…]

images.npz has `train` and any number of other arrays, uint8 [N, H, W]; scores.npz gets one array [N] for each detector
and each set but `train`, called `NAME/SET`, higher for stranger. Every detector keeps its own defaults, but for the
shape of its networks where it has none for images, and the epochs of the one whose default is a placeholder.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
"""Images in [0, 1] as rows, [N, P]."""
Score = Callable[[Float32Array], NDArray[np.float64]]

COMPONENTS = 50
"""Of the principal components, as many as the models have latent dimensions."""
NEIGHBOURS = 5


def pyod_vae(train: Float32Array) -> Score:
    """PyOD's VAE with its defaults: 30 epochs; the score is the distance to one random reconstruction."""
    from pyod.models.vae import VAE

    detector = VAE(random_state=0, verbose=0).fit(train)
    return lambda rows: np.asarray(detector.decision_function(rows), np.float64)


def alibi_vae(train: Float32Array) -> Score:
    """alibi-detect's OutlierVAE with fully connected networks: mean squared error of 10 reconstructions."""
    import tensorflow as tf
    from alibi_detect.od import OutlierVAE

    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    pixels = train.shape[1]
    encoder = tf.keras.Sequential(
        [layers.InputLayer(input_shape=(pixels,)), layers.Dense(512, "relu"), layers.Dense(512, "relu")]
    )
    decoder = tf.keras.Sequential(
        [
            layers.InputLayer(input_shape=(COMPONENTS,)),
            layers.Dense(512, "relu"),
            layers.Dense(512, "relu"),
            layers.Dense(pixels, "sigmoid"),
        ]
    )
    detector = OutlierVAE(threshold=1.0, encoder_net=encoder, decoder_net=decoder, latent_dim=COMPONENTS, samples=10)
    detector.fit(train, epochs=20, batch_size=64, verbose=False)
    return lambda rows: np.asarray(detector.score(rows)[1], np.float64)


def isolation_forest(train: Float32Array) -> Score:
    """scikit-learn's isolation forest on principal components."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest

    reduction = PCA(COMPONENTS, random_state=0).fit(train)
    forest = IsolationForest(random_state=0).fit(reduction.transform(train))
    return lambda rows: -forest.score_samples(reduction.transform(rows))


def nearest_neighbours(train: Float32Array) -> Score:
    """Distance, among principal components, to the fifth nearest training image."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    reduction = PCA(COMPONENTS, random_state=0).fit(train)
    index = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(reduction.transform(train))
    return lambda rows: index.kneighbors(reduction.transform(rows))[0][:, -1]


DETECTORS: Mapping[str, Callable[[Float32Array], Score]] = {
    "pyod_vae": pyod_vae,
    "alibi_vae": alibi_vae,
    "isolation_forest": isolation_forest,
    "nearest_neighbours": nearest_neighbours,
}


def as_rows(images: NDArray[Any]) -> Float32Array:
    """[N, H, W] of 8 bits → [N, P] in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def main(source: str, target: str, names: list[str]) -> None:
    """Train each detector, score each set."""
    with np.load(source, allow_pickle=False) as archive:
        sets = {name: as_rows(archive[name]) for name in archive.files}
    train = sets.pop("train")
    scores: dict[str, NDArray[np.float64]] = {}
    for name in names:
        started = time.perf_counter()
        score = DETECTORS[name](train)
        print(f"  {name}: trained in {time.perf_counter() - started:.0f} s", flush=True)
        scores |= {f"{name}/{key}": score(rows) for key, rows in sets.items()}
    np.savez(target, allow_pickle=False, **scores)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
