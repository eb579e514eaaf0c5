"""Images: find them in a folder, read, validate, decode and crop them.

Files come from anywhere and may be anything, so nothing here trusts a name or a
header. A format is known by its signature. JPEG and PNG headers are walked here,
byte by byte and bounded, and Pillow is handed only what pixels are made of: no
Exif, colour profile, text or animation ever reaches it, which keeps its warnings,
its metadata parsers and their memory out of the way. Everything that is wrong
with an image becomes one :class:`~imgsearch.errors.ImageError`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    WebPImagePlugin,
)

from imgsearch.errors import ImageError

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels of the upright picture."""

Source = str | Path | bytes | Image.Image | np.ndarray
"""What an image may come as."""

FORMATS = ("JPEG", "PNG")
"""What is read unless more is asked for."""

MAX_PIXELS = 64 * 2**20
"""Pixels of the largest picture that is decoded: past the largest cameras, and below the
number at which Pillow begins to warn. One picture takes at most some 500 MB while decoded."""

MAX_BYTES = 128 * 2**20
"""Bytes of the largest file that is read."""

DRAFT_FACTOR = 4
"""A JPEG is decoded at a reduced scale only if its short side stays this many times the needed
one, and if the scale divides all its edges. Measured on photographs enlarged or laid out as
mosaics, the cosine of a MobileNetV2 with the full decode is then 0.9993 or more; it falls to
0.998 at twice the needed side, and to 0.996 where an edge is rounded."""

_MAX_SCAN_PIXELS = 16 * MAX_PIXELS
"""Scans times pixels of a progressive JPEG: a few kilobytes can ask for thousands of passes."""

_EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".ppm"})
_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(
    {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFile(NamedTuple):
    """A regular file below a folder: path, size in bytes, time of change in ns."""

    path: Path
    size: int
    mtime_ns: int


class ImageInfo(NamedTuple):
    """What is kept of an image beside its vector.

    ``image_id`` and ``sha256`` (hex) are of the file's bytes, ``size`` counts them;
    ``width`` and ``height`` are those of the upright picture, in pixels.
    """

    image_id: int
    sha256: str
    size: int
    width: int
    height: int
    format: str


# --------------------------------------------------------------------------- finding


def find(
    root: str | Path,
    *,
    recursive: bool = True,
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[ImageFile]:
    """Every regular file below a folder, images or not, in a stable order.

    The order is that of the bytes of the relative paths. Hidden files and folders
    are passed over. Links to folders are never followed: what they hold inside
    ``root`` is found where it lies. Links to files count if the file lies inside
    ``root``. Pipes, sockets and devices are never opened.

    Parameters
    ----------
    root : str or Path
        The folder.
    recursive : bool
        Whether to go into subfolders.
    on_error : callable, optional
        Is handed an ImageError for each subfolder that cannot be listed, and for
        each link with an image's extension that leads out of ``root`` or nowhere.

    Returns
    -------
    iterator of ImageFile

    Raises
    ------
    ImageError
        ``root`` is missing, no folder, or cannot be listed. Raised at once, not
        at the first step of the iterator.
    """
    root = Path(root)
    try:
        real = os.path.realpath(root, strict=True)
        if not stat.S_ISDIR(Path(real).stat().st_mode):
            raise ImageError(root, "not a folder")
        top = _listing(root)
    except (OSError, ValueError) as error:
        raise ImageError(root, _why(error, "no such folder")) from None
    return _walk(root, real, top, recursive, on_error or (lambda error: None))


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    """Entries that are not hidden, last one first: to be popped in order."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]

    def key(entry: os.DirEntry[str]) -> bytes:
        # a folder sorts as its contents do: by name and slash
        slash = b"/" if entry.is_dir(follow_symlinks=False) else b""
        return os.fsencode(entry.name) + slash

    return sorted(shown, key=key, reverse=True)


def _walk(
    root: Path,
    real: str,
    stack: list[os.DirEntry[str]],
    recursive: bool,
    on_error: Callable[[ImageError], None],
) -> Iterator[ImageFile]:
    while stack:
        entry = stack.pop()
        path = Path(entry.path)
        try:
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    stack.extend(_listing(path))
                continue
            if entry.is_symlink():
                claims = path.suffix.lower() in _EXTENSIONS
                target = os.path.realpath(entry.path, strict=True)
                if not _inside(target, real):
                    if claims and stat.S_ISREG(Path(target).stat().st_mode):
                        on_error(ImageError(path, "a link out of the folder is not followed"))
                    continue
            facts = path.stat()
        except OSError as error:
            if entry.is_symlink() and path.suffix.lower() not in _EXTENSIONS:
                continue
            on_error(ImageError(path, _why(error, "vanished, or a link to nothing")))
            continue
        if stat.S_ISREG(facts.st_mode):
            yield ImageFile(path, facts.st_size, facts.st_mtime_ns)


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def sniff(head: bytes) -> str | None:
    r"""Format by signature.

    Parameters
    ----------
    head : bytes
        The first 16 bytes of a file, or more.

    Returns
    -------
    str or None
        Pillow's name of the format, None if the signature is of no picture known here.

    Examples
    --------
    >>> sniff(b"\xff\xd8\xff\xe0 and so on"), sniff(b"%PDF-1.7")
    ('JPEG', None)
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(_PNG):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    return None


def is_candidate(path: str | Path, head: bytes) -> bool:
    """Whether a file is, or claims to be, a picture.

    What is wrong with a candidate is a failure to report; any other file is just
    not a picture.

    Parameters
    ----------
    path : str or Path
    head : bytes
        The first 16 bytes of the file, or all of a shorter one.

    Returns
    -------
    bool
    """
    return Path(path).suffix.lower() in _EXTENSIONS or sniff(head) is not None


# --------------------------------------------------------------------------- reading


def read(path: str | Path) -> bytes:
    """All bytes of a regular file.

    Never waits on a pipe, a socket or a device, and never reads more than `MAX_BYTES`.

    Parameters
    ----------
    path : path
        The file; links are followed.

    Returns
    -------
    bytes

    Raises
    ------
    ImageError
        No such file, no regular file, unreadable, empty or too large.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise ImageError(path, "not a regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):  # exchanged in between
                raise ImageError(path, "not a regular file")
            _check_bytes(path, facts.st_size)
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(path, _why(error, "no such file")) from None
    _check_bytes(path, len(data))
    if not data:
        raise ImageError(path, "zero bytes")
    return data


def _check_bytes(where: object, size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(str(where), f"too large: {size:,} bytes (limit {MAX_BYTES:,})")


def image_id(sha256_hex: str) -> int:
    """Identity of an image: 63 bits of the SHA-256 of its file, never negative.

    Parameters
    ----------
    sha256_hex : str
        64 hex digits.

    Returns
    -------
    int
        In [0, 2**63): what a signed 64-bit primary key can hold.

    Examples
    --------
    >>> image_id("ff" * 32) == 2**63 - 1
    True
    """
    return int(sha256_hex[:16], 16) >> 1


def probe(
    data: bytes,
    *,
    path: str | Path = "image",
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> ImageInfo:
    """Identity, size and format of an image from its file's bytes, without decoding it.

    Parameters
    ----------
    data : bytes
        The file's bytes.
    path : str or Path
        What an error is to name.
    formats, max_pixels
        As in :func:`decode`.

    Returns
    -------
    ImageInfo

    Raises
    ------
    ImageError
        As :func:`decode`, for what the header shows.
    """
    header = _header(path, data, formats, max_pixels)
    sha256 = hashlib.sha256(data).hexdigest()
    width, height = header.upright
    return ImageInfo(image_id(sha256), sha256, len(data), width, height, header.format)


# --------------------------------------------------------------------------- decoding


def decode(
    source: Source,
    *,
    box: Box | None = None,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
    draft: int | None = None,
    path: str | Path | None = None,
) -> Image.Image:
    """Decode an image to RGB, upright, transparent parts on white, the first frame only.

    Parameters
    ----------
    source : str, Path, bytes, PIL.Image.Image or numpy.ndarray
        A path, a file's bytes, a picture, or an array: bool, uint8 or uint16 of shape
        (height, width), (height, width, 1), (height, width, 3) RGB or (height, width, 4) RGBA.
    box : tuple of int, optional
        Left, upper, right, lower in pixels of the upright picture: the part to keep.
    formats : sequence of str
        Formats to accept, out of JPEG, PNG, BMP, GIF, PPM, WEBP.
    max_pixels : int
        Larger pictures are refused before they are decoded; at most `MAX_PIXELS`.
    draft : int, optional
        Short side, in pixels, that will be needed. A much larger JPEG is then decoded at
        a half, a quarter or an eighth of its size, to at least `DRAFT_FACTOR` times this.
    path : str or Path, optional
        What an error is to name, if the source is no path.

    Returns
    -------
    PIL.Image.Image
        Mode RGB. Its size is that of the box, or of the picture, unless a draft reduced it.

    Raises
    ------
    ImageError
        Whatever is wrong with the image or the box, with a reason of a few words.
    ValueError
        `formats` names a format that is not in the list above.
    """
    if isinstance(source, str | Path):
        path = source if path is None else path
        source = read(source)
    elif isinstance(source, bytearray | memoryview):
        source = bytes(source)
    path = _noun(source) if path is None else path
    header = _header(path, source, formats, max_pixels) if isinstance(source, bytes) else None
    try:
        if header is not None:
            return _decode_file(header, _checked(path, box, header.upright), draft)
        if isinstance(source, np.ndarray):
            picture = _from_array(path, source, max_pixels)
        elif isinstance(source, Image.Image):
            picture = _from_picture(path, source, max_pixels)
        else:
            raise ImageError(path, "give a path, bytes, a PIL image or a numpy array")
        box = _checked(path, box, picture.size)
        return picture.crop(box) if box else picture
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(path, "not enough memory to decode it") from None
    except Exception as error:  # Pillow's readers raise anything: SyntaxError, struct.error, ...
        raise ImageError(path, _broken(error)) from None


def _decode_file(header: _Header, box: Box | None, draft: int | None) -> Image.Image:
    with header.open(header.pixels) as opened:
        scale = 1
        if draft and header.format == "JPEG":
            left, upper, right, lower = box or (0, 0, *header.upright)
            times = min(right - left, lower - upper) // (DRAFT_FACTOR * max(1, draft))
            edges = (left, upper, right, lower, *header.upright)
            scale = next(
                s for s in (8, 4, 2, 1) if s == 1 or (times >= s and not any(e % s for e in edges))
            )
            if scale > 1:
                opened.draft("RGB", (header.width // scale, header.height // scale))
        opened.load()
        picture = _rgb(opened, header.transparent)
    if header.orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[header.orientation])
    return picture.crop(tuple(edge // scale for edge in box)) if box else picture


def _rgb(picture: Image.Image, transparent: tuple[int, ...] | None = None) -> Image.Image:
    """RGB on white of any mode; `transparent` is the one colour that is see-through."""
    mode = picture.mode
    if mode.startswith("I"):  # more than 8 bits of grey: keep the upper 8 of 16
        grey = np.clip(np.asarray(picture), 0, 65535).astype(np.uint16)
        picture = Image.fromarray((grey >> 8).astype(np.uint8))
        if transparent:
            picture.paste(255, mask=Image.fromarray(grey == transparent[0]))
        return picture.convert("RGB")
    if mode == "F":
        raise ImageError("", "floating point pixels: convert them to 8 bits first")
    if mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif mode in ("PA", "La", "RGBa"):
        picture = picture.convert("RGBA" if mode != "La" else "LA")
    if picture.mode in ("LA", "RGBA"):
        alpha = picture.getchannel("A")
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture.convert("RGB"), mask=alpha)
        return white
    if transparent:
        colour = picture.convert("RGB")
        pixels = np.asarray(colour)
        wanted = np.array(transparent if len(transparent) == 3 else transparent * 3)
        colour.paste((255, 255, 255), mask=Image.fromarray((pixels == wanted).all(axis=2)))
        return colour
    return picture if mode == "RGB" else picture.convert("RGB")


def _from_picture(path: object, picture: Image.Image, max_pixels: int) -> Image.Image:
    _check_pixels(path, picture.size, max_pixels)
    picture.load()
    exif = picture.info.get("exif")
    turn = _orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1
    try:
        upright = _rgb(picture)
    except ImageError as error:
        raise ImageError(str(path), error.reason) from None
    return upright.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else upright


def _from_array(path: object, array: np.ndarray, max_pixels: int) -> Image.Image:
    shape, kind = array.shape, array.dtype
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(str(path), f"an array of shape {shape} is no picture")
    if kind not in (np.bool_, np.uint8, np.uint16):
        raise ImageError(str(path), f"pixels of type {kind}: give uint8, 0 to 255")
    _check_pixels(path, (shape[1], shape[0]), max_pixels)
    if kind == np.bool_:
        array = array.astype(np.uint8) * 255
    elif kind == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    return _rgb(Image.fromarray(np.ascontiguousarray(array)))


def _checked(path: object, box: Box | None, size: tuple[int, int]) -> Box | None:
    if box is None:
        return None
    try:
        left, upper, right, lower = (int(edge) for edge in box)
    except (TypeError, ValueError, OverflowError):
        raise ImageError(str(path), f"box {box!r}: give left, upper, right, lower") from None
    width, height = size
    if not (0 <= left < right <= width and 0 <= upper < lower <= height):
        raise ImageError(
            str(path),
            f"box ({left}, {upper}, {right}, {lower}) is empty or outside "
            f"the picture of {width} x {height} pixels",
        )
    return left, upper, right, lower


def _check_pixels(path: object, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    limit = min(max_pixels, MAX_PIXELS)
    if width <= 0 or height <= 0:
        raise ImageError(str(path), "no pixels")
    if width * height > limit:
        raise ImageError(
            str(path), f"too large: {width} x {height} pixels (limit {limit:,} pixels)"
        )


# --------------------------------------------------------------------------- headers


class _Header(NamedTuple):
    """What a file's header says, and the bytes that Pillow may see of it."""

    format: str
    width: int
    height: int
    orientation: int
    transparent: tuple[int, ...] | None
    open: Callable[[BytesIO], Image.Image]
    pixels: BytesIO

    @property
    def upright(self) -> tuple[int, int]:
        size = self.width, self.height
        return size[::-1] if self.orientation >= 5 else size


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """JPEG that ends early is an error, whatever Pillow's global switches say."""

    def load_read(self, read_bytes: int) -> bytes:
        part = self.fp.read(read_bytes)
        if not part:
            raise OSError("image file is truncated")
        return part


class _Png(PngImagePlugin.PngImageFile):
    """PNG that ends early is an error, whatever Pillow's global switches say."""

    def load_read(self, read_bytes: int) -> bytes:
        part = super().load_read(read_bytes)
        if not part:
            raise OSError("image file is truncated")
        return part


# The plugins' classes are used rather than Image.open, which guesses, asks global registries
# and limits, turns some JPEGs into other formats and warns.
_OPENERS: dict[str, Callable[[BytesIO], Image.Image]] = {
    "JPEG": _Jpeg,
    "PNG": _Png,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}


def _header(path: object, data: bytes, formats: Sequence[str], max_pixels: int) -> _Header:
    unknown = set(formats) - _OPENERS.keys()
    if unknown:
        raise ValueError(f"no reader for {sorted(unknown)}; there are {sorted(_OPENERS)}")
    if not data:
        raise ImageError(str(path), "zero bytes")
    _check_bytes(path, len(data))
    kind = sniff(data[:16])
    if kind is None:
        raise ImageError(str(path), "not an image")
    if kind not in formats:
        raise ImageError(str(path), f"{kind} is not among the formats {', '.join(formats)}")
    try:
        if kind == "JPEG":
            header = _jpeg(data)
        elif kind == "PNG":
            header = _png(data)
        else:
            header = _other(kind, data, formats)
    except _Broken as error:
        raise ImageError(str(path), str(error)) from None
    except Exception as error:
        raise ImageError(str(path), _broken(error)) from None
    _check_pixels(path, (header.width, header.height), max_pixels)
    return header


class _Broken(Exception):
    """What is wrong with a header; becomes the reason of an ImageError."""


def _jpeg(data: bytes) -> _Header:
    """Walk the segments up to the first scan; keep those that pixels need."""
    kept = bytearray(b"\xff\xd8")
    size: tuple[int, int] | None = None
    progressive, orientation, at, end = False, 0, 2, len(data)
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= end:
            raise _Broken("truncated before the picture begins")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2
        if marker == 0x00 or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            continue
        if marker == 0xD9:
            raise _Broken("a JPEG without a picture")
        if at + 2 > end:
            raise _Broken("truncated before the picture begins")
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2:
            raise _Broken("broken JPEG segment")
        body = data[at + 2 : at + length]
        if len(body) < length - 2:
            raise _Broken("truncated before the picture begins")
        if marker == 0xE1 and not orientation and body.startswith(b"Exif\0"):
            orientation = _orientation(body[6:])
        if marker in _FRAMES:
            if size is not None:
                raise _Broken("a JPEG with two frame headers")
            if len(body) < 6:
                raise _Broken("broken JPEG frame header")
            bits, height, width, layers = struct.unpack_from(">BHHB", body)
            if bits != 8:
                raise _Broken(f"{bits}-bit JPEG is not supported")
            if layers not in (1, 3, 4):
                raise _Broken(f"JPEG of {layers} layers is not supported")
            size = width, height
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
        # APP0 (JFIF) and APP14 (Adobe) say how colours are coded; the rest is not for pixels
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept += data[at - 2 : at + length]
        at += length
        if marker == 0xDA:
            break
    if size is None:
        raise _Broken("a JPEG without a frame header")
    if progressive and data.count(b"\xff\xda", at) * size[0] * size[1] > _MAX_SCAN_PIXELS:
        raise _Broken("a JPEG of too many scans")
    kept += memoryview(data)[at:]
    return _Header("JPEG", *size, orientation or 1, None, _Jpeg, BytesIO(kept))


def _png(data: bytes) -> _Header:
    """Walk the chunks; keep those that pixels need."""
    if len(data) < 33:
        raise _Broken("truncated before the picture begins")
    if data[12:16] != b"IHDR" or int.from_bytes(data[8:12], "big") != 13:
        raise _Broken("a PNG without a header")
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise _Broken("broken PNG header (checksum)")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    kept, transparent, orientation, pixels = bytearray(data[:33]), None, 1, False
    at, end = 33, len(data)
    while at + 8 <= end:
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        after = at + 12 + length
        if kind == b"IDAT":
            if after - 4 > end:
                raise _Broken("truncated")
            pixels = True
            kept += memoryview(data)[at : min(after, end)]
        elif kind == b"PLTE" and not pixels:
            kept += memoryview(data)[at : min(after, end)]
        elif kind == b"tRNS" and not pixels and after <= end:
            if colour == 3:  # alpha of the palette: Pillow applies it
                kept += data[at:after]
            else:
                transparent = _see_through(data[at + 8 : after - 4], depth, colour)
        elif kind == b"eXIf" and after <= end:
            orientation = _orientation(data[at + 8 : after - 4])
        elif kind == b"IEND":
            break
        at = after
    if not pixels:
        raise _Broken("truncated before the picture begins")
    kept += b"\0\0\0\0IEND\xaeB`\x82"
    return _Header("PNG", width, height, orientation, transparent, _Png, BytesIO(kept))


def _see_through(body: bytes, depth: int, colour: int) -> tuple[int, ...] | None:
    """Transparent colour in the values that Pillow's decoder gives."""
    count = {0: 1, 2: 3}.get(colour)
    if count is None or len(body) < 2 * count or depth not in (1, 2, 4, 8, 16):
        return None
    values = struct.unpack_from(f">{count}H", body)
    if depth == 16:
        # grey comes with all its 16 bits, colours with their upper 8
        return values if colour == 0 else tuple(value >> 8 for value in values)
    top = 2**depth - 1
    return tuple((value & top) * 255 // top for value in values)


def _other(kind: str, data: bytes, formats: Sequence[str]) -> _Header:
    pixels = BytesIO(data)
    with _OPENERS[kind](pixels) as opened:
        width, height = opened.size
        exif = opened.info.get("exif")
    turn = _orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1
    return _Header(kind, width, height, turn, None, _OPENERS[kind], BytesIO(data))


def _orientation(exif: bytes) -> int:
    """Orientation 1 to 8 from Exif data (a TIFF structure), 1 if there is none to be had."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, number, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == 0x0112:
            return value if kind == 3 and number == 1 and 1 <= value <= 8 else 1
    return 1


# --------------------------------------------------------------------------- words


def _noun(source: object) -> str:
    if isinstance(source, bytes):
        return "uploaded bytes"
    if isinstance(source, np.ndarray):
        return "array"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "picture"
    return type(source).__name__


def _why(error: OSError | ValueError, missing: str) -> str:
    """Reason of a failed system call, in a few words."""
    if isinstance(error, FileNotFoundError):
        return missing
    if isinstance(error, PermissionError):
        return "unreadable: permission denied"
    if isinstance(error, OSError):
        return f"unreadable: {error.strerror or type(error).__name__}".lower()
    return "not a name of a file"


def _broken(error: Exception) -> str:
    """Reason of a failed decode, in a few words."""
    text = str(error).lower()
    if "truncated" in text or "not enough image data" in text or isinstance(error, EOFError):
        return "truncated"
    words = " ".join(text.split())[:80]
    return f"cannot be decoded: {words}" if words else "cannot be decoded"
