"""VOC datasets: the official ones whole, and small damaged and hostile ones."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from imgsearch.datasets.voc import CLASSES, MAX_ANNOTATION, Voc
from imgsearch.errors import DatasetError

THING = (
    "<object><name>{0}</name><pose>Left</pose><truncated>1</truncated><difficult>{1}</difficult>"
    "<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>{2}</object>"
)


def xml(*things: tuple[str, int], extra: str = "") -> str:
    body = "".join(THING.format(name, difficult, extra) for name, difficult in things)
    size = "<size><width>50</width><height>60</height><depth>3</depth></size>"
    return f"<annotation><owner><name>?</name></owner>{size}{body}</annotation>"


IMAGES = {
    "2007_000001": xml(("cat", 0), ("person", 1)),
    "2007_000002": xml(("cat", 1)),
    "2007_000003": xml(("dog", 0), ("dog", 1)),
    "2007_000004": xml(),
}


@pytest.fixture
def devkit(tmp_path) -> Path:
    """A devkit with a VOC2012 of four images, the first three of them in ``trainval``."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for name, content in IMAGES.items():
        (root / "Annotations" / f"{name}.xml").write_text(content)
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"jpeg")
    names = list(IMAGES)[:3]
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets" / "Main" / "cat_trainval.txt").write_text(f"{names[0]}  1\n")
    return tmp_path / "VOCdevkit"


@pytest.fixture
def voc(devkit) -> Voc:
    return Voc(devkit)


def official(voc: Voc, class_name: str, image_set: str) -> dict[str, int]:
    """What the official list of one class says: 1 present, -1 absent, 0 difficult ones only."""
    path = voc.root / "ImageSets" / "Main" / f"{class_name}_{image_set}.txt"
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}


def assert_agrees_with_the_official_lists(voc: Voc) -> None:
    names = voc.image_set("trainval")
    present, difficult = voc.labels(names)
    values = present.astype(int) * 2 + difficult - 1
    for column, class_name in enumerate(CLASSES):
        ours = dict(zip(names, values[:, column].tolist(), strict=True))
        assert ours == official(voc, class_name, "trainval"), class_name


@pytest.mark.parametrize(
    ("year", "images", "trainval"),
    [(2007, 9963, 5011), pytest.param(2012, 17125, 11540, marks=pytest.mark.soak)],
)
def test_every_official_annotation_agrees_with_the_official_class_files(
    shared, tmp_path, year, images, trainval
):
    with tarfile.open(shared / "voc" / f"VOC{year}-annotations.tar.gz") as archive:
        for member in archive:
            if member.isfile():
                path = tmp_path / f"VOC{year}" / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    voc = Voc(tmp_path, year)
    assert len(voc.annotated()) == images
    present, difficult = voc.labels(sorted(voc.annotated()))
    assert (present | difficult).any(axis=1).all()
    assert len(voc.image_set("trainval")) == trainval
    assert_agrees_with_the_official_lists(voc)


def test_the_sample_with_photographs(shared):
    voc = Voc(shared / "voc" / "VOC2012")
    names = voc.image_set("trainval")
    assert set(names) <= voc.image_files().keys()
    assert set(voc.image_set("train")) | set(voc.image_set("val")) == set(names)
    assert voc.image_sets() == ["train", "trainval", "val"]
    assert_agrees_with_the_official_lists(voc)


def test_every_layout_leads_to_the_same_root(devkit):
    root = devkit / "VOC2012"
    for given, year in [
        (root, None),
        (root, 2012),
        (devkit, None),
        (devkit, "2012"),
        (devkit.parent, "VOC2012"),
        (str(devkit.parent), 2012),
    ]:
        assert Voc(given, year).root == root


def test_invalid_roots_are_refused(devkit):
    (devkit / "VOC2007").mkdir()
    for folder in ("Annotations", "ImageSets/Main"):
        (devkit / "VOC2007" / folder).mkdir(parents=True)
    for given, year, reason in [
        (devkit, None, "several years"),
        (devkit, 2010, "contains neither"),
        (devkit / "VOC2012", 2007, "is not VOC2007"),
        (devkit / "none", None, "is not a folder"),
        (devkit, "../..", "not a year"),
    ]:
        with pytest.raises(DatasetError, match=reason):
            Voc(given, year)


def test_labels_distinguish_difficult_only_from_present(voc):
    present, difficult = voc.labels(list(IMAGES))
    shown = [[CLASSES[c] for c in np.flatnonzero(row)] for row in present]
    unsure = [[CLASSES[c] for c in np.flatnonzero(row)] for row in difficult]
    assert shown == [["cat"], [], ["dog"], []]
    assert unsure == [["person"], ["cat"], [], []]
    assert voc.single_label(list(IMAGES), ["cat", "dog"]) == ("2007_000003",)
    with pytest.raises(DatasetError, match="no class 'unicorn'; its classes: aeroplane"):
        voc.single_label(list(IMAGES), ["unicorn"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("2007_000001\n../../etc/passwd\n", "line 2: '../../etc/passwd' is not an image name"),
        ("/etc/passwd\n", "line 1: .* is not an image name"),
        ("2007_000001\n\n2007_000001\n", "line 3: 2007_000001 is also in line 1"),
        ("2007_000001 1\n", "line 1: '2007_000001 1' is not an image name"),
        ("2007_000009\n", "line 1: Annotations/2007_000009.xml is missing"),
        ("\n", "lists no images"),
        ("Jörg\n", "line 1: 'Jörg' is not an image name"),
    ],
)
def test_invalid_image_sets_are_refused(voc, content, reason):
    path = voc.root / "ImageSets" / "Main" / "trainval.txt"
    path.write_text(content)
    with pytest.raises(DatasetError, match=reason) as caught:
        voc.image_set("trainval")
    assert caught.value.path == str(path)


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "", "/etc/passwd", "x\0y", ".hidden"])
def test_names_never_lead_out_of_the_dataset(voc, name):
    for call in (voc.image_set, lambda n: voc.labels([n])):
        with pytest.raises(DatasetError, match="not a valid name for an image"):
            call(name)


def test_a_missing_set_is_reported_with_the_existing_ones(voc):
    with pytest.raises(DatasetError, match="is missing; the sets of this dataset are trainval"):
        voc.image_set("val")


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB + xml(("cat", 0)), "declares a document type"),
        (FILE + xml(("cat", 0)), "declares a document type"),
        ((BOMB + xml()).encode("utf-16"), "declares a document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">' + xml(), "declares a document type"),
        ("", "not well-formed XML: no element found"),
        ("<annotation><size>", "no element found: line 1"),
        (xml(("cat", 0))[:-30], "line 1"),
        ("<annotation>&x;</annotation>", "undefined entity: line 1"),
        ("<html/>", "begins with <html>"),
        ("<annotation>" + "<a>" * 50, "line 1"),
        (xml(("cat", 0), ("unicorn", 0)), "object 2: 'unicorn' is not a VOC class"),
        (xml(("cat", 2)), "object 1: <difficult> must be 0 or 1, not '2'"),
        ('<?xml version="1.0" encoding="klingon"?>' + xml(), "unknown encoding"),
        (b"\xff\xfe\x00" + b"\0" * 40, "line 1"),
        (b" " * (MAX_ANNOTATION + 1), "is larger than"),
    ],
)
def test_invalid_annotations_are_refused(voc, content, reason):
    path = voc.root / "Annotations" / "2007_000001.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=reason) as caught:
        voc.labels(["2007_000001"])
    assert caught.value.path == str(path)


def test_deep_nesting_does_not_exhaust_the_stack(voc):
    path = voc.root / "Annotations" / "2007_000001.xml"
    depth = MAX_ANNOTATION // 7 - 10
    path.write_text("<annotation>" + "<a>" * depth + "</a>" * depth + "</annotation>")
    present, difficult = voc.labels(["2007_000001"])
    assert not (present | difficult).any()


def test_a_pipe_instead_of_an_annotation_does_not_hang(voc):
    path = voc.root / "Annotations" / "2007_000001.xml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="not a regular file"):
        voc.labels(["2007_000001"])


def test_a_missing_annotation_is_named(voc):
    with pytest.raises(DatasetError, match=r"2007_000009\.xml: is missing"):
        voc.labels(["2007_000009"])


def test_image_files_are_jpeg_or_png(voc):
    folder = voc.root / "JPEGImages"
    (folder / "2007_000002.jpg").rename(folder / "2007_000002.png")  # as in the sample
    (folder / "notes.txt").write_text("?")
    files = voc.image_files()
    assert list(files) == list(IMAGES)
    assert files["2007_000001"] == folder / "2007_000001.jpg"
    assert files["2007_000002"] == folder / "2007_000002.png"
    shutil.rmtree(folder)
    with pytest.raises(DatasetError, match="JPEGImages: cannot be listed"):
        voc.image_files()
