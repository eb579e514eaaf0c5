"""Finding, reading and decoding images, good and bad."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from PIL import Image, ImageFile

from imgsearch import images
from imgsearch.errors import ImageError

EVERY = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP")


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


def test_find_gives_files_in_the_order_of_their_relative_paths(tmp_path):
    for name in ("b.png", "a/z.png", "a.png", "a/b/c.png", "ä.png", "B.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    found = list(images.find(tmp_path))
    names = [str(each.path.relative_to(tmp_path)) for each in found]
    assert names == sorted(names, key=os.fsencode)
    assert len(names) == 6
    assert {each.size for each in found} == {5}
    assert found[0].mtime_ns == found[0].path.stat().st_mtime_ns
    top = [each.path.name for each in images.find(tmp_path, recursive=False)]
    assert top == ["B.png", "a.png", "b.png", "ä.png"]


def test_find_stays_inside_and_never_circles(tmp_path):
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
    os.mkfifo(root / "pipe.png")
    errors = []
    found = [each.path.name for each in images.find(root, on_error=errors.append)]
    assert found == ["annexed.png", "in.png"]
    assert [Path(error.path).name for error in errors] == ["dead.png", "link.png"]


def test_find_reports_folders_that_vanish_and_names_that_are_no_text(tmp_path):
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
def test_find_refuses_a_root_at_once(tmp_path, make, why):
    root = tmp_path / "root"
    if make:
        root.write_bytes(b"x")
    with pytest.raises(ImageError, match=why):
        images.find(root)


def test_candidates_are_known_by_content_or_by_what_they_claim():
    assert images.sniff(saved(picture(), "JPEG")) == "JPEG"
    assert images.is_candidate("no_extension", saved(picture())[:16])
    assert images.is_candidate("broken.JPG", b"")
    assert not images.is_candidate("notes.txt", b"P is not a picture")


# ---------------------------------------------------------------- read


def test_read_refuses_what_is_no_plain_file(tmp_path):
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        for name, why in {
            "empty.png": "zero bytes",
            "pipe.png": "not a regular file",
            "s.png": "not a regular file",
            "none.png": "no such file",
            "nul\0.png": "not a name of a file",
            "n" * 300: "file name too long",
            "": "not a regular file",
        }.items():
            with pytest.raises(ImageError, match=why):
                images.read(tmp_path / name if name else tmp_path)


def test_read_is_bounded(tmp_path):
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="too large"):
        images.read(tmp_path / "big.png")


# ---------------------------------------------------------------- decode


@pytest.mark.parametrize("format", EVERY)
def test_formats_are_known_by_content(tmp_path, format):
    path = tmp_path / "wrong.txt"
    path.write_bytes(saved(picture(), format))
    got = images.decode(path, formats=EVERY)
    assert (got.mode, got.size) == ("RGB", (48, 32))
    assert near(got, picture(), 12)
    assert images.probe(path.read_bytes(), formats=EVERY).format == format


def test_other_formats_only_if_asked_for():
    assert reason(saved(picture(), "GIF")) == "GIF is not among the formats JPEG, PNG"
    with pytest.raises(ValueError, match="TIFF"):
        images.decode(saved(picture()), formats=("TIFF",))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(format, turn):
    from PIL import ImageOps

    data = saved(picture(), format, exif=exif(turn))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    got = images.decode(data, formats=EVERY)
    assert np.array_equal(got, expected)
    facts = images.probe(data, formats=EVERY)
    assert (facts.width, facts.height) == got.size
    assert np.array_equal(images.decode(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes(mode):
    data = saved(picture().convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert near(images.decode(data), picture().convert(mode).convert("RGB"), 6)


def test_sixteen_bits_keep_their_upper_half():
    ramp = np.linspace(0, 65535, 64 * 4).astype(np.uint16).reshape(4, 64)
    got = np.asarray(images.decode(saved(Image.fromarray(ramp))))
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


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("PNG", "GIF", "WEBP"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert near(images.decode(data, formats=EVERY), frames[0], 3), format
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
    assert "give left" in reason(data, box=("a", 0, 1, 1))


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


def test_draft_hardly_changes_a_vector(shared):
    from imgsearch.encoders.base import load_encoder

    encoder = load_encoder(shared / "weights" / "mobilenet_v2.pt2", backend="eager")
    batch = []
    for found in list(images.find(shared / "voc" / "VOC2012" / "JPEGImages"))[:1]:
        photo = images.decode(found.path)
        large = photo.resize((photo.width * 6 // 8 * 8, photo.height * 6 // 8 * 8))
        data = saved(large, "JPEG", quality=90)
        pair = images.decode(data), images.decode(data, draft=256)
        if pair[0].size != pair[1].size:
            batch += [encoder.preprocess(each) for each in pair]
    assert batch
    vectors = encoder.encode_batch(np.stack(batch))
    assert (vectors[::2] * vectors[1::2]).sum(axis=1).min() >= 0.999


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
    assert "give a path" in reason(17)


# ---------------------------------------------------------------- attacks


def test_what_is_wrong_is_said_in_a_few_words(tmp_path):
    noise = noisy()
    jpeg, png = saved(noise, "JPEG"), saved(noise)
    assert reason(b"") == "zero bytes"
    assert reason(b"<html>not found</html>") == "not an image"
    assert reason(jpeg[: len(jpeg) // 2]) == "truncated"
    assert reason(png[: len(png) // 2]) == "truncated"
    assert reason(jpeg[:100]) == reason(png[:40]) == "truncated before the picture begins"
    path = tmp_path / "x.png"
    path.write_bytes(png[:50])
    with pytest.raises(ImageError) as caught:
        images.decode(path)
    assert caught.value.path == str(path)


def test_truncation_is_noticed_whatever_pillow_is_told(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for format in ("JPEG", "PNG"):
        data = saved(noisy(), format)
        assert reason(data[: len(data) * 3 // 4]) == "truncated"


def test_bombs_are_refused_before_they_are_decoded():
    ihdr = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    assert reason(b"\x89PNG\r\n\x1a\n" + body).startswith("too large: 60000 x 60000 pixels (limit")
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert reason(bytes(data)).startswith("too large: 65535 x 65535")
    assert reason(saved(picture()), max_pixels=100).startswith("too large: 48 x 32")
    for format in ("BMP", "GIF", "WEBP", "PPM"):
        assert "too large" in reason(saved(picture(), format), formats=EVERY, max_pixels=9)


def test_metadata_never_reaches_pillow():
    png = saved(picture())
    bomb = zlib.compress(bytes(20_000_000), 9)
    extra = (
        chunk(b"iCCP", b"x\0\0" + bomb)
        + chunk(b"zTXt", b"x\0\0" + bomb)
        + chunk(b"iTXt", b"x\0\1\0\0\0" + bomb)
        + chunk(b"acTL", b"\xff" * 8)
        + chunk(b"fcTL", b"\xff" * 26)
        + chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\x12\0\3\0\0\0\2\0\6\0\0" * 3)
    )
    got = images.decode(png[:33] + extra + png[33:])
    assert np.array_equal(got, picture())
    jpeg = saved(picture(), "JPEG")
    junk = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in (
            (
                0xE1,
                b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x1a\1\5\0\xff\xff\xff\xff\1\0\0\0" * 900,
            ),
            (0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff" + bytes(500)),
            (0xE2, b"ICC_PROFILE\0\1\2" + bytes(500)),
            (0xED, b"Photoshop 3.0\0008BIM" + b"\xff" * 60),
        )
    )
    assert np.array_equal(images.decode(jpeg[:2] + junk + jpeg[2:]), images.decode(jpeg))


def test_a_jpeg_of_endless_scans_is_refused():
    data = saved(picture(2000, 2000), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    assert "too many scans" in reason(data[:at] + data[at : at + 10] * 3000 + data[at:])


@settings(max_examples=300, deadline=None)
@given(
    which=strategies.integers(0, 5),
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
    try:
        got, error = images.decode(data, formats=EVERY), None
    except ImageError as caught:
        error = caught
    if error is None:
        facts = images.probe(data, formats=EVERY)
        assert got.size == (facts.width, facts.height)
    else:
        assert 0 < len(error.reason) < 200


def test_facts_are_of_the_bytes():
    data = saved(picture())
    facts = images.probe(data)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert facts[2:] == (len(data), 48, 32, "PNG")
    assert 0 <= facts.image_id < 2**63
    assert facts.image_id == int(facts.sha256, 16) >> (256 - 63)
