"""VOC datasets: the official ones whole, and small damaged and hostile ones."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from imgsearch.datasets.voc import CLASSES, MAX_ANNOTATION, Annotation, Object, Voc, parse
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
    main = root / "ImageSets" / "Main"
    (main / "trainval.txt").write_text("\n".join(names) + "\n")
    values = {"cat": "1 0 -1", "person": "0 -1 -1", "dog": "-1 -1 1"}
    for class_name in CLASSES:
        lines = zip(names, values.get(class_name, "-1 -1 -1").split(), strict=True)
        (main / f"{class_name}_trainval.txt").write_text("".join(f"{n} {v:>2}\n" for n, v in lines))
    return tmp_path / "VOCdevkit"


@pytest.fixture
def voc(devkit) -> Voc:
    return Voc(devkit)


@pytest.mark.parametrize(("year", "images", "trainval"), [(2007, 9963, 5011), (2012, 17125, 11540)])
def test_every_official_annotation_agrees_with_the_official_class_files(
    shared, tmp_path, year, images, trainval
):
    with tarfile.open(shared / "voc" / f"VOC{year}-annotations.tar.gz") as archive:
        for member in archive:
            if member.isfile():
                path = tmp_path / f"VOC{year}" / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    voc = Voc(tmp_path, year, cache=tmp_path / "cache")
    assert len(voc.annotations()) == images
    assert len(voc.image_set("trainval")) == trainval
    assert voc.disagreements("trainval") == []


def test_the_sample_with_photographs(shared):
    voc = Voc(shared / "voc" / "VOC2012")
    names = voc.image_set("trainval")
    assert voc.missing_images(names) == []
    assert voc.disagreements("trainval") == []
    assert set(voc.image_set("train")) | set(voc.image_set("val")) == set(names)


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


def test_roots_that_cannot_be_used(devkit):
    (devkit / "VOC2007").mkdir()
    for folder in ("Annotations", "ImageSets/Main"):
        (devkit / "VOC2007" / folder).mkdir(parents=True)
    for given, year, reason in [
        (devkit, None, "several years"),
        (devkit, 2010, "holds neither"),
        (devkit / "VOC2012", 2007, "is not VOC2007"),
        (devkit / "none", None, "is no folder"),
        (devkit, "../..", "no year"),
    ]:
        with pytest.raises(DatasetError, match=reason):
            Voc(given, year)


def test_objects_are_read_whole():
    part = "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    assert parse(xml(("cat", 1), extra=part).encode(), "a.xml") == Annotation(
        50, 60, (Object("cat", (1.0, 2.5, 30.0, 40.0), True, True, "Left"),)
    )


def test_labels_tell_difficult_only_from_present(voc):
    present, difficult = voc.labels(list(IMAGES))
    shown = [[CLASSES[c] for c in np.flatnonzero(row)] for row in present]
    unsure = [[CLASSES[c] for c in np.flatnonzero(row)] for row in difficult]
    assert shown == [["cat"], [], ["dog"], []]
    assert unsure == [["person"], ["cat"], [], []]
    assert voc.disagreements("trainval") == []
    assert voc.single_label(list(IMAGES), ["cat", "dog"]) == ("2007_000003",)
    with pytest.raises(DatasetError, match="none of aeroplane"):
        voc.single_label(list(IMAGES), ["unicorn"])


def test_a_wrong_official_file_is_reported(voc):
    path = voc.root / "ImageSets" / "Main" / "dog_trainval.txt"
    path.write_text(path.read_text().replace("2007_000003  1", "2007_000003 -1"))
    assert voc.disagreements("trainval") == [
        "dog in 2007_000003: 1 by its annotation, -1 in dog_trainval.txt"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("2007_000001\n../../etc/passwd\n", "line 2: '../../etc/passwd' is no name"),
        ("/etc/passwd\n", "line 1: .* is no name"),
        ("2007_000001\n\n2007_000001\n", "line 3: 2007_000001 is in line 1 too"),
        ("2007_000001 1\n", "line 1: one image"),
        ("2007_000009\n", "line 1: names 2007_000009, and Annotations/2007_000009.xml is missing"),
        ("\n", "names no image"),
        ("Jörg\n", "no ASCII"),
    ],
)
def test_image_sets_that_cannot_be_used(voc, content, reason):
    path = voc.root / "ImageSets" / "Main" / "trainval.txt"
    path.write_text(content)
    with pytest.raises(DatasetError, match=reason) as caught:
        voc.image_set("trainval")
    assert caught.value.path == str(path)


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "", "/etc/passwd", "x\0y", ".hidden"])
def test_names_never_lead_out_of_the_dataset(voc, name):
    for call in (voc.image_set, voc.image_path, lambda n: voc.annotations([n])):
        with pytest.raises(DatasetError, match="no name for an image"):
            call(name)


def test_a_missing_set_names_those_that_are_there(voc):
    with pytest.raises(DatasetError, match="is missing; there are the sets trainval"):
        voc.image_set("val")


def test_class_files_of_another_form_are_refused(voc):
    path = voc.root / "ImageSets" / "Main" / "cat_trainval.txt"
    for content in ("2007_000001\n", "2007_000001 2\n", "2007_000001 1\n2007_000001 1\n"):
        path.write_text(content)
        with pytest.raises(DatasetError, match=r"line [12]: expected an image once"):
            voc.class_set("cat", "trainval")


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB + xml(("cat", 0)), "line 1: declares a document type"),
        (FILE + xml(("cat", 0)), "line 1: declares a document type"),
        ((BOMB + xml()).encode("utf-16"), "declares a document type"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">' + xml(), "declares a document type"),
        ("", "line 1: no element found"),
        ("<annotation><size>", "line 1: no element found"),
        (xml(("cat", 0))[:-30], "line 1"),
        ("<annotation>&x;</annotation>", "line 1: undefined entity"),
        ("<html/>", "begins with <html>"),
        ("<annotation/>", "lacks <size>"),
        ("<annotation>" + "<a>" * 50, "nested too deeply"),
        (xml(("unicorn", 0)), "'unicorn' is none of VOC's twenty"),
        (xml(("cat", 2)), "<difficult> should be 0 or 1, not '2'"),
        (xml(("cat", 0)).replace("<xmin>1", "<xmin>nan"), "<xmin> should be a number"),
        (xml(("cat", 0)).replace("<xmin>1<", "<xmin>31<"), "inside out"),
        (xml().replace("50", "five"), "<width> should be a whole number"),
        ('<?xml version="1.0" encoding="klingon"?>' + xml(), "unknown encoding"),
        (b"\xff\xfe\x00" + b"\0" * 40, "line 1"),
        (b" " * (MAX_ANNOTATION + 1), "is larger than"),
    ],
)
def test_annotations_that_cannot_be_used(voc, content, reason):
    path = voc.root / "Annotations" / "2007_000001.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=reason) as caught:
        voc.annotations(["2007_000001"])
    assert caught.value.path == str(path)


def test_a_pipe_instead_of_an_annotation_does_not_hang(voc):
    path = voc.root / "Annotations" / "2007_000001.xml"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="no regular file"):
        voc.annotations()


def test_missing_images_and_annotations_are_named(voc):
    (voc.root / "JPEGImages" / "2007_000002.jpg").unlink()
    assert voc.missing_images(IMAGES) == ["2007_000002"]
    with pytest.raises(DatasetError, match=r"2007_000009\.xml: is missing"):
        voc.labels(["2007_000009"])


def test_images_are_known_by_folder_and_name(voc, tmp_path):
    folder = voc.root / "JPEGImages"
    assert voc.name_of(folder / "2007_000001.jpg") == "2007_000001"
    (tmp_path / "link").symlink_to(folder)
    assert voc.name_of(tmp_path / "link" / "2007_000001.jpg") == "2007_000001"
    assert voc.name_of(tmp_path / "2007_000001.jpg") is None
    assert (
        voc.name_of(folder / "2007_000001.png") == "2007_000001"
    )  # not official, as in the sample
    assert voc.name_of(folder / "2007_000001.xml") is None
    assert voc.image_path("2007_000001") == folder / "2007_000001.jpg"


def test_the_cache_notices_every_kind_of_change(devkit, tmp_path):
    def read() -> dict:
        return Voc(devkit, cache=tmp_path / "cache").annotations()

    first = read()
    (cache,) = (tmp_path / "cache").iterdir()
    path = devkit / "VOC2012" / "Annotations" / "2007_000003.xml"
    # The same size and the old modification time put back: only the inode's time tells.
    times = path.stat()
    path.write_text(IMAGES["2007_000003"].replace("dog", "cat"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = read()
    assert [o.name for o in second["2007_000003"].objects] == ["cat", "cat"]
    assert {n: a for n, a in second.items() if n != "2007_000003"} == {
        n: a for n, a in first.items() if n != "2007_000003"
    }
    path.unlink()
    assert "2007_000003" not in read()
    for damage in (b"", b"[]", b'{"version": 1}', cache.read_bytes()[:-5], b"\xff"):
        cache.write_bytes(damage)
        assert read() == {n: a for n, a in first.items() if n != "2007_000003"}


def test_the_cache_is_really_used(devkit, tmp_path):
    Voc(devkit, cache=tmp_path / "cache").annotations()
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes().replace(b'"dog"', b'"cow"'))
    again = Voc(devkit, cache=tmp_path / "cache").annotations()
    assert [o.name for o in again["2007_000003"].objects] == ["cow", "cow"]
