"""Find, read, check and decode images.

Pillow decodes the files; this module decides which ones are accepted. Formats are recognized
by content, never by the name of a file, and sizes are checked before anything is decoded. All
problems with an image are raised as :class:`~imgsearch.errors.ImageError`.
"""

from __future__ import annotations

import hashlib
import operator
import os
import pkgutil
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, features

from imgsearch.errors import ConfigError, ImageError
from imgsearch.io import absolute

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels of the upright picture."""

FORMATS = (
    *("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF"),
    *(["AVIF"] if features.check("avif") else []),
    *(["HEIC"] if find_spec("pillow_heif") else []),
)
"""Names of the supported formats, which depend on the installed libraries."""

MAX_BYTES = 128 * 2**20
"""Size limit of a file in bytes."""

MAX_PIXELS = 60 * 2**20
"""Size limit of a picture in pixels."""

MAX_MEMORY = 480 * 2**20
"""Limit of the memory for decoding one picture, in bytes: enough for `MAX_PIXELS`, except for
decoders that keep a copy of their own (progressive JPEG, WebP, AVIF, HEIC, some TIFF)."""

SHOWN_BY_BROWSERS = {"JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"}
"""Formats that every browser can display."""

LARGEST_JPEG = 65_500
"""Longest side that JPEG allows, in pixels."""

DRAFT_FACTOR = 4
"""A JPEG is decoded at a reduced scale only if its short side stays at least this many times
the needed one, and if the scale divides all its edges. On enlarged photographs and mosaics, the
vectors of a MobileNetV2 then have a cosine similarity of at least 0.9993 to those of the full
decode; it falls to 0.998 at a factor of 2, and to 0.996 if an edge is rounded."""

_MAX_SCAN_PIXELS = 16 * MAX_PIXELS
"""Limit of scans times pixels of a JPEG: a few kilobytes can require thousands of passes."""

# glibc returns blocks of over 32 MiB to the system at once. Pillow's default of 16 MiB leaves gaps.
if "PILLOW_BLOCK_SIZE" not in os.environ:
    Image.core.set_block_size(2**26)

_NEVER_WAIT = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_TILE = 2048, 512  # width and height, in pixels, of the parts that are composited one by one
_EXTENSIONS = re.compile(
    r"\.(jpe?g|jpe|jfif|png|webp|bmp|dib|gif|tiff?|avif|heic|heif|hif)", re.IGNORECASE
)
# Raw files of cameras start like a TIFF file, but its first picture is only a small preview.
_RAW = re.compile(r"\.(dng|nef|nrw|arw|cr2|pef|srw|sr2|3fr|iiq|erf|kdc|dcr|mef)", re.IGNORECASE)
# Signature of each format, and Pillow's class for it. Image.open is not used, because it warns
# about large pictures or rejects them before their size can be checked here, and takes some JPEGs
# for MPO.
_READERS = {
    "JPEG": (rb"\xff\xd8\xff", "PIL.JpegImagePlugin:JpegImageFile"),
    "PNG": (rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin:PngImageFile"),
    "WEBP": (rb"RIFF.{4}WEBP", "PIL.WebPImagePlugin:WebPImageFile"),
    "BMP": (rb"BM.{4}\0{4}", "PIL.BmpImagePlugin:BmpImageFile"),
    "GIF": (rb"GIF8[79]a", "PIL.GifImagePlugin:GifImageFile"),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin:TiffImageFile"),
    "AVIF": (
        rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,8}?avi[fs])",
        "PIL.AvifImagePlugin:AvifImageFile",
    ),
    "HEIC": (rb".{4}ftyp(?:he[iv][cmsx]|m[is]f1)", "pillow_heif:HeifImageFile"),
}
# Bytes per pixel that these decoders need in addition to Pillow's 4 (measured).
_OVERHEAD = {"WEBP": 12, "AVIF": 10, "HEIC": 6}
_SHAPES = "(height, width), or (height, width, 3) for RGB, is needed"
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFile(NamedTuple):
    """A regular file in a folder: path, size in bytes, modification time in ns."""

    path: Path
    size: int
    mtime_ns: int


class ImageInfo(NamedTuple):
    """What is stored of an image besides its vector.

    ``image_id`` and ``sha256`` (hex) are computed from the file's bytes, ``size`` is their number;
    ``width`` and ``height`` are those of the upright picture, in pixels. The rest are Exif data:
    ``date_taken`` is local time, ``orientation`` is 1 by default.
    """

    image_id: int
    sha256: str
    size: int
    width: int
    height: int
    format: str
    date_taken: datetime | None = None
    camera: str | None = None
    orientation: int = 1
    has_gps: bool = False


# --------------------------------------------------------------------------- finding


def find(
    root: str | Path,
    *,
    recursive: bool = True,
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[ImageFile]:
    """Yield every regular file in a folder and its subfolders, image or not, in a stable order.

    Files are sorted by name, and come before those of the folder's subfolders. Hidden files and
    folders are skipped. Links to folders are never followed; links to files only if the file is
    inside `root`. `on_error` is called with an ImageError for each subfolder that cannot be
    listed, and for each entry with the name of an image that is a pipe, a socket, a device, or a
    link that is broken or leads out of `root`. A `root` that cannot be listed raises immediately.
    """
    try:
        root = absolute(root)
        os.scandir(root).close()
        real = os.path.realpath(root, strict=True)
    except NotADirectoryError:
        raise ImageError(root, "not a folder") from None
    except (OSError, ConfigError) as error:
        raise ImageError(root, _why(error, "no such folder")) from None
    return _walk(root, real.rstrip(os.sep) + os.sep, recursive, on_error or (lambda error: None))


def _walk(
    root: Path, inside: str, recursive: bool, on_error: Callable[[ImageError], None]
) -> Iterator[ImageFile]:
    def shown(names: list[str]) -> list[str]:
        return sorted((name for name in names if not name.startswith(".")), key=os.fsencode)

    def unreadable(error: OSError) -> None:
        on_error(ImageError(error.filename, _why(error, "vanished")))

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = shown(subfolders) if recursive else []
        for name in shown(names):
            path = Path(folder, name)
            try:
                status = path.stat()
                _check_regular(path, status.st_mode)
                if path.is_symlink() and not os.path.realpath(path).startswith(inside):
                    raise ImageError(path, "a link out of the folder is not followed")
            except (OSError, ImageError) as error:
                if _EXTENSIONS.fullmatch(path.suffix):
                    reason = getattr(error, "reason", None)  # of an ImageError
                    missing = "vanished, or is a broken link"
                    on_error(ImageError(path, reason or _why(error, missing)))
            else:
                yield ImageFile(path, status.st_size, status.st_mtime_ns)


def is_candidate(path: str | Path) -> bool:
    """Whether a file's name or its first bytes, all that is read, are those of an image."""
    suffix = Path(path).suffix
    if _EXTENSIONS.fullmatch(suffix):
        return True
    if _RAW.fullmatch(suffix):
        return False
    try:
        with _open(path) as file:
            return _format(file.read(64)) is not None
    except (OSError, ImageError):
        return False


def _format(head: bytes) -> str | None:
    """Return the format that a file's first bytes indicate."""
    kinds = (kind for kind, (signature, _) in _READERS.items() if re.match(signature, head, re.S))
    return next(kinds, None)


# --------------------------------------------------------------------------- reading


def read(path: str | Path | BinaryIO) -> bytes:
    """Read a regular file or an open one, from its start; raise ImageError if it is impossible."""
    if hasattr(path, "read"):
        return _read_open(path)
    try:
        with _open(absolute(path)) as file:
            _check_bytes(path, os.fstat(file.fileno()).st_size)
            data = file.read(MAX_BYTES + 1)
    except (OSError, ConfigError) as error:
        missing = "no such file"
        if re.match(r"[a-z][a-z0-9+]+:/|data:", str(path)):
            missing = "URLs are not fetched: download the image and give the path of the file"
        elif "*" in str(path):
            missing += ": give the files of a pattern by glob.glob"
        raise ImageError(path, _why(error, missing)) from None
    _check_bytes(path, len(data))
    return data


def _read_open(file: BinaryIO) -> bytes:
    name = str(getattr(file, "name", "") or "open file")
    try:
        with suppress(AttributeError, OSError):  # a stream, which cannot go back
            file.seek(0)
        data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: closed, or not text in its encoding
        raise ImageError(name, f"unreadable: {error}"[:190]) from None
    if not isinstance(data, bytes):
        raise ImageError(name, "opened as text: open it with mode 'rb'")
    _check_bytes(name, len(data))
    return data


def _open(path: str | Path) -> BinaryIO:
    """Open a regular file, without ever waiting on a pipe, a socket or a device."""
    _check_regular(path, Path(path).stat().st_mode)
    file = os.fdopen(os.open(path, _NEVER_WAIT), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)  # it may have been replaced
    except ImageError:
        file.close()
        raise
    return file


def _check_regular(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ImageError(path, "a folder, not an image")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise ImageError(path, f"{kind}, not a regular file")


def _check_bytes(name: object, size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(str(name), f"too large: {size:,} bytes (limit {MAX_BYTES:,})")


def image_id(sha256_hex: str) -> int:
    """Return the id of an image: the first 63 bits of its file's SHA-256, for a signed int64.

    Examples
    --------
    >>> image_id("ff" * 32) == 2**63 - 1
    True
    """
    return int(sha256_hex[:16], 16) >> 1


def content_id(path: str | Path) -> int:
    """Return the id of an image file without parsing it."""
    return image_id(hashlib.sha256(read(path)).hexdigest())


def probe(data: bytes, *, path: str | Path | None = None) -> ImageInfo:
    """Return the id, size, format and Exif data of an image file without decoding it."""
    return load(data, name=path).info


# --------------------------------------------------------------------------- loading


class LoadedImage:
    """An image that has been read and checked, and can be decoded once.

    Attributes
    ----------
    name : str
        The path, or a description of the source.
    info : ImageInfo or None
        None for a PIL image or an array, which has no file.
    width, height : int
        Size of the upright picture in pixels.
    """

    def __init__(
        self, name: str, picture: Image.Image, info: ImageInfo | None, turn: int, overhead: float
    ):
        self.name, self.info = name, info
        self.width, self.height = picture.size[::-1] if turn >= 5 else picture.size
        self._picture: Image.Image | None = picture
        self._file = getattr(picture, "fp", None)
        self._turn, self._overhead = turn, overhead

    def memory(self, *, box: Box | None = None, draft: int | None = None) -> int:
        """Return an upper bound of the memory that :meth:`decode` needs, in bytes."""
        size = self.width * self.height
        # Pillow needs 4 bytes per pixel, and twice as many while it converts or rotates.
        return int(size * max(8 / self._scale(box, draft) ** 2, 4 + self._overhead))

    def decode(self, *, box: Box | None = None, draft: int | None = None) -> Image.Image:
        """Decode as :func:`decode` does, and release the file's bytes."""
        box, scale = self._checked(box), self._scale(box, draft)
        picture, self._picture = self._picture, None
        if picture is None:
            raise RuntimeError(f"{self.name} has already been decoded: load it again")
        try:
            if scale > 1:
                picture.draft("RGB", (picture.width // scale, picture.height // scale))
            picture.load()
            if self._file:
                self._file.close()  # releases the file's bytes
            # Each step releases the picture of the previous one.
            picture = _rgb(picture)
            if self._turn in _TRANSPOSE:
                picture = picture.transpose(_TRANSPOSE[self._turn])
            if box:
                picture = picture.crop(tuple(edge // scale for edge in box))
            picture.info = {}  # or its Exif orientation would be applied again
            return picture
        except ImageError as error:
            raise ImageError(self.name, error.reason) from None
        except MemoryError:
            raise ImageError(self.name, "not enough memory to decode it") from None
        except Exception as error:
            raise ImageError(self.name, _broken(error, "cannot be decoded")) from None

    def _checked(self, box: Box | None) -> Box | None:
        if box is None:
            return None
        try:
            left, upper, right, lower = (int(edge) for edge in box)
        except (TypeError, ValueError, OverflowError):
            reason = f"box {box!r} is not of the form (left, upper, right, lower)"
            raise ImageError(self.name, reason) from None
        if not (0 <= left < right <= self.width and 0 <= upper < lower <= self.height):
            raise ImageError(
                self.name,
                f"box ({left}, {upper}, {right}, {lower}) is empty or outside "
                f"the picture of {self.width} x {self.height} pixels",
            )
        return left, upper, right, lower

    def _scale(self, box: Box | None, draft: int | None) -> int:
        """Return the factor by which a JPEG's decoder can reduce the picture: 8, 4, 2 or 1."""
        if not draft or self.info is None or self.info.format != "JPEG":
            return 1
        left, upper, right, lower = self._checked(box) or (0, 0, self.width, self.height)
        times = min(right - left, lower - upper) // (DRAFT_FACTOR * max(1, draft))
        edges = (left, upper, right, lower, self.width, self.height)
        fits = (s for s in (8, 4, 2) if times >= s and not any(edge % s for edge in edges))
        return next(fits, 1)


_Bytes = bytes | bytearray | memoryview
Source = str | os.PathLike | _Bytes | BinaryIO | Image.Image | np.ndarray | LoadedImage
"""Everything that is accepted as an image."""


def load(source: Source, *, name: str | Path | None = None) -> LoadedImage:
    """Read an image and check it, without decoding it.

    Parameters
    ----------
    source : path, bytes, binary file, PIL.Image.Image, numpy.ndarray or LoadedImage
        An array is bool, uint8 or uint16 and has the shape (height, width), (height, width, 1),
        (height, width, 3) for RGB or (height, width, 4) for RGBA.
    name : str or Path, optional
        Name of the image in errors, if the source is not a path.

    Returns
    -------
    LoadedImage

    Raises
    ------
    ImageError
        The image cannot be used.
    """
    if isinstance(source, LoadedImage):
        return source
    if isinstance(source, str | os.PathLike):
        name = source if name is None else name
        source = read(source)
    elif hasattr(source, "read"):
        name = name or getattr(source, "name", None)
        source = read(source)
    if isinstance(source, _Bytes):
        return _from_file(str(name or "uploaded bytes"), bytes(source))
    if isinstance(source, np.ndarray):
        name = str(name or "array")
        return LoadedImage(name, _from_array(name, source), None, 1, 4)
    if not isinstance(source, Image.Image):
        name = str(name or type(source).__name__)
        kinds = "a path, bytes, a binary file, a PIL image or a numpy array"
        raise ImageError(name, f"not an image: pass {kinds}")
    name = str(name or getattr(source, "filename", "") or "picture")
    _check_size(name, *source.size)
    try:
        picture = source.copy()
    except Exception as error:
        raise ImageError(name, _broken(error, "cannot be decoded")) from None
    return LoadedImage(name, picture, None, _orientation(picture), 4)


def decode(source: Source, *, box: Box | None = None, draft: int | None = None) -> Image.Image:
    """Decode the first frame of an image to upright RGB, with transparent parts on white.

    Parameters
    ----------
    source : path, bytes, binary file, PIL.Image.Image, numpy.ndarray or LoadedImage
        As for :func:`load`.
    box : tuple of int, optional
        Left, upper, right, lower edge of the part to keep, in pixels of the upright picture.
    draft : int, optional
        Short side, in pixels, that is needed. A much larger JPEG is decoded at a half, a
        quarter or an eighth of its size, but to at least `DRAFT_FACTOR` times this side.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, of the size of the box or of the picture, unless `draft` reduced it.

    Raises
    ------
    ImageError
        The image or the box cannot be used.
    """
    return load(source).decode(box=box, draft=draft)


def jpeg(source: Source, side: int = LARGEST_JPEG) -> bytes:
    """Return a picture as a JPEG whose longest side is `side` pixels at most."""
    picture = decode(source, draft=side // 2)
    picture.thumbnail((side, side))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _from_file(name: str, data: bytes) -> LoadedImage:
    _check_bytes(name, len(data))
    if not data:
        raise ImageError(name, "empty (zero bytes)")
    kind = _format(data[:64])
    if kind is None:
        raise ImageError(name, f"not an image in a supported format ({', '.join(FORMATS)})")
    try:
        picture = _plugin(kind)(BytesIO(data))
        _check_size(name, *picture.size)
        overhead = _overhead(name, kind, picture, data)
    except ImageError:
        raise
    except ModuleNotFoundError:
        reason = f"{kind} needs the package pillow-heif: pip install 'imgsearch[heif]'"
        raise ImageError(name, reason) from None
    except Exception as error:  # Pillow's plugins raise anything: SyntaxError, struct.error
        raise ImageError(name, _broken(error, "broken header")) from None
    # The plugins of TIFF and HEIC apply the orientation themselves.
    turn = 1 if kind in ("TIFF", "HEIC") else _orientation(picture)
    width, height = picture.size[::-1] if turn >= 5 else picture.size
    sha256 = hashlib.sha256(data).hexdigest()
    info = ImageInfo(image_id(sha256), sha256, len(data), width, height, kind, **_exif(picture))
    image = LoadedImage(name, picture, info, turn, overhead)
    if image.memory() > MAX_MEMORY:
        raise ImageError(
            name,
            f"too large: decoding {width} x {height} pixels of this kind of {kind} needs "
            f"{image.memory() >> 20} MiB (limit {MAX_MEMORY >> 20} MiB)",
        )
    return image


@cache
def _plugin(kind: str) -> type[Image.Image]:
    plugin = pkgutil.resolve_name(_READERS[kind][1])
    return type(plugin.__name__, (_Complete, plugin), {})


class _Complete:
    """Raises an error for a truncated file, regardless of Pillow's global settings."""

    def load_read(self, count: int) -> bytes:
        here, end = self.fp.tell(), self.fp.seek(0, os.SEEK_END)
        self.fp.seek(here)
        try:
            part = b"" if here == end else getattr(super(), "load_read", self.fp.read)(count)
        except (IndexError, struct.error):  # a PNG that ends between two chunks
            part = b""
        if not part:
            raise OSError("image file is truncated")
        return part


def _overhead(name: str, kind: str, picture: Image.Image, data: bytes) -> float:
    """Return the bytes per pixel that a decoder needs beside Pillow's 4; refuse endless decodes."""
    if kind == "JPEG":
        # The decoder keeps all coefficients unless the first scan, behind whose header `fp` is,
        # contains all layers.
        start = picture.fp.tell()
        layers = data[data.rfind(b"\xff\xda", 0, start) + 4]
        if not picture.info.get("progressive") and layers == picture.layers:
            return 0
        scans = data.count(b"\xff\xda", start) + 1
        if scans * picture.width * picture.height > _MAX_SCAN_PIXELS:
            raise ImageError(name, f"a JPEG with {scans} scans: save it again as baseline JPEG")
        _, across, down, _ = zip(*picture.layer, strict=True)
        samples = sum(map(operator.mul, across, down)) / (max(across) * max(down))
        return 2 * samples
    if kind == "PNG":
        _complete_png(picture, data)
    if kind == "BMP" and picture.tile[0].codec_name == "bmp_rle":  # a slow loop in Python
        raise ImageError(name, "run-length encoded BMP is not supported: save it as PNG")
    if kind == "TIFF":
        tags = picture.tag_v2
        _check_size(name, tags.get(322, 1), tags.get(323, 1))  # a tile, which may be larger
        if picture.tile[0].codec_name == "libtiff":  # a strip may be the whole picture
            return max(4, sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) / 8)
    return _OVERHEAD.get(kind, 0)


def _complete_png(picture: Image.Image, data: bytes) -> None:
    """Scale the transparent colour as Pillow scales pixels, and find Exif data after the pixels."""
    info, rawmode = picture.info, picture.tile[0].args
    if "transparency" in info and rawmode == "RGB;16B":
        info["transparency"] = tuple(channel >> 8 for channel in info["transparency"])
    elif "transparency" in info and rawmode in ("L;2", "L;4"):
        info["transparency"] *= {"L;2": 85, "L;4": 17}[rawmode]
    at = data.rfind(b"eXIf")
    end = at + 4 + int.from_bytes(data[at - 4 : at])
    found = at > 0 and zlib.crc32(data[at:end]) == int.from_bytes(data[end : end + 4])
    if found and "exif" not in info:
        info["exif"] = data[at + 4 : end]


def _check_size(name: str, width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError(name, "no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            name, f"too large: {width} x {height} pixels (limit {MAX_PIXELS:,} pixels)"
        )


def _orientation(picture: Image.Image) -> int:
    """Return the Exif orientation, 1 to 8; 1 if the Exif data cannot be read."""
    try:
        # Call the method of the base class, because that of PNG decodes the picture.
        turn = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return turn if turn in _TRANSPOSE else 1


def _exif(picture: Image.Image) -> dict[str, Any]:
    """Return the Exif fields of `ImageInfo`, as far as they can be read."""
    found = {"orientation": _orientation(picture)}
    with suppress(Exception):  # Pillow raises all kinds of errors for broken data
        tags = Image.Image.getexif(picture)
        make, model = (_line(tags.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        camera = model if model.startswith(make) else f"{make} {model}".strip()
        found["camera"] = camera[:200] or None
        gps = tags.get_ifd(ExifTags.IFD.GPSInfo)
        found["has_gps"] = ExifTags.GPS.GPSLatitude in gps and ExifTags.GPS.GPSLongitude in gps
        original = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
        time = _line(original or tags.get(ExifTags.Base.DateTime))
        found["date_taken"] = datetime.strptime(time[:19], "%Y:%m:%d %H:%M:%S")
    return found


def _line(text: object) -> str:
    """Return a text of Exif data without control characters and redundant spaces."""
    words = str(text or "").replace("\0", " ").split()
    return "".join(c for c in " ".join(words) if c.isprintable())


def _from_array(name: str, array: np.ndarray) -> Image.Image:
    shape, kind = array.shape, array.dtype
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(name, f"an array of shape {shape} is not a picture; {_SHAPES}")
    if kind not in (np.bool_, np.uint8, np.uint16):
        raise ImageError(name, f"pixels of type {kind}: convert them to uint8, 0 to 255")
    _check_size(name, shape[1], shape[0])
    if kind == np.bool_:
        array = array.astype(np.uint8) * 255
    elif kind == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


# --------------------------------------------------------------------------- colours


def _rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB, with transparent parts on white, in tiles to save memory."""
    if picture.mode == "F":
        raise ImageError("", "floating point pixels: convert them to 8 bits first")
    if not picture.mode.startswith("I") and not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    result = Image.new("RGB", picture.size, "white")
    width, height = picture.size
    for upper in range(0, height, _TILE[1]):
        for left in range(0, width, _TILE[0]):
            box = left, upper, min(left + _TILE[0], width), min(upper + _TILE[1], height)
            part, mask = _opaque(picture.crop(box))
            result.paste(part, (left, upper), mask)
    return result


def _opaque(part: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split a small picture into RGB and a mask of its opaque pixels."""
    if part.mode.startswith("I"):  # grey of more than 8 bits: keep the upper 8 of 16
        grey = np.clip(np.asarray(part), 0, 65535).astype(np.uint16)
        key = part.info.get("transparency")
        mask = None if key is None else Image.fromarray(grey != key)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB"), mask
    if part.mode == "La":
        part = part.convert("LA")
    part = part.convert("RGBA")
    return part.convert("RGB"), part.getchannel("A")


# --------------------------------------------------------------------------- reasons


def _why(error: OSError | ConfigError, missing: str) -> str:
    """Return in a few words why a path cannot be used."""
    if isinstance(error, ConfigError):
        return f"the path {error.reason}"[:190]
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return missing
    if isinstance(error, PermissionError):
        return "unreadable: permission denied"
    return f"unreadable: {error.strerror or type(error).__name__}".lower()


def _broken(error: Exception, what: str) -> str:
    """Return in a few words why decoding failed."""
    text = " ".join(str(error).split())
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return "truncated"
    return f"{what}: {text[:80]}" if text else what
