"""Broken pictures by number: the same number is the same bytes for ever."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

SOI_TO_SOS = (0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE)


def _saved(picture: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def _exif(depth: int) -> bytes:
    """A chain of directories, each of which points to the next, the last to the first."""
    data = b"II*\0" + struct.pack("<I", 8)
    for i in range(depth):
        after = 8 + (i + 1) * 18 if i + 1 < depth else 8
        data += struct.pack("<HHHII", 1, 0x8769, 4, 1, after) + struct.pack("<I", after)
    return b"Exif\0\0" + data


def bases() -> list[bytes]:
    """Good pictures of every kind that is read, and of some that are not."""
    grain = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    colour = Image.fromarray(grain).resize((96, 64))
    grey, palette = colour.convert("L"), colour.convert("P")
    deep = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16))
    palette.info["transparency"] = 3
    return [
        _saved(colour, "JPEG", quality=90),
        _saved(colour, "JPEG", progressive=True, exif=_exif(3)),
        _saved(grey, "JPEG", restart_marker_blocks=2),
        _saved(colour.convert("CMYK"), "JPEG", exif=_exif(200)),
        _saved(colour, "PNG"),
        _saved(grey.convert("LA"), "PNG"),
        _saved(palette, "PNG"),
        _saved(deep, "PNG"),
        _saved(colour.convert("1"), "PNG"),
        _saved(colour, "GIF"),
        _saved(colour, "WEBP"),
        _saved(colour, "BMP"),
        _saved(colour, "TIFF"),
        _saved(colour, "TIFF", compression="tiff_lzw"),
        _saved(colour, "AVIF"),
    ]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(rng: random.Random) -> bytes:
    """A small file that promises, or holds, a huge picture."""
    width, height = rng.choice(
        [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (8_192, 8_192), (1, 2**26 + 1), (2**20, 64)]
    )
    kind = rng.randrange(3)
    if kind == 0:  # a JPEG's height and width have 16 bits
        data = bytearray(BASES[0])
        at = data.find(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
        return bytes(data)
    header = struct.pack(">IIBBBBB", width, height, rng.choice([1, 8, 16]), 0, 0, 0, 0)
    pixels = zlib.compress(bytes(4_000_000), 9)
    if kind == 1:
        pixels = pixels[: len(pixels) // 2]
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9))
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + text + _chunk(b"IDAT", pixels)
        + _chunk(b"IEND", b"")
    )  # fmt: skip


def huge(kind: str) -> bytes:
    """A good picture of 62.9 megapixels, or as many as are decoded, to be turned upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind in PNGS:
        depth, colour, size = PNGS[kind]
        packer = zlib.compressobj(1)
        row = bytes(1 + 8192 * size)
        pixels = b"".join(packer.compress(row) for _ in range(7680)) + packer.flush()
        header = struct.pack(">IIBBBBB", 8192, 7680, depth, colour, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
        if kind == "P":
            data += _chunk(b"PLTE", bytes(768)) + _chunk(b"tRNS", bytes(256))
        if kind == "I;16":
            data += _chunk(b"tRNS", b"\0\0")
        data += _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        return data + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    if kind in JPEGS:
        mode, side, options = JPEGS[kind]
        data = bytearray(_saved(Image.new(mode, (64, 64)), "JPEG", exif=exif, **options))
        at = max(data.find(b"\xff\xc0\0"), data.find(b"\xff\xc2\0"))
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    mode, side, options = OTHERS[kind]
    return _saved(Image.new(mode, (side, side)), kind.split()[0], **options)


PNGS = {"RGBA": (8, 6, 4), "P": (8, 3, 1), "I;16": (16, 0, 2), "LA": (8, 4, 2), "RGB": (8, 2, 3)}
JPEGS = {
    "baseline": ("RGB", 7931, {}),
    "progressive": ("RGB", 7931, {"progressive": True}),
    "progressive 4:4:4": ("RGB", 6970, {"progressive": True, "subsampling": 0}),
    "progressive CMYK": ("CMYK", 6390, {"progressive": True}),
}
OTHERS = {
    "TIFF": ("RGBA", 7931, {"compression": "tiff_lzw", "strip_size": 2**31}),
    "WEBP": ("RGBA", 5518, {"method": 0}),
    "AVIF": ("RGBA", 5809, {"speed": 10, "subsampling": "4:4:4"}),
}
HUGE = (*PNGS, *JPEGS, *OTHERS)


def mangled(number: int) -> bytes:
    """The broken picture of this number. A few of them are still good."""
    rng = random.Random(number)
    data = bytearray(rng.choice(BASES))
    how = rng.randrange(9)
    if how == 0:  # bits
        for _ in range(rng.choice([1, 3, 30, 300])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:  # cut anywhere
        del data[rng.randrange(len(data) + 1) :]
    elif how == 2:  # cut at a marker or chunk, or just behind
        marks = [i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] in SOI_TO_SOS]
        marks += [i for name in (b"IHDR", b"IDAT", b"IEND", b"PLTE") if (i := data.find(name)) > 0]
        del data[rng.choice(marks or [len(data) // 2]) + rng.randrange(-2, 12) :]
    elif how == 3:  # a wrong length
        at = rng.randrange(max(1, len(data) - 4))
        marks = [i for i in range(len(data) - 4) if data[i] == 0xFF and data[i + 1] in SOI_TO_SOS]
        at = rng.choice(marks) + 2 if marks else at
        width = rng.choice([2, 4])
        data[at : at + width] = rng.choice([b"\0\0\0\0", b"\xff" * 4, rng.randbytes(4)])[:width]
    elif how == 4:
        return bomb(rng)
    elif how == 5:  # one format in another
        at = rng.randrange(len(data))
        data[at:at] = rng.choice(BASES)
    elif how == 6:  # zero bytes: none, or a hole
        start = rng.randrange(len(data))
        data = bytearray() if rng.random() < 0.2 else data
        data[start : start + 500] = bytes(len(data[start : start + 500]))
    elif how == 7:  # a piece again and again
        start = rng.randrange(len(data))
        data[start:start] = bytes(data[start : start + 200]) * rng.choice([2, 50])
    else:  # a signature, and noise
        data = bytearray(bytes(data[:12]) + rng.randbytes(rng.choice([0, 50, 5000])))
    return bytes(data)


BASES = bases()
EXTENSIONS = (".jpg", ".png", ".JPEG", ".gif", "", ".txt")
