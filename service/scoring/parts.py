"""The Parquet files of a run: one for each shard, there whole or not at all."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_store import printable
from service.engine.anomaly.conformal import benjamini_hochberg
from service.engine.arrays import Float64Array
from service.scoring.errors import ScoringError
from service.scoring.scorer import COLUMNS

_PARTIAL = ".partial"
_FINGERPRINT, _DECIDED = b"logpx.fingerprint", b"logpx.decided"
_TYPES = {np.float64: pa.float64(), np.int64: pa.int64(), np.bool_: pa.bool_()}
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("index", pa.int64()),
        *((name, _TYPES[kind]) for name, kind in COLUMNS.items()),
        ("error", pa.string()),
    ]
)
_READER_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


def table_bytes(
    paths: Sequence[str],
    indices: Sequence[int | None],
    columns: Mapping[str, NDArray[Any]],
    errors: Sequence[str | None],
    metadata: Mapping[str, str],
    *,
    decided: bool,
) -> bytes:
    """A part as a Parquet file.

    Args:
        paths: of the images [B], as Batch has them.
        indices: theirs in these files.
        columns: arrays [B] by the names of `COLUMNS`; null where there is an error.
        errors: why an image has no results.
        metadata: of the file.
        decided: whether `is_anomaly` is known; else it is null until `decide` has seen every part.
    """
    failed = np.array([error is not None for error in errors], bool)
    arrays = [pa.array(paths, pa.string()), pa.array(indices, pa.int64())]
    for name in COLUMNS:
        unknown = np.ones(len(failed), bool) if name == "is_anomaly" and not decided else failed
        arrays.append(pa.array(columns[name], _SCHEMA.field(name).type, mask=unknown))
    arrays.append(pa.array([None if error is None else printable(error) for error in errors], pa.string()))
    stored = {key.encode(): value.encode() for key, value in metadata.items()}
    stored[_DECIDED] = str(decided).lower().encode()
    return _written(pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata(stored)))


def _written(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()


@dataclass
class Results:
    """The parts of one run in a folder, which the run holds.

    Args:
        folder: that exists.
        fingerprint: of the run: the model, the options and the list of images.
        num_parts: of the whole run.
    """

    folder: Path
    fingerprint: str
    num_parts: int
    done: set[int] = field(default_factory=set)

    def file(self, number: int) -> Path:
        """Where a part is."""
        return self.folder / f"part-{number:05}-of-{self.num_parts:05}.parquet"

    def find(self) -> None:
        """Look for the parts that there are, and remove what a kill has left unfinished.

        Raises:
            ScoringError: a part is of another run, or cannot be read.
        """
        names = {self.file(number).name: number for number in range(self.num_parts)}
        try:
            found = sorted(self.folder.iterdir())
            for file in found:
                if file.name.startswith(".part-") and file.name.endswith(_PARTIAL):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise ScoringError(f"{self.folder}: cannot be read ({error.strerror})") from error
        for file in found:
            if not (file.name.startswith("part-") and file.name.endswith(".parquet")):
                continue
            if _metadata(file).get(_FINGERPRINT) != self.fingerprint.encode() or file.name not in names:
                raise ScoringError(
                    f"{file} is of another run (another model, other options or other images): give another --out, or "
                    "remove the parts there"
                )
            self.done.add(names[file.name])

    def write(self, number: int, content: bytes) -> None:
        """Put a part into its place, on the disk, whole.

        Raises:
            ScoringError: it cannot be written.
        """
        file = self.file(number)
        temporary = file.with_name(f".{file.name}{_PARTIAL}")
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ScoringError(f"{file}: cannot be written ({error.strerror})") from error
        self.done.add(number)

    def decide(self, fdr: float) -> None:
        """Write Benjamini-Hochberg's decision over the p-values of all parts into each, part by part.

        The p-values of all images are in memory: 8 bytes each. Cut short, it begins anew and gives the same.

        Raises:
            ScoringError: a part cannot be read or written.
        """
        p_values = [self.p_values(number) for number in range(self.num_parts)]
        every = np.concatenate(p_values)
        known = ~np.isnan(every)
        is_anomaly = np.zeros(len(every), bool)
        is_anomaly[known] = benjamini_hochberg(every[known], fdr)
        ends = np.cumsum([len(part) for part in p_values])
        for number, end in enumerate(ends):
            if _metadata(self.file(number))[_DECIDED] == b"true":
                continue
            table = _read(self.file(number))
            part = slice(end - len(table), end)
            position = table.schema.get_field_index("is_anomaly")
            decision = pa.array(is_anomaly[part], pa.bool_(), mask=~known[part])
            metadata = {**table.schema.metadata, _DECIDED: b"true"}
            decided = table.set_column(position, "is_anomaly", decision).replace_schema_metadata(metadata)
            self.write(number, _written(decided))

    def p_values(self, number: int) -> Float64Array:
        """The p-values of a part, NaN of images that have none."""
        column = _read(self.file(number), ["p_value"]).column(0)
        return np.asarray(column.to_numpy(), np.float64)

    def counts(self, number: int) -> tuple[int, int]:
        """Images of a part that have results, and anomalies among them."""
        table = _read(self.file(number), ["p_value", "is_anomaly"])
        anomalies = table.column("is_anomaly").to_pylist()
        return len(table) - int(table.column("p_value").null_count), sum(map(bool, anomalies))

    def failures(self) -> Iterator[tuple[str, str]]:
        """Path and error of every image that has no results, in order."""
        for number in range(self.num_parts):
            table = _read(self.file(number), ["path", "index", "error"])
            for path, index, error in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if error is not None:
                    yield (f"{path}[{index}]" if index else path), error


def _metadata(file: Path) -> Mapping[bytes, bytes]:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.schema_arrow.metadata or {}
    except _READER_ERRORS as error:
        raise ScoringError(f"{file}: not a readable Parquet file ({_first_line(error)}): remove it") from error


def _read(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.read(columns=columns and list(columns), use_threads=False)
    except _READER_ERRORS as error:
        raise ScoringError(f"{file}: not a readable Parquet file ({_first_line(error)}): remove it") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
