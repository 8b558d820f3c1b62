"""Read Parquet files with a column of encoded images, as Hugging Face's datasets write them."""

import io
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.images.container_errors import ContainerError, EntryError

SUFFIX = ".parquet"
CACHE_BYTES = 64 * 2**20  # of encoded images that a process keeps in memory
_PREFERRED = ("image", "img")
_READER_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)


@dataclass(frozen=True)
class _Block:
    """One row group."""

    file: str
    column: str  # `name` or `name.bytes`
    row_group: int
    first_row: int  # of the row group, counted in the file
    num_rows: int
    num_bytes: int


class ParquetImages:
    """The images of Parquet files, row by row; a row group is a block.

    The column has binary values, or structs with a binary field `bytes`. If there are several such columns, the one
    called `image` or `img` is used.

    Raises:
        ContainerError: a file is not Parquet, or has no such column; the message names the file.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._blocks = [block for file in files for block in _read_footer(file)]
        rows = [block.num_rows for block in self._blocks]
        self.blocks: NDArray[np.int64] = np.repeat(np.arange(len(rows)), rows)
        self.block_bytes: NDArray[np.int64] = np.array([block.num_bytes for block in self._blocks], np.int64)
        self._starts = np.cumsum([0, *rows])
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """The state for worker processes, without cached row groups: each worker reads its own."""
        return self.__dict__ | {"_cache": OrderedDict()}

    def __len__(self) -> int:
        return len(self.blocks)

    def name(self, index: int) -> str:
        """The file and the row, counted from 0."""
        block = self._blocks[self.blocks[index]]
        return f"{block.file} row {block.first_row + index - int(self._starts[self.blocks[index]])}"

    def open(self, index: int) -> BinaryIO:
        """Open a row's bytes. Its row group stays in memory until others need the space."""
        number = int(self.blocks[index])
        content = self._read(number)[index - int(self._starts[number])].as_py()
        if content is None:
            raise EntryError(self.name(index), "holds no bytes of an image")
        return io.BytesIO(content)

    def _read(self, number: int) -> Any:
        """The row group's column of bytes, as a pyarrow array."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        room = CACHE_BYTES - self._blocks[number].num_bytes
        while self._cache and sum(self._blocks[cached].num_bytes for cached in self._cache) > room:
            self._cache.popitem(last=False)
        block = self._blocks[number]
        try:
            with pq.ParquetFile(block.file) as parquet:
                table = parquet.read_row_group(block.row_group, columns=[block.column], use_threads=False)
            values = table.column(0)
            if pa.types.is_struct(values.type):
                values = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks])
            if len(values) != block.num_rows:
                raise ValueError(f"{len(values)} rows, where {block.num_rows} belong")
        except _READER_ERRORS as error:
            raise ContainerError(
                block.file, f"row group {block.row_group} cannot be read ({_first_line(error)})"
            ) from error
        self._cache[number] = values
        return values


def _read_footer(file: Path) -> list[_Block]:
    try:
        with pq.ParquetFile(file) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise ValueError(f"row groups of {rows} rows, where {metadata.num_rows} belong")
        column = _choose_column(file, schema)
        num_bytes = [_column_bytes(group, column) for group in groups]
    except _READER_ERRORS as error:
        raise ContainerError(file, f"not a readable Parquet file ({_first_line(error)})") from error
    starts = [0, *itertools.accumulate(rows)]
    blocks = zip(range(len(groups)), starts, rows, num_bytes, strict=False)
    return [_Block(str(file), column, *block) for block in blocks]


def _choose_column(file: Path, schema: Any) -> str:
    columns = {field.name: column for field in schema if (column := _image_column(field)) is not None}
    chosen = next((name for name in _PREFERRED if name in columns), None)
    if chosen is None and len(columns) != 1:
        found = ", ".join(columns or schema.names)
        problem = "several columns could hold images" if columns else "no column of encoded images"
        raise ContainerError(
            file, f"{problem} (there are: {found}); one called 'image', of binary or of structs with bytes"
        )
    return columns[chosen or next(iter(columns))]


def _image_column(field: Any) -> str | None:
    if _is_binary(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and any(inner.name == "bytes" and _is_binary(inner.type) for inner in field.type):
        return f"{field.name}.bytes"
    return None


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column_bytes(group: Any, column: str) -> int:
    chunks = (group.column(index) for index in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
