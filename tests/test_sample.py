"""The sample in data/ is whole, agrees with itself, and is what its script draws."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
import xml.etree.ElementTree as ET

import PIL
import pytest
from PIL import Image, ImageOps

from tests.conftest import ROOT, missing

SAMPLE = ROOT / "data" / "VOCsample"
MAIN = SAMPLE / "ImageSets" / "Main"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "data" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def annotations():
    return {path.stem: ET.parse(path).getroot() for path in SAMPLE.glob("Annotations/*.xml")}


def test_it_is_small_and_every_picture_has_an_annotation(annotations):
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    pictures = {path.name for path in SAMPLE.glob("JPEGImages/*")}
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert len(pictures) == 200
    assert {root.findtext("filename") for root in annotations.values()} == pictures
    for stem, root in annotations.items():
        assert root.findtext("filename").rsplit(".", 1)[0] == stem


def test_every_picture_opens_without_a_warning_and_has_the_size_it_says(annotations):
    kinds = set()
    for root in annotations.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(SAMPLE / "JPEGImages" / root.findtext("filename")) as picture:
                picture.load()
                kinds.add((picture.format, picture.mode, picture.getexif().get(0x0112, 1)))
                upright = ImageOps.exif_transpose(picture)
        said = (int(root.findtext("size/width")), int(root.findtext("size/height")))
        assert upright.size == said
        assert 200 <= min(said) <= max(said) <= 320
    assert {
        ("JPEG", "RGB", 1),
        ("JPEG", "RGB", 6),
        ("JPEG", "L", 1),
        ("PNG", "RGB", 1),
        ("PNG", "P", 1),
        ("PNG", "RGBA", 1),
        ("PNG", "L", 1),
    } <= kinds


def test_boxes_lie_inside_their_pictures_and_some_objects_are_hard(annotations, script):
    flags = {"truncated": 0, "occluded": 0, "difficult": 0}
    several = 0
    for root in annotations.values():
        width, height = int(root.findtext("size/width")), int(root.findtext("size/height"))
        things = root.findall("object")
        several += len({thing.findtext("name") for thing in things}) > 1
        assert things
        for thing in things:
            assert thing.findtext("name") in script.GLYPHS
            left, upper, right, lower = (
                int(thing.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            assert 1 <= left <= right <= width
            assert 1 <= upper <= lower <= height
            for flag in flags:
                flags[flag] += int(thing.findtext(flag))
    assert all(count > 0 for count in flags.values()), flags
    assert several >= 40


def test_image_sets_agree_with_the_annotations(annotations, script):
    stems = {which: (MAIN / f"{which}.txt").read_text().split() for which in ("train", "val")}
    trainval = (MAIN / "trainval.txt").read_text().split()
    assert not set(stems["train"]) & set(stems["val"])
    assert sorted(stems["train"] + stems["val"]) == trainval == sorted(annotations)
    stems["trainval"] = trainval
    labels = set()
    for name in script.GLYPHS:
        for which, members in stems.items():
            lines = [line.split() for line in (MAIN / f"{name}_{which}.txt").open()]
            assert [stem for stem, _ in lines] == members
            for stem, label in lines:
                difficult = [
                    thing.findtext("difficult") == "1"
                    for thing in annotations[stem].findall("object")
                    if thing.findtext("name") == name
                ]
                assert label == ("-1" if not difficult else "0" if all(difficult) else "1")
                labels.add(label)
            assert sum(label == "1" for _, label in lines) >= 4, (name, which)
    assert labels == {"1", "0", "-1"}
    assert len(script.GLYPHS) == 20


def test_the_script_draws_the_same_bytes(script, tmp_path):
    if not script.FONT.is_file():
        missing("the emoji font", "install Debian's fonts-noto-color-emoji")
    if hashlib.sha256(script.FONT.read_bytes()).hexdigest() != script.FONT_SHA256:
        missing("the font of the sample", f"{script.FONT} is another version")
    if PIL.__version__ != script.PILLOW:
        missing(f"Pillow {script.PILLOW}", f"this is {PIL.__version__}: the pictures may differ")
    script.make(tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(SAMPLE)


def _digests(root) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
