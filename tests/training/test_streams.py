"""What streams is trained on as if it were in memory: same parts, same hash, same order, same weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.test_parquet import png, structs, write
from training.configuration import Configuration
from training.data.image_files import ImageFiles, Pixels, decode
from training.data.image_sets import Reading
from training.data.sources import StreamedSource, open_source, read_source
from training.data.splits import DataSplits, on_device, split
from training.data.streams import ImageStream
from training.errors import CorruptImageError, DataError
from training.fit.run import Run, create_run, describe_run, open_run
from training.fit.trainer import fit

CPU = torch.device("cpu")
SHORT = Configuration(
    width=12,
    latent_dim=2,
    num_samples=2,
    epochs=2,
    batch_size=16,
    num_validation=9,
    num_calibration=7,
    num_test=5,
    finish_epochs=1,
)
STREAM, LOAD = Reading(max_memory=0), Reading()
Folder = Callable[[str, int], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A data set of n different images, as files or as Parquet of seven rows a row group."""

    def make(kind: str, num_images: int) -> Path:
        images = np.random.default_rng(num_images).integers(0, 256, (num_images, 4, 3), dtype=np.uint8)
        path = tmp_path / kind
        path.mkdir()
        if kind == "parquet":
            for start in range(0, num_images, 30):
                column = structs([png(image) for image in images[start : start + 30]])
                write(path / f"train-{start:05}.parquet", {"image": column}, row_group_size=7)
        else:
            for index, image in enumerate(images):
                Image.fromarray(image).save(path / f"{index:03}.png")
        return path

    return make


def streamed(path: Path, reading: Reading = STREAM) -> StreamedSource:
    source = open_source(path, reading)
    assert isinstance(source, StreamedSource)
    return source


def everything(stream: ImageStream) -> Pixels:
    return stream.read(np.arange(len(stream)))


def new_run(folder: Path, splits: DataSplits, configuration: Configuration) -> Run:
    return create_run(folder, describe_run(configuration, splits, source="here"))


def weights(run: Run) -> list[torch.Tensor]:
    checkpoint = run.load_checkpoint(CPU)
    assert checkpoint is not None
    return [*checkpoint["model"].values(), *checkpoint["averaged"].values()]


def equal(first: Run, second: Run) -> bool:
    return all(torch.equal(*pair) for pair in zip(weights(first), weights(second), strict=True))


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_a_stream_is_the_same_data_as_an_array(folder: Folder, kind: str) -> None:
    path = folder(kind, 77)
    loaded, stream = read_source(path), streamed(path)
    assert stream.sha256 == loaded.sha256
    assert stream.train.shape == loaded.train.shape
    assert (everything(stream.train) == loaded.train).all()
    whole, parts = split(loaded, SHORT), split(stream, SHORT)
    assert isinstance(parts.train, ImageStream)
    assert (everything(parts.train) == whole.train).all()
    assert (parts.validation == whole.validation).all()
    assert (parts.calibration == whole.calibration).all()
    assert (parts.test == whole.test).all()
    assert torch.equal(parts.pixel_mean(), whole.pixel_mean())
    assert torch.equal(parts.pixel_spread(), whole.pixel_spread())


def test_what_fits_is_loaded(folder: Folder) -> None:
    path = folder("files", 20)
    num_bytes = 20 * 12
    assert not isinstance(open_source(path, Reading(max_memory=num_bytes / 2**30)), StreamedSource)
    assert isinstance(open_source(path, Reading(max_memory=(num_bytes - 1) / 2**30)), StreamedSource)


def test_a_streamed_folder_trains_to_the_weights_of_a_loaded_one(folder: Folder, tmp_path: Path) -> None:
    path = folder("files", 77)
    runs = []
    for name, reading in {"loaded": LOAD, "streamed": STREAM, "workers": replace(STREAM, workers=2)}.items():
        splits = split(open_source(path, reading), SHORT)
        runs.append(new_run(tmp_path / f"run-{name}", splits, SHORT))
        fit(runs[-1], splits, device=CPU, on_epoch=lambda figures, model: None)
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_a_streamed_run_that_is_interrupted_resumes_to_the_same_weights(
    folder: Folder, tmp_path: Path, kind: str
) -> None:
    splits = split(streamed(folder(kind, 77)), SHORT)
    whole, broken = (new_run(tmp_path / f"run-{name}", splits, SHORT) for name in ("whole", "broken"))
    fit(whole, splits, device=CPU, on_epoch=lambda figures, model: None)

    def stop(figures: object, model: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, splits, device=CPU, on_epoch=stop)
    assert not equal(whole, broken)
    fit(open_run(broken.folder), splits, device=CPU, on_epoch=lambda figures, model: None)
    assert equal(whole, broken)


def test_the_order_is_that_of_seed_and_epoch_and_each_image_comes_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = split(streamed(folder("parquet", 77)), SHORT).train
    assert isinstance(stream, ImageStream)
    orders = {}
    for block_bytes in (64 * 2**20, 1500):
        monkeypatch.setattr("training.data.streams.CACHE_BYTES", block_bytes)
        for seed in (1, 2):
            first, again = (stream.shuffled(torch.Generator().manual_seed(seed)) for _ in range(2))
            assert (first == again).all()
            assert sorted(first.tolist()) == list(range(len(stream)))
            orders[block_bytes, seed] = first.tolist()
    assert len(set(map(tuple, orders.values()))) == 4


def test_a_window_holds_whole_blocks_and_no_more_than_fit(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = streamed(folder("parquet", 77)).train
    largest = int(stream.encoded.block_bytes.max())
    monkeypatch.setattr("training.data.streams.CACHE_BYTES", 2 * largest)
    order = stream.shuffled(torch.Generator().manual_seed(3))
    assert stream.encoded.blocks is not None
    blocks = stream.encoded.blocks[order].tolist()
    first_seen, last_seen = (
        {block: place for place, block in items} for items in (reversed(list(enumerate(blocks))), enumerate(blocks))
    )
    for place in range(77):
        open_blocks = [block for block in first_seen if first_seen[block] <= place <= last_seen[block]]
        assert stream.encoded.block_bytes[open_blocks].sum() <= 2 * largest
    assert len({abs(blocks[place] - blocks[place + 1]) for place in range(76)}) > 2  # blocks come in no order


def test_workers_change_no_pixel(folder: Folder) -> None:
    path = folder("parquet", 230)
    alone, together = (streamed(path, replace(STREAM, workers=workers)) for workers in (0, 2))
    assert alone.sha256 == together.sha256
    order = on_device(together.train, CPU).epoch(50, generator=torch.Generator().manual_seed(5))
    expected = on_device(alone.train, CPU).epoch(50, generator=torch.Generator().manual_seed(5))
    batches = list(zip(order, expected, strict=True))
    assert [len(batch) for batch, _ in batches] == [50, 50, 50, 50, 30]
    assert all(torch.equal(*pair) for pair in batches)


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_corrupt_images_are_counted_and_skipped_only_when_asked(folder: Folder, kind: str) -> None:
    path = folder(kind, 60)
    if kind == "files":
        for index in (3, 40):
            file = path / f"{index:03}.png"
            file.write_bytes(file.read_bytes()[:45])
    else:
        contents = [png(np.full((4, 3), index, np.uint8)) for index in range(20)]
        contents[3] = contents[3][:45]
        contents[11] = b""
        write(path / "train-more.parquet", {"image": structs(contents)}, row_group_size=7)
    with pytest.raises(CorruptImageError, match=r"2 of (60|80) images cannot be read: --skip-corrupt leaves them out"):
        open_source(path, STREAM)
    stream = streamed(path, replace(STREAM, skip_corrupt=True))
    loaded = read_source(path, skip_corrupt=True)
    assert stream.skipped.keys() == loaded.skipped.keys()
    assert len(stream.skipped) == 2
    assert stream.sha256 == loaded.sha256
    assert (everything(stream.train) == loaded.train).all()


def test_an_image_of_another_size_is_named(folder: Folder) -> None:
    path = folder("files", 20)
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(path / "007.png")
    with pytest.raises(DataError, match=r"007\.png: is 3×4 \(height × width\), but the first image is 4×3"):
        open_source(path, replace(STREAM, skip_corrupt=True))


def test_an_image_that_changes_while_it_streams_is_named(folder: Folder) -> None:
    path = folder("files", 20)
    stream = streamed(path).train
    (path / "004.png").unlink()
    with pytest.raises(CorruptImageError, match=r"004\.png: cannot be read"):
        everything(stream)


def test_files_of_zeros_and_ones_are_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (20, 4, 3), dtype=np.uint8)
    write(tmp_path / "a.parquet", {"image": structs([png(image) for image in bits])})
    stream = streamed(tmp_path)
    assert stream.sha256 == read_source(tmp_path).sha256
    assert (everything(stream.train)[:, 0] == 255 * bits).all()
    assert stream.train.black_and_white
    write(tmp_path / "a.parquet", {"image": structs([png(0 * image) for image in bits])})
    with pytest.raises(DataError, match="every pixel of this and of every other image is 0"):
        streamed(tmp_path)


def test_own_parts_that_stream_are_held_to_the_configured_numbers(tmp_path: Path) -> None:
    images = np.arange(1, 61, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
    for part, rows in {"train": slice(30), "validation": slice(30, 45), "test": slice(45, 60)}.items():
        write(tmp_path / f"{part}.parquet", {"image": structs([png(image) for image in images[rows]])})
    splits = split(streamed(tmp_path), SHORT)
    found = {part: set(getattr(splits, part)[:, 0, 0, 0].tolist()) for part in ("validation", "calibration", "test")}
    assert {part: len(values) for part, values in found.items()} == {"validation": 9, "calibration": 7, "test": 5}
    assert found["validation"] < set(range(31, 46))
    assert found["test"] < set(range(46, 61))
    assert found["test"] != set(range(46, 51))  # not those that come first
    assert isinstance(splits.train, ImageStream)
    train = set(everything(splits.train)[:, 0, 0, 0].tolist())
    assert train | found["calibration"] == set(range(1, 31))
    assert not train & found["calibration"]


def test_a_deep_stream_is_what_it_is_in_memory(tmp_path: Path) -> None:
    for index, levels in enumerate(np.random.default_rng(1).integers(0, 2**16, (20, 4, 3), dtype=np.uint16)):
        Image.fromarray(levels).save(tmp_path / f"{index:02}.png")
    stream, loaded = streamed(tmp_path), read_source(tmp_path)
    assert stream.train.dtype == np.float32
    assert stream.sha256 == loaded.sha256
    first = decode(ImageFiles(tmp_path), 0, stream.train.pixel_format)
    assert (first == loaded.train[0]).all()
