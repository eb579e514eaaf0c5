"""A collection as one file: to keep, to move, to hand to a colleague.

The file is an uncompressed zip of three members: ``manifest.json`` (the
collection, the counts, a SHA-256 of the other two), ``images.jsonl`` (a row a
path) and ``vectors.f32`` (an image's vector after the other, little-endian
float32, in ascending order of ``image_id``). Image files are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imgsearch import config
from imgsearch.errors import CollectionNotFound, ConfigError, DatasetError
from imgsearch.gallery import Gallery
from imgsearch.stores.metadata import CollectionRow, ImageRow, MetadataStore

BATCH = 1_000
"""Images handled at a time: 8 MB of 2048-d vectors."""

MANIFEST_LIMIT = 1_000_000
"""Bytes of a manifest; an honest one has some hundreds."""

LINE_LIMIT = 100_000
"""Bytes of a row; an honest one has some hundreds, a path at most 4,096."""


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["imgsearch collection"]
    version: Literal[1]
    collection: str
    encoder: str
    identity: dict
    fingerprint: str
    dim: int = Field(ge=1, le=32_768)
    index: str
    images: int = Field(ge=0)
    paths: int = Field(ge=0)
    sha256: dict[Literal["images.jsonl", "vectors.f32"], str]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    image_id: int = Field(ge=0, lt=2**63)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, lt=2**63)
    width: int = Field(ge=1, lt=2**31)
    height: int = Field(ge=1, lt=2**31)
    format: str = Field(max_length=16)
    mtime_ns: int = Field(ge=-(2**63), lt=2**63)
    added_at: str

    def row(self) -> ImageRow:
        values = self.model_dump() | {"added_at": datetime.fromisoformat(self.added_at)}
        return ImageRow(**values, state="pending", vector_crc=0)


def export_collection(
    gallery: Gallery,
    path: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a collection into one file, whole or not at all.

    Parameters
    ----------
    gallery : Gallery
        The collection. Ready images only go into the file.
    path : path
        The file; one that is there is replaced at the end.
    progress : callable, optional
        Is called with the number of vectors written and of all of them. What it
        raises ends the work, and no file is left.

    Returns
    -------
    pathlib.Path
        The absolute path.

    Raises
    ------
    StoreError
        A store failed, or a ready image has no vector.
    OSError
        The file cannot be written.
    """
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    ids = gallery.metadata.ids(gallery.name)
    digests = {"images.jsonl": hashlib.sha256(), "vectors.f32": hashlib.sha256()}
    paths = 0
    try:
        with zipfile.ZipFile(part, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("images.jsonl", "w", force_zip64=True) as member:
                for line in _lines(gallery, ids):
                    digests["images.jsonl"].update(line)
                    member.write(line)
                    paths += 1
            with archive.open("vectors.f32", "w", force_zip64=True) as member:
                for n, block in enumerate(_blocks(gallery, ids)):
                    if progress is not None:
                        progress(n * BATCH, len(ids))
                    digests["vectors.f32"].update(block)
                    member.write(block)
            row = gallery.row
            manifest = _Manifest(
                format="imgsearch collection",
                version=1,
                collection=row.name,
                encoder=row.encoder,
                identity=row.identity,
                fingerprint=row.fingerprint,
                dim=row.dim,
                index=row.index,
                images=len(ids),
                paths=paths,
                sha256={name: digest.hexdigest() for name, digest in digests.items()},
            )
            archive.writestr("manifest.json", manifest.model_dump_json(indent=1))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def _lines(gallery: Gallery, ids: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(ids), BATCH):
        known = gallery.metadata.by_id(gallery.name, ids[start : start + BATCH].tolist())
        for image_id in sorted(known):
            for row in known[image_id]:
                values = row._asdict() | {"added_at": row.added_at.isoformat()}
                del values["state"], values["vector_crc"]
                yield json.dumps(values).encode() + b"\n"


def _blocks(gallery: Gallery, ids: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        found, vectors = gallery.vectors.get(gallery.name, part)
        if len(found) != len(part):
            raise DatasetError(
                gallery.name, f"{len(part) - len(found)} images have no vector: run repair first"
            )
        yield np.ascontiguousarray(vectors, "<f4").tobytes()


def import_collection(
    path: str | Path,
    collection: str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    settings: config.Settings | None = None,
) -> int:
    """Bring a collection back from a file. Everything is checked before anything is stored.

    Parameters
    ----------
    path : path
        Written by :func:`export_collection`.
    collection : str, optional
        A name that is not in use; the one in the file if left out.
    progress : callable, optional
        Is called with the number of paths stored and of all of them.
    settings : Settings, optional
        Read from the environment if left out.

    Returns
    -------
    int
        How many paths were stored.

    Raises
    ------
    DatasetError
        The file is no such archive, is damaged, or does not match its checksums.
    ConfigError
        The name is in use, or is no name.
    StoreError
        A store failed; drop the collection and import again.
    """
    path = Path(path).expanduser().absolute()
    settings = settings or config.load_settings()
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(path, archive)
            _check(path, archive, manifest)
            name = config.collection_name(collection or manifest.collection)
            gallery = _new(name, manifest, settings)
            with gallery:
                return _store(path, archive, manifest, gallery, progress)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(path, f"is no readable archive ({error})") from error


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> _Manifest:
    members = {info.filename: info for info in archive.infolist()}
    if members.keys() != {"manifest.json", "images.jsonl", "vectors.f32"}:
        raise DatasetError(path, "is no archive of a collection: its members are others")
    if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in members.values()):
        raise DatasetError(
            path, "is compressed or encrypted, which archives of collections never are"
        )
    if members["manifest.json"].file_size > MANIFEST_LIMIT:
        raise DatasetError(path, "has a manifest too long to be honest")
    try:
        manifest = _Manifest.model_validate_json(archive.read("manifest.json"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DatasetError(
            path, f"has a manifest that cannot be used: {where}: {first['msg']}"
        ) from None
    if members["vectors.f32"].file_size != manifest.images * manifest.dim * 4:
        raise DatasetError(path, "has more or fewer vectors than its manifest says")
    return manifest


def _check(path: Path, archive: zipfile.ZipFile, manifest: _Manifest) -> None:
    for name in ("images.jsonl", "vectors.f32"):
        with archive.open(name) as member:
            digest = hashlib.file_digest(member, "sha256").hexdigest()
        if digest != manifest.sha256.get(name):
            raise DatasetError(path, f"is damaged: {name} does not match its checksum")
    seen, ids = 0, []
    for row in _rows(path, archive):
        seen += 1
        if not ids or ids[-1] != row.image_id:
            ids.append(row.image_id)
    if seen != manifest.paths or len(ids) != manifest.images or ids != sorted(set(ids)):
        raise DatasetError(path, "has other rows than its manifest says")
    for block in _vectors(archive, manifest):
        norms = np.linalg.norm(block, axis=1)
        if not np.allclose(norms, 1, atol=1e-3):
            raise DatasetError(path, "has vectors that are not of length 1")


def _rows(path: Path, archive: zipfile.ZipFile) -> Iterator[ImageRow]:
    with archive.open("images.jsonl") as member:
        number = 0
        while line := member.readline(LINE_LIMIT):
            number += 1
            try:
                yield _Row.model_validate(json.loads(line)).row()
            except (ValueError, RecursionError):
                raise DatasetError(path, f"images.jsonl, line {number}: is no row") from None


def _vectors(archive: zipfile.ZipFile, manifest: _Manifest) -> Iterator[np.ndarray]:
    with archive.open("vectors.f32") as member:
        while block := member.read(BATCH * manifest.dim * 4):
            yield np.frombuffer(block, "<f4").reshape(-1, manifest.dim).astype(np.float32)


def _new(name: str, manifest: _Manifest, settings: config.Settings) -> Gallery:
    with MetadataStore.open(settings) as metadata:
        try:
            metadata.collection(name)
        except CollectionNotFound:
            pass
        else:
            raise ConfigError("collection", f"{name!r} is in use; import under another name")
        metadata.create_collection(
            CollectionRow(
                name=name,
                encoder=manifest.encoder,
                identity=manifest.identity,
                fingerprint=manifest.fingerprint,
                dim=manifest.dim,
                index=manifest.index,
                created_at=datetime.now().astimezone(),
            )
        )
    return Gallery.open(name, settings=settings)


def _store(
    path: Path,
    archive: zipfile.ZipFile,
    manifest: _Manifest,
    gallery: Gallery,
    progress: Callable[[int, int], None] | None,
) -> int:
    rows = _rows(path, archive)
    row, stored = next(rows, None), 0
    for block in _vectors(archive, manifest):
        part, vectors = [], {}
        for vector in block:
            vectors[row.image_id] = vector
            last = row.image_id
            while row is not None and row.image_id == last:
                part.append(row)
                row = next(rows, None)
        gallery.add(part, vectors)
        stored += len(part)
        if progress is not None:
            progress(stored, manifest.paths)
    gallery.flush()
    return stored
