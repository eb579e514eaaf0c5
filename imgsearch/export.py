r"""Export of a collection to one Parquet file, and import from it.

One row per path, sorted by ``image_id`` and path, with the columns ``image_id``, ``sha256``,
``path``, ``size`` (bytes), ``width``, ``height``, ``format``, ``mtime_ns``, ``added_at``,
``date_taken``, ``camera``, ``orientation``, ``has_gps``, ``attributes`` (as JSON) and ``vector``,
a fixed-size list of float32. The metadata of the file contain a JSON document under the key
``imgsearch``: collection, encoder, identity, fingerprint, index, counts and a SHA-256 of the
content. In ``path``, a backslash is written as ``\\`` and a byte that is not UTF-8 as ``\xHH``.
The image files themselves are not exported. pandas, polars, DuckDB and Hugging Face datasets
open the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imgsearch import config, images
from imgsearch.collection import WITHOUT_VECTORS, Collection, checksum
from imgsearch.encoders.base import fingerprint_of
from imgsearch.errors import ConfigError, DatasetError, ImgSearchError, StoreDamaged, printable
from imgsearch.filters import check_attributes
from imgsearch.io import absolute, atomic
from imgsearch.stores.index import IndexSpec
from imgsearch.stores.metadata import CollectionRow, ImageRow, MetadataStore
from imgsearch.stores.vectors import VectorStore

GROUP_BYTES = 32 * 1024 * 1024
"""Size in bytes of the vectors of a row group, which is read and written as a whole."""

ROW_BYTES = 32 * 1024
"""Upper limit of the size in bytes of a row without its vector. A path has at most 4,096 bytes
before it is escaped, and the attributes have at most 8,192."""

Progress = Callable[[int, int], None]

_COLUMNS = {
    "image_id": pa.int64(),
    "sha256": pa.string(),
    "path": pa.string(),
    "size": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "format": pa.string(),
    "mtime_ns": pa.int64(),
    "added_at": pa.timestamp("us", "UTC"),
}
_NULLABLE = {
    "date_taken": pa.timestamp("us"),
    "camera": pa.string(),
    "orientation": pa.int32(),
    "has_gps": pa.bool_(),
    "attributes": pa.string(),
}
_COLUMNS |= _NULLABLE
_FROM_COLLECTION = {"encoder", "identity", "fingerprint", "index", "dim"}


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[2] = 2
    collection: str
    encoder: str = Field(pattern=r"^[^\x00-\x1f]{1,4096}$")
    identity: dict[str, Any]
    fingerprint: str
    index: str = Field(max_length=255)
    dim: int = Field(ge=2, le=32_768)
    images: int
    paths: int
    sha256: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        IndexSpec.parse(self.index)
        if fingerprint_of(self.identity) != self.fingerprint:
            raise ValueError("the fingerprint does not belong to the identity of the encoder")
        if self.identity.get("dim", self.dim) != self.dim:
            raise ValueError("the dimension of the vectors is not that of the encoder")
        return self


def _schema(dim: int) -> pa.Schema:
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    types = {**_COLUMNS, "vector": vector}
    return pa.schema(
        [pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in types.items()]
    )


def _group_rows(dim: int) -> int:
    return max(1, min(10_000, GROUP_BYTES // (4 * dim)))


def _escape(path: str) -> str:
    data = path.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        return chr(0xDC00 + int(match[1], 16)) if match[1] else "\\"

    return re.sub(r"\\\\|\\x([89a-f][0-9a-f])", character, text)


def _key(row: ImageRow) -> tuple[int, str]:
    return row.image_id, _escape(row.path)


def _values(row: ImageRow) -> list[Any]:
    """Return the values of a row, one for each column."""
    attributes = json.dumps(row.attributes, sort_keys=True) if row.attributes else None
    row = row._replace(path=_escape(row.path), attributes=attributes)
    return [getattr(row, name) for name in _COLUMNS]


def _update(digest: Any, rows: list[ImageRow], vectors: np.ndarray) -> None:
    """Add rows to the checksum of the content, which does not depend on the file format."""
    for row, vector in zip(rows, vectors, strict=True):
        values = json.dumps([str(value) for value in _values(row)])
        digest.update(values.encode() + np.asarray(vector, "<f4").tobytes())


# ---------------------------------------------------------------- export


def export_collection(
    collection: Collection, path: str | Path, *, progress: Progress | None = None
) -> Path:
    """Write the ready images to a Parquet file, as :meth:`imgsearch.Gallery.export` describes."""
    row, ids = collection.row, collection.metadata.ids(collection.name)
    schema, step = _schema(row.dim), _group_rows(row.dim)
    digest, images_written, paths_written = hashlib.sha256(), 0, 0
    # Without compression and dictionaries a file takes no more space in memory than on disk;
    # embeddings hardly compress anyway.
    how = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    with atomic(path) as file, pq.ParquetWriter(file, schema, **how) as writer:
        for start in range(0, len(ids), step):
            if progress is not None:
                progress(start, len(ids))
            rows, vectors = _ready(collection, ids[start : start + step])
            images_written += len({row.image_id for row in rows})
            paths_written += len(rows)
            _update(digest, rows, vectors)
            writer.write_batch(_to_batch(rows, vectors, schema), row_group_size=step)
        header = _Header(
            **{name: getattr(row, name) for name in _FROM_COLLECTION},
            collection=row.name,
            images=images_written,
            paths=paths_written,
            sha256=digest.hexdigest(),
        )
        writer.add_key_value_metadata({"imgsearch": header.model_dump_json()})
    return absolute(path)


def _ready(collection: Collection, ids: np.ndarray) -> tuple[list[ImageRow], np.ndarray]:
    """Return the rows of ready images, sorted, and the vector of each row."""
    with_vector, vectors = collection.vectors.get(collection.name, ids)
    found = dict(zip(with_vector.tolist(), vectors, strict=True))
    # Read the rows after the vectors, so that images deleted in between have no row either.
    stored = collection.metadata.by_id(collection.name, ids.tolist())
    rows = sorted((row for known in stored.values() for row in known), key=_key)
    broken = [
        image_id
        for image_id, (row, *_) in stored.items()
        if image_id not in found or checksum(found[image_id]) != row.vector_crc
    ]
    if broken:
        raise StoreDamaged(
            collection.vectors.where,
            f"the vectors of {len(broken)} images of {collection.name!r} are missing or damaged: "
            f"{WITHOUT_VECTORS}",
        )
    return rows, np.stack([found[row.image_id] for row in rows]) if rows else vectors[:0]


def _to_batch(rows: list[ImageRow], vectors: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    values = zip(*map(_values, rows), strict=True) if rows else ((),) * len(_COLUMNS)
    kinds = zip(values, _COLUMNS.values(), strict=True)
    columns = [pa.array(column, kind) for column, kind in kinds]
    kind = schema.field("vector").type
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind))
    return pa.record_batch(columns, schema=schema)


# ---------------------------------------------------------------- import


def import_collection(
    path: str | Path,
    collection: str | None = None,
    *,
    progress: Progress | None = None,
    settings: config.Settings | None = None,
) -> int:
    """Create a collection from an exported file, and return the number of stored paths.

    The name is by default the one in the file. `progress` is called with the number of paths
    stored so far and in total, also during validation. The whole file is validated first (a
    DatasetError names what is wrong); if the import fails later, the collection is dropped.
    """
    path = absolute(path)
    settings = settings or config.load_settings()
    progress = progress or (lambda _, __: None)
    with _open(path) as (parquet, header):
        name = config.collection_name(collection or header.collection)
        with MetadataStore.open(settings) as metadata, VectorStore.open(settings) as vectors:
            if name in [row.name for row in metadata.collections()] + vectors.collections():
                raise ConfigError("collection", f"{name!r} already exists: use another name")
        for _ in _read(path, parquet, header):
            progress(0, header.paths)
        with _create(name, header, settings) as made:
            try:
                stored = 0
                for rows, found in _read(path, parquet, header):
                    ids = [row.image_id for row in rows]
                    made.store(rows, dict(zip(ids, found, strict=True)))
                    stored += len(rows)
                    progress(stored, header.paths)
                made.flush()
            except BaseException:
                with suppress(ImgSearchError):
                    made.drop()
                raise
    return stored


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise any error about the content of the file as a DatasetError."""
    try:
        yield
    except (OSError, ValueError, OverflowError, NotImplementedError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        reason = printable(" ".join(reason.split()))[:300]
        raise DatasetError(path, f"cannot be imported: {reason}") from None


@contextmanager
def _open(path: Path) -> Iterator[tuple[pq.ParquetFile, _Header]]:
    """Open a file and validate everything that does not require reading rows."""
    with _reading(path):
        file = path.open("rb")
    with file:
        with _reading(path):
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            document = (parquet.metadata.metadata or {}).get(b"imgsearch")
            if document is None:
                raise ValueError("its metadata have no entry 'imgsearch', which every export has")
            header = _Header.model_validate_json(document)
            if not parquet.schema_arrow.remove_metadata().equals(_schema(header.dim)):
                raise ValueError("its columns are not those of an export")
            if parquet.metadata.num_rows != header.paths:
                raise ValueError("the number of rows is not the one in its metadata")
            for number in range(parquet.metadata.num_row_groups):
                _check_row_group(number, parquet.metadata.row_group(number), header.dim)
        yield parquet, header


def _check_row_group(number: int, group: pq.RowGroupMetaData, dim: int) -> None:
    columns = [group.column(i) for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns)
    if (
        {column.compression for column in columns} != {"UNCOMPRESSED"}
        or any({*column.encodings} - {"PLAIN", "RLE"} for column in columns)
        or group.num_rows > _group_rows(dim)
        or size > _group_rows(dim) * (4 * dim + ROW_BYTES)
    ):
        raise ValueError(f"row group {number} is compressed, or larger than those of an export")


def _read(
    path: Path, parquet: pq.ParquetFile, header: _Header
) -> Iterator[tuple[list[ImageRow], np.ndarray]]:
    """Read and validate the rows, one row group at a time."""
    digest, images_read, hashes = hashlib.sha256(), 0, array("q")
    last: tuple[ImageRow, np.ndarray] | None = None
    with _reading(path):
        for number in range(parquet.metadata.num_row_groups):
            table = parquet.read_row_group(number, use_threads=False).combine_chunks()
            table.validate(full=True)
            values = zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)
            rows = [_row(dict(zip(_COLUMNS, row, strict=True))) for row in values]
            vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, header.dim)
            for row, vector in zip(rows, vectors, strict=True):
                if last is None or row.image_id > last[0].image_id:
                    images_read += 1
                elif _key(row) <= _key(last[0]):
                    raise ValueError("the rows are not sorted by image_id and path")
                elif row.sha256 != last[0].sha256 or not np.array_equal(vector, last[1]):
                    raise ValueError(f"the rows of image {row.image_id} contradict each other")
                last = row, vector
                hashes.append(hash(row.path))
            with np.errstate(all="ignore"):
                lengths = np.linalg.norm(vectors, axis=1)
            if not np.allclose(lengths, 1, atol=1e-3):  # NaN and infinity are not close either
                raise ValueError("a vector does not have length 1")
            _update(digest, rows, vectors)
            yield rows, vectors
        if len(np.unique(hashes)) != len(hashes):
            raise ValueError("a path occurs more than once")
        if (images_read, digest.hexdigest()) != (header.images, header.sha256):
            raise ValueError("the content does not match its checksum")


def _row(values: dict[str, Any]) -> ImageRow:
    escaped, path = values["path"], _unescape(values["path"])
    if escaped != _escape(path) or path != str(absolute(path)):
        raise ValueError(f"the path {escaped[:200]!r} is not absolute and normalized")
    attributes = check_attributes(json.loads(values["attributes"] or "{}"))
    row = ImageRow(**values | {"path": path, "attributes": attributes})
    digits = re.fullmatch("[0-9a-f]{64}", row.sha256)
    if not digits or images.image_id(row.sha256) != row.image_id:
        raise ValueError(f"the image_id of {escaped[:200]!r} does not match its sha256")
    known_format = re.fullmatch("[A-Z0-9]{1,16}", row.format)
    if row.width < 1 or row.height < 1 or row.size < 0 or not known_format:
        raise ValueError(f"the size or the format of {escaped[:200]!r} is invalid")
    year = row.date_taken.year if row.date_taken else 1970
    if year < 1000 or len(row.camera or "") > 200 or row.orientation not in (None, *range(1, 9)):
        raise ValueError(f"the Exif data of {escaped[:200]!r} are invalid")
    return row


def _create(name: str, header: _Header, settings: config.Settings) -> Collection:
    values = header.model_dump(include=_FROM_COLLECTION)
    row = CollectionRow(name=name, created_at=datetime.now(UTC), **values)
    with MetadataStore.open(settings) as metadata:
        metadata.create_collection(row)
    made = Collection.open(name, settings=settings)
    if made.row.created_at != row.created_at:  # another process created it in the meantime
        made.close()
        raise ConfigError("collection", f"{name!r} already exists: use another name")
    return made
