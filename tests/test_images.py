"""Finding, reading and decoding images, good and bad."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import struct
import sys
import time
import warnings
import weakref
import zlib
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from PIL import ExifTags, Image, ImageFile

from imgsearch import images
from imgsearch.errors import ImageError

EVERY = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")


def picture(width=48, height=32):
    """Smooth colours, each corner another one."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))


def noisy():
    """Incompressible: most of the file is pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010F] = "maker " * 50
    return data


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def reason(data, **options):
    with pytest.raises(ImageError) as caught:
        images.decode(data, **options)
    return caught.value.reason


def near(a, b, tolerance):
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).mean() <= tolerance


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---------------------------------------------------------------- find


def test_find_sorts_files_by_name_and_before_subfolders(tmp_path):
    for name in ("b.png", "a/z.png", "a.png", "a/b/c.png", "ä.png", "B.png", "a/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    found = list(images.find(tmp_path))
    names = [str(each.path.relative_to(tmp_path)) for each in found]
    top = ["B.png", "a.png", "b.png", "ä.png"]
    assert names == [*top, "a/c.png", "a/z.png", "a/b/c.png"]
    assert {each.size for each in found} == {5}
    assert found[0].mtime_ns == found[0].path.stat().st_mtime_ns
    assert [each.path.name for each in images.find(tmp_path, recursive=False)] == top


def test_find_stays_inside_and_follows_no_cycles(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "sub").mkdir(parents=True)
    other.mkdir()
    (other / "out.png").write_bytes(b"x")
    (root / "sub" / "in.png").write_bytes(b"x")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "object").write_bytes(b"x")
    (root / "sub" / "circle").symlink_to(root)
    (root / "folder").symlink_to(other)
    (root / "link.png").symlink_to(other / "out.png")
    (root / "dead.png").symlink_to(root / "nothing")
    (root / "annexed.png").symlink_to(root / ".hidden" / "object")
    errors = []
    found = [each.path.name for each in images.find(root, on_error=errors.append)]
    assert found == ["annexed.png", "in.png"]
    assert [Path(error.path).name for error in errors] == ["dead.png", "link.png"]


def test_find_reports_pipes_and_devices_that_are_named_like_images(tmp_path):
    """Attack "mangled files": a pipe or a device named .jpg was passed over in silence."""
    for name in ("pipe.jpg", "pipe"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "to a pipe.jpg").symlink_to("pipe.jpg")
    (tmp_path / "to a folder.jpg").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        errors = []
        assert not list(images.find(tmp_path, on_error=errors.append))
    assert {Path(error.path).name: error.reason for error in errors} == {
        "pipe.jpg": "a pipe, not a regular file",
        "to a pipe.jpg": "a pipe, not a regular file",
        "s.jpg": "a socket, not a regular file",
        "device.jpg": "a device, not a regular file",
    }


def test_equivalent_paths_are_made_absolute_alike(tmp_path, monkeypatch):
    """Attack row 10: two spellings of a folder gave two spellings of each path in it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(saved(picture()))
    monkeypatch.chdir(tmp_path)
    for root in ("a", "a/../a", tmp_path / "a" / "..", "."):
        assert next(images.find(root)).path == tmp_path / "a" / "x.png"
    assert images.load("a/../a/x.png").width == 48


def test_find_reports_vanished_folders_and_finds_undecodable_names(tmp_path):
    for name in (b"a\nb.png", b"\xff\xfe.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "x.png").write_bytes(b"x")
    errors = []
    walk = images.find(tmp_path, on_error=errors.append)
    assert next(walk).path.name == "a\nb.png"
    (tmp_path / "gone" / "x.png").unlink()
    (tmp_path / "gone").rmdir()
    rest = list(walk)
    assert [os.fsencode(each.path.name) for each in rest] == [b"\xff\xfe.png"]
    assert [error.path for error in errors] == [str(tmp_path / "gone")]
    assert str(ImageError(rest[0].path, "bad")).isprintable()


@pytest.mark.parametrize(("make", "why"), [(None, "no such folder"), ("file", "not a folder")])
def test_find_refuses_an_invalid_root_immediately(tmp_path, make, why):
    root = tmp_path / "root"
    if make:
        root.write_bytes(b"x")
    with pytest.raises(ImageError, match=why):
        images.find(root)


@pytest.mark.parametrize("format", EVERY)
def test_candidates_are_recognized_by_content_or_by_name(tmp_path, format):
    (tmp_path / "no extension").write_bytes(saved(picture(), format))
    (tmp_path / "notes.txt").write_bytes(b"P is not a picture")
    (tmp_path / "broken.JPG").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "camera.nef").write_bytes(saved(picture(), "TIFF"))
    os.mkfifo(tmp_path / "pipe")
    candidates = {path.name for path in tmp_path.iterdir() if images.is_candidate(path)}
    assert candidates == {"no extension", "broken.JPG"}
    assert not images.is_candidate(tmp_path)
    assert not images.is_candidate(tmp_path / "not there")


def test_a_large_file_that_is_not_an_image_is_not_read(tmp_path):
    """Review 8.5, attack row 10: a film was read, and counted as an image that failed."""
    path = tmp_path / "movie.mp4"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES * 100)
    start = time.thread_time()
    assert not images.is_candidate(path)
    assert time.thread_time() - start < 1


# ---------------------------------------------------------------- read


def test_read_refuses_anything_but_regular_files(tmp_path):
    """First hour 7: a hint about formats followed every reason; now each has its own."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        for path, why in {
            tmp_path / "pipe.png": "a pipe, not a regular file",
            tmp_path / "s.png": "a socket, not a regular file",
            Path("/dev/zero"): "a device, not a regular file",
            tmp_path: "a folder, not an image",
            tmp_path / "none.png": "no such file",
            tmp_path / "pipe.png" / "none.png": "no such file",
            "https://example.org/a.jpg": "URLs are not fetched: download",
            "data:image/png;base64,iVBORw0KGgo=": "URLs are not fetched",
            str(tmp_path / "nul\0.png"): "NUL character",
            tmp_path / ("n" * 300): "file name too long",
            "": "is empty",
        }.items():
            with pytest.raises(ImageError, match=why) as caught:
                images.read(path)
            assert caught.value.path == str(path)


def test_read_is_bounded(tmp_path):
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="too large"):
        images.read(tmp_path / "big.png")


# ---------------------------------------------------------------- decode


@pytest.mark.parametrize("format", EVERY)
def test_formats_are_recognized_by_content(tmp_path, format):
    path = tmp_path / "wrong.txt"
    path.write_bytes(saved(picture(), format))
    got = images.decode(path)
    assert (got.mode, got.size) == ("RGB", (48, 32))
    assert near(got, picture(), 12)
    assert images.probe(path.read_bytes()).format == format


def test_heic():
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    file = io.BytesIO()
    heif.from_pillow(picture(64, 40)).save(file, quality=-1)
    loaded = images.load(file.getvalue())
    assert (loaded.width, loaded.height, loaded.info.format) == (64, 40, "HEIC")
    assert near(loaded.decode(), picture(64, 40), 8)
    assert "HEIC" in images.FORMATS


def test_heic_without_its_plugin(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(images, "_plugin", images._plugin.__wrapped__)
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert "pip install 'imgsearch[heif]'" in reason(head)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(format, turn):
    from PIL import ImageOps

    data = saved(picture(), format, exif=exif(turn))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    got = images.decode(data)
    assert np.array_equal(got, expected)
    assert np.array_equal(ImageOps.exif_transpose(got), expected)  # it is not turned once more
    facts = images.probe(data)
    assert (facts.width, facts.height) == got.size
    assert np.array_equal(images.decode(Image.open(io.BytesIO(data))), expected)


def test_orientation_after_the_pixels_of_a_png():
    data = saved(picture())
    exif_chunk = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    loaded = images.load(data[:-12] + exif_chunk + data[-12:])
    assert (loaded.width, loaded.height) == (32, 48)
    assert np.array_equal(loaded.decode(), picture().transpose(Image.Transpose.ROTATE_270))


def photographed():
    data = Image.Exif()
    data[ExifTags.Base.Make], data[ExifTags.Base.Model] = "Canon\0", "Canon  EOS\n5D "
    data[ExifTags.Base.Orientation] = 6
    data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:31 12:30:59"
    data.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (1.0, 2.0, 3.0), 4: (4.0, 5.0, 6.0)})
    return data


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_data_are_read(format):
    data = saved(picture(), format, exif=photographed())
    info = images.probe(data)
    assert info.camera == "Canon EOS 5D"
    assert info.orientation == 6
    if format != "TIFF":  # Pillow does not write the rest
        assert (info.date_taken, info.has_gps) == (datetime(2024, 5, 31, 12, 30, 59), True)
    assert images.decode(data).size == (info.width, info.height)


def test_exif_data_that_are_missing_or_broken_are_none():
    nothing = (None, None, 1, False)
    assert images.probe(saved(picture()))[6:] == nothing
    data = Image.Exif()
    data[ExifTags.Base.DateTime], data[ExifTags.Base.Orientation] = "0000:00:00 00:00:00", 77
    assert images.probe(saved(picture(), exif=data))[6:] == nothing
    good, random = photographed().tobytes(), np.random.default_rng(1)
    for _ in range(50):
        bad = bytearray(good)
        for at in random.integers(6, len(bad), 4):
            bad[at] = random.integers(256)
        with suppress(ImageError):  # Pillow looks into them for the resolution
            assert images.probe(saved(picture(), "JPEG", exif=bytes(bad))).width in (48, 32)


@pytest.mark.parametrize("format", EVERY)
def test_loading_does_not_decode(format):
    """Attack row 4: what is not decoded yet must not take the memory of pixels."""
    loaded = images.load(saved(picture(), format))
    assert loaded._picture._im is None
    assert loaded.decode().size == (48, 32)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes(mode):
    data = saved(picture().convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert near(images.decode(data), picture().convert(mode).convert("RGB"), 6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_modes_of_tiff(mode):
    if mode == "I;16":
        made = Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) << 8)
    else:
        made = picture().convert(mode)
    expected = picture().convert("L" if mode in ("I;16", "LA") else mode).convert("RGB")
    for compression in (None, "tiff_lzw"):
        assert near(images.decode(saved(made, "TIFF", compression=compression)), expected, 6)


def test_modes_of_pictures():
    """Modes that no file has, but a picture in memory."""
    half = Image.new("RGBA", (4, 2), (200, 100, 50, 128))
    for mode in ("La", "LA", "PA", "RGBa"):
        other = half.convert("LA") if mode == "La" else half
        got = np.asarray(images.decode(other.convert(mode)))
        grey = mode in ("La", "LA")
        assert np.abs(got[0, 0] - ([190] * 3 if grey else [228, 178, 152])).max() <= 2, mode


def test_sixteen_bit_pixels_keep_their_upper_half():
    ramp = np.linspace(0, 65535, 64 * 4).astype(np.uint16).reshape(4, 64)
    for format in ("PNG", "TIFF"):
        got = np.asarray(images.decode(saved(Image.fromarray(ramp), format)))
        assert np.array_equal(got[:, :, 0], ramp >> 8)
    assert np.array_equal(np.asarray(images.decode(ramp)), got)


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    clear.putpixel((0, 0), (200, 0, 0, 255))
    for image, options in (
        (clear, {}),
        (clear.convert("LA"), {}),
        (Image.new("RGB", (4, 2), (200, 0, 0)), {"transparency": (200, 0, 0)}),
        (Image.new("L", (4, 2), 7), {"transparency": 7}),
        (Image.new("1", (4, 2), 1), {"transparency": 1}),
        (Image.new("RGB", (4, 2), "red").quantize(4), {"transparency": 0}),
        (Image.fromarray(np.full((2, 4), 259, np.uint16)), {"transparency": 259}),
    ):
        got = images.decode(saved(image, **options))
        assert got.getpixel((3, 1)) == (255, 255, 255), image.mode
    assert images.decode(saved(clear)).getpixel((0, 0)) == (200, 0, 0)
    other = Image.fromarray(np.full((2, 4), 258, np.uint16))
    assert images.decode(saved(other, transparency=259)).getpixel((0, 0)) == (1, 1, 1)
    gif = saved(Image.new("L", (4, 2), 7), "GIF", transparency=7)
    assert images.decode(gif).getpixel((3, 1)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("channels", "bits", "value"),
    [(1, 1, 1), (1, 2, 1), (1, 4, 5), (1, 8, 9), (1, 16, 259), (3, 8, 9), (3, 16, 259)],
)
def test_a_transparent_colour_of_a_png_of_any_depth(channels, bits, value):
    row = np.full((8, channels), value, np.uint16)
    row[4:] = 0
    if bits == 16:
        packed = row.astype(">u2").tobytes()
    elif bits == 8:
        packed = row.astype(np.uint8).tobytes()
    else:
        each = np.unpackbits(row.astype(np.uint8), axis=1)[:, 8 - bits :]
        packed = np.packbits(each.ravel()).tobytes()
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, bits, channels - 1, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", value) * channels),
            chunk(b"IDAT", zlib.compress(b"\0" + packed)),
            chunk(b"IEND", b""),
        )
    )
    got = np.asarray(images.decode(data))[0]
    assert (got[:4] == 255).all()
    assert (got[4:] == 0).all()


def test_large_transparent_pictures_are_composited_in_tiles(monkeypatch):
    clear = picture(200, 100).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((200, 100)))
    palette = picture(200, 100).quantize(16)
    for made in (clear, clear.convert("LA"), palette):
        data = saved(made, **({"transparency": 3} if made is palette else {}))
        whole = images.decode(data)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_TILE", (64, 48))
            assert np.array_equal(images.decode(data), whole)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("PNG", "GIF", "WEBP"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert near(images.decode(data), frames[0], 3), format
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert images.probe(data).format == "JPEG"
    assert near(images.decode(data), frames[0], 3)


def test_box_is_of_the_upright_picture():
    data = saved(picture(), "PNG", exif=exif(6))
    whole = images.decode(data)
    box = (3, 5, 20, 40)
    assert np.array_equal(images.decode(data, box=box), whole.crop(box))
    for bad in ((0, 0, 33, 10), (5, 5, 5, 9), (-1, 0, 4, 4), (9, 9, 4, 4)):
        assert "empty or outside" in reason(data, box=bad)
    assert "left, upper, right, lower" in reason(data, box=("a", 0, 1, 1))


def test_draft_keeps_the_geometry():
    big = picture(1600, 1200)
    data = saved(big, "JPEG", quality=95, exif=exif(6))
    reduced = images.decode(data, draft=75)
    assert reduced.size == (300, 400)
    assert near(reduced.resize((60, 80)), images.decode(data).resize((60, 80)), 1)
    assert images.decode(data, draft=256).size == (1200, 1600)
    box = (8, 16, 1200, 1600)
    part = images.decode(data, draft=74, box=box)
    assert part.size == (298, 396)
    assert near(part.resize((60, 80)), images.decode(data, box=box).resize((60, 80)), 1)
    # an edge that the scale does not divide would be rounded
    assert images.decode(data, draft=74, box=(9, 16, 1200, 1600)).size == (1191, 1584)
    assert images.decode(saved(picture(1601, 1200), "JPEG"), draft=75).size == (1601, 1200)


def test_draft_hardly_changes_a_vector():
    from imgsearch.encoders import load_encoder

    encoder = load_encoder("mini", backend="eager")
    sample = Path(__file__).parent.parent / "data" / "VOCsample" / "JPEGImages"
    photo = images.decode(next(images.find(sample)).path)
    short = 8 * encoder.preprocessing.draft
    large = photo.resize((short * 3 // 2, short))
    data = saved(large, "JPEG", quality=90)
    pair = images.decode(data), images.decode(data, draft=encoder.preprocessing.draft)
    assert pair[0].size != pair[1].size
    one, other = encoder.encode_batch(np.stack([encoder.preprocess(each) for each in pair]))
    assert one @ other >= 0.999


def test_arrays_and_pictures():
    pixels = np.asarray(picture())
    assert np.array_equal(images.decode(pixels), pixels)
    assert np.array_equal(images.decode(pixels[:, ::-1]), pixels[:, ::-1])
    assert images.decode(np.zeros((4, 5), bool)).size == (5, 4)
    assert images.decode(np.zeros((4, 5, 1), np.uint8)).size == (5, 4)
    assert np.array_equal(images.decode(picture().convert("HSV")).size, (48, 32))
    assert "float64" in reason(np.zeros((4, 5)))
    assert "shape" in reason(np.zeros((4, 5, 2), np.uint8))
    assert reason(np.zeros((0, 5), np.uint8)) == "no pixels"
    assert "floating point" in reason(Image.new("F", (2, 2)))
    assert "pass a path" in reason(17)
    mine = picture()
    mine.info["exif"] = exif(6).tobytes()
    assert images.decode(mine).size == (32, 48)
    mine.info = {"mine": True}
    images.decode(mine)
    assert mine.info == {"mine": True}


# ---------------------------------------------------------------- attacks


def test_reasons_are_short(tmp_path):
    noise = noisy()
    jpeg, png = saved(noise, "JPEG"), saved(noise)
    assert reason(b"") == "empty (zero bytes)"
    assert reason(b"<html>not found</html>").startswith(
        "not an image in a supported format (JPEG, "
    )
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(png[: len(png) // 2]) == "truncated"
    assert reason(jpeg[:100]) == "truncated"
    assert reason(png[:40]).startswith("broken header: ")
    path = tmp_path / "x.png"
    path.write_bytes(png[:50])
    with pytest.raises(ImageError) as caught:
        images.decode(path)
    assert caught.value.path == str(path)
    with pytest.raises(ImageError) as caught:
        images.load(png[:50], name="from the camera").decode()
    assert caught.value.path == "from the camera"


def test_truncation_is_detected_regardless_of_pillows_settings(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for format in EVERY:
        for keep in (0.6, 0.75, 0.9):
            data = saved(noisy(), format)
            assert reason(data[: int(len(data) * keep)]), format
    png = saved(noisy())
    end = png.index(b"IDAT") + 4 + int.from_bytes(png[png.index(b"IDAT") - 4 :][:4])
    for cut in (0, 2, 4, 6):  # within the checksum, or the next chunk's header
        with pytest.raises(ImageError):
            images.decode(png[: end - 200] + png[end : end + cut])


def test_bombs_are_refused_before_they_are_decoded():
    ihdr = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    assert reason(b"\x89PNG\r\n\x1a\n" + body).startswith("too large: 60000 x 60000 pixels (limit")
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert reason(bytes(data)).startswith("too large: 65535 x 65535")


@pytest.mark.parametrize("limit", [None, 10_000, 10**9])
def test_pillows_own_limit_has_no_effect(limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert images.decode(saved(picture(200, 200))).size == (200, 200)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    for format in EVERY:
        assert reason(saved(picture(), format)).startswith("too large: 48 x 32"), format


def test_a_picture_with_broken_metadata_is_decoded():
    png = saved(picture())
    extra = (
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(500)))
        + chunk(b"acTL", b"\0\0\0\1" * 2)
        + chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x0f\0\3\0\0\0\2\0\6\0\0" * 3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: corrupt EXIF data
        assert np.array_equal(images.decode(png[:33] + extra + png[33:]), picture())
        jpeg = saved(picture(), "JPEG")
        junk = b"".join(
            b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
            for marker, body in (
                (
                    0xE1,
                    b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
                    + b"\x1a\1\5\0\xff\xff\xff\xff\1\0\0\0" * 900,
                ),
                (0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(500)),
                (0xE2, b"ICC_PROFILE\0\1\2" + bytes(500)),
                (0xED, b"Photoshop 3.0\0008BIM" + b"\xff" * 60),
            )
        )
        assert np.array_equal(images.decode(jpeg[:2] + junk + jpeg[2:]), images.decode(jpeg))


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_thousands_of_scans_is_refused(progressive):
    data = saved(picture(2000, 2000), "JPEG", progressive=progressive)
    at = data.rindex(b"\xff\xda")
    scan = data[at : at + 10]
    if not progressive:  # the first colour alone, again and again
        scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
        data = data[:at] + scan + data[at + 14 :]
    start = time.thread_time()
    assert re.match(r"a JPEG with 30\d\d scans", reason(data[:at] + scan * 3000 + data[at:]))
    assert time.thread_time() - start < 1


def test_a_motion_photo_is_read():
    """What phones call a motion photo: the film can hold the bytes of a scan's marker."""
    data = saved(picture(1000, 800), "JPEG")
    assert images.load(data + b"\xff\xda" * 2000).width == 1000


def test_a_run_length_encoded_bmp_is_refused():
    data = bytearray(saved(picture().quantize(), "BMP"))
    struct.pack_into("<I", data, 30, 1)
    assert "run-length encoded" in reason(bytes(data))


def test_tiles_of_a_tiff_are_bounded():
    """A tile may be larger than the picture, and is allocated whole."""
    data = bytearray(saved(picture(), "TIFF", compression="tiff_adobe_deflate"))
    at = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[at : at + 2], "little")
    entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    entries += [struct.pack("<HHII", tag, 4, 1, 60_000) for tag in (322, 323)]
    made = struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=lambda e: e[:2][::-1]))
    struct.pack_into("<I", data, 4, len(data))
    assert reason(bytes(data) + made + bytes(4)).startswith("too large: 60000 x 60000")


# ---------------------------------------------------------------- load


def test_load_reads_hashes_and_parses_once(tmp_path, monkeypatch):
    """Review 1: a new file was hashed twice, and its header parsed twice."""
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(picture(), "JPEG"))
    calls = []
    for module, name in ((images, "read"), (hashlib, "sha256"), (images, "_plugin")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1]
        )
    loaded = images.load(path)
    assert images.load(loaded) is loaded
    assert loaded.decode(draft=8).size == (loaded.width, loaded.height) == (48, 32)
    assert sorted(calls) == ["_plugin", "read", "sha256"]
    with pytest.raises(RuntimeError, match="load it again"):
        loaded.decode()


def test_a_decoded_image_releases_its_bytes():
    data = bytearray(saved(noisy()))
    loaded = images.load(bytes(data))
    kept = weakref.ref(loaded._picture)
    loaded.decode()
    assert kept() is None
    assert loaded._file.closed


def test_pictures_that_need_too_much_memory_are_refused(monkeypatch):
    """Attack row 4: one picture could take 1,449 MB."""
    monkeypatch.setattr(images, "MAX_MEMORY", 9 * 48 * 32)
    for format, options in (("WEBP", {}), ("JPEG", {"progressive": True, "subsampling": 0})):
        assert "too large: decoding 48 x 32 pixels" in reason(saved(picture(), format, **options))
    assert images.decode(saved(picture(), "JPEG", progressive=True)).size == (48, 32)


@settings(max_examples=300)
@given(
    which=strategies.integers(0, len(EVERY) - 1),
    cut=strategies.floats(0, 1),
    flips=strategies.lists(
        strategies.tuples(strategies.floats(0, 1, exclude_max=True), strategies.integers(1, 255)),
        max_size=8,
    ),
)
def test_mangled_files_give_an_image_or_an_image_error(which, cut, flips):
    data = bytearray(saved(picture(), EVERY[which], **({"exif": exif(6)} if which < 2 else {})))
    for where, bits in flips:
        data[int(where * len(data))] ^= bits
    data = bytes(data[: max(1, int(cut * 1.5 * len(data)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: corrupt EXIF data
        try:
            got, info, error = images.decode(data), images.probe(data), None
        except ImageError as caught:
            error = caught
    if error is None:
        assert got.size == (info.width, info.height)
    else:
        assert 0 < len(error.reason) < 200


def test_probe_describes_the_bytes():
    data = saved(picture())
    facts = images.probe(data)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert facts[2:6] == (len(data), 48, 32, "PNG")
    assert 0 <= facts.image_id < 2**63
    assert facts.image_id == int(facts.sha256, 16) >> (256 - 63)
