"""Protocols on real stores: what is a query, what is searched, and how images are matched."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.datasets.voc import Voc
from imgsearch.errors import ConfigError, DatasetError
from imgsearch.evaluation import scoring
from imgsearch.evaluation.protocols import Protocol, prepare
from imgsearch.evaluation.report import evaluate_collections
from imgsearch.gallery import Gallery
from imgsearch.images import image_id
from imgsearch.ingestion import ingest
from tests.helpers import paint, rows_and_vectors

KINDS = ("cat", "dog", "horse")
MAIN = 30  # images in Main: even ones are train, odd ones val; the others are in no set


def annotation(*things: tuple[str, int]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for name, difficult in things
    )
    return f"<annotation><size><width>9</width><height>9</height></size>{objects}</annotation>"


def make_voc(root: Path, images: int) -> Voc:
    """One class each, every fifth with a person, number 7 with a difficult cat; no files."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for i in range(images):
        things = [(KINDS[i % 3], 0)] + [("person", 0)] * (i % 5 == 0) + [("cat", 1)] * (i == 7)
        (root / "Annotations" / f"i{i:02d}.xml").write_text(annotation(*things))
    last = min(MAIN, images)
    sets = {"train": range(0, last, 2), "val": range(1, last, 2), "trainval": range(last)}
    for name, some in sets.items():
        text = "".join(f"i{i:02d}\n" for i in some)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return Voc(root)


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Voc:
    """36 images whose files are not pictures: an evaluation reads them for their identity."""
    voc = make_voc(tmp_path_factory.mktemp("data") / "VOC2012", 36)
    for i in range(36):
        (voc.root / "JPEGImages" / f"i{i:02d}.jpg").write_text(f"content {i}")
    return voc


@pytest.fixture(scope="module")
def gallery(shared_home, encoder, voc, tmp_path_factory):
    """The 36 images under paths of another machine, a copy of one, and two other images."""
    database = tmp_path_factory.mktemp("metadata") / "metadata.sqlite"
    own = load_settings(imgsearch_home=shared_home, database_url=f"sqlite:///{database}")
    with Gallery.open("t_evaluation", encoder=encoder, create=True, settings=own) as gallery:
        made, vectors = rows_and_vectors(gallery.row.dim, 38)
        directions = np.eye(3, gallery.row.dim)
        rows = made[36:]
        for i, row in enumerate(made[:36]):
            vector = 0.5 * vectors.pop(row.image_id) + directions[i % 3] * 0.4
            digest = hashlib.sha256(f"content {i}".encode()).hexdigest()
            row = row._replace(
                path=f"/elsewhere/i{i:02d}.jpg", sha256=digest, image_id=image_id(digest)
            )
            vectors[row.image_id] = (vector / np.linalg.norm(vector)).astype(np.float32)
            rows.append(row)
        rows.append(rows[6]._replace(path="/elsewhere/copy.jpg"))
        assert gallery.store(rows, vectors) == []
        gallery.flush()
        yield gallery
        gallery.drop()


def names(task, which):
    return {task.names[i] for i in which}


def test_gallery_and_query_sets(gallery, voc):
    task = prepare(gallery, voc)
    assert names(task, task.gallery) == {f"i{i:02d}" for i in range(0, MAIN, 2)}
    assert names(task, task.queries) == {f"i{i:02d}" for i in range(1, MAIN, 2)}
    assert task.about["protocol"] == "train -> val"
    assert task.about["fingerprint"] == gallery.row.fingerprint
    assert task.about["dataset"] == "VOC2012"
    for name, path in zip(task.names, task.paths, strict=True):
        assert Path(path).stem == name
    stored = dict(zip(*gallery.embeddings(), strict=True))
    for i, number in enumerate(task.ids):
        assert (task.vectors[i] == stored[number]).all()


def test_leave_one_out_ranks_everything_but_the_query(gallery, voc):
    task = prepare(gallery, voc, "leave-one-out trainval")
    assert len(task.queries) == len(task.gallery) == MAIN
    view = scoring.evaluate(task).views["all"]
    place = {name: i for i, name in enumerate(task.names[q] for q in task.queries)}
    # i07 shows a dog and a difficult cat; cats are junk to it, and it to cats.
    assert view.counts.candidates[place["i07"]] == MAIN - 1 - 10
    assert view.counts.candidates[place["i09"]] == MAIN - 1 - 1
    assert view.counts.candidates[place["i08"]] == MAIN - 1
    assert view.values["AP"].mean() > 0.8


def test_distractors_are_searched_and_never_relevant(gallery, voc):
    plain = prepare(gallery, voc, "leave-one-out trainval")
    task = prepare(gallery, voc, Protocol("trainval", "trainval", distractors=True))
    assert len(task.queries) == MAIN
    assert len(task.gallery) == MAIN + 8
    assert task.about["distractors"] == 8
    without, with_them = (scoring.evaluate(t).views["all"] for t in (plain, task))
    assert (without.counts.relevant == with_them.counts.relevant).all()
    # Of the eight, the two that share the annotated class are junk; persons are in i30, i35.
    i = [plain.names[q] for q in plain.queries].index("i08")
    assert with_them.counts.candidates[i] - without.counts.candidates[i] == 6


def test_images_of_one_class_only(gallery, voc):
    task = prepare(gallery, voc, "leave-one-out trainval", classes=["cat", "horse"])
    kept = {f"i{i:02d}" for i in range(MAIN) if i % 3 != 1 and i % 5 != 0}
    assert names(task, task.queries) == kept
    assert task.about["single_label_classes"] == ["cat", "horse"]


def test_one_collection_may_be_given_by_its_name(gallery, voc):
    """A text was taken for a sequence of names of one character each."""
    for names in (gallery.name, [gallery.name, ""]):
        found = evaluate_collections(voc, names, settings=gallery.settings, ks=[1])
        assert list(found) == [gallery.name]


def test_groups_come_from_the_dataset(gallery, voc):
    averages = {s.average for s in scoring.evaluate(prepare(gallery, voc), resamples=2).summary()}
    assert averages == {"micro", "micro without person", "macro", "macro without person"}


def test_missing_images_are_an_error_or_counted(gallery, voc, tmp_path):
    empty = make_voc(tmp_path / "VOC2012", MAIN)
    with pytest.raises(DatasetError, match=r"30 of 30 images .* first is i00; .* files of 30"):
        prepare(gallery, empty, "leave-one-out trainval", allow_missing=True)
    (row,) = gallery.metadata.by_path(gallery.name, ["/elsewhere/i02.jpg"]).values()
    vector = dict(zip(*gallery.embeddings(), strict=True))[row.image_id]
    gallery.delete([row.path])
    try:
        with pytest.raises(DatasetError, match=r"1 of 30 .* the first is i02: .*allow_missing"):
            prepare(gallery, voc, "leave-one-out trainval")
        task = prepare(gallery, voc, "leave-one-out trainval", allow_missing=True)
        assert (len(task.ids), task.about["missing_images"]) == (MAIN - 1, 1)
    finally:
        gallery.store([row], {row.image_id: vector})


def test_a_collection_of_a_copy_is_evaluated_also_after_the_copy_was_moved(
    shared_home, encoder, tmp_path
):
    """Review 1, decision 1: images were matched by absolute path."""
    voc = make_voc(tmp_path / "VOC2012", 8)
    for i in range(8):
        paint(voc.root / "JPEGImages" / f"i{i:02d}.jpg", i)
    copy = shutil.copytree(voc.root / "JPEGImages", tmp_path / "copy")
    own = load_settings(
        imgsearch_home=shared_home, database_url=f"sqlite:///{tmp_path / 'metadata.sqlite'}"
    )
    ingest(copy, "t_copy", encoder=encoder, settings=own)
    with Gallery.open("t_copy", settings=own) as gallery:
        task = prepare(gallery, voc, "leave-one-out trainval")
        assert task.about["missing_images"] == 0
        assert [Path(path).parent for path in task.paths] == [voc.root / "JPEGImages"] * 8
        copy.rename(tmp_path / "moved")
        again = prepare(gallery, voc, "leave-one-out trainval")
        assert again.fingerprint == task.fingerprint
        assert (again.vectors == task.vectors).all()
        elsewhere = Voc(voc.root.rename(tmp_path / "mounted"))
        assert prepare(gallery, elsewhere, "leave-one-out trainval").fingerprint == task.fingerprint
        gallery.drop()


def test_files_that_were_ingested_in_place_are_not_read_again(shared_home, encoder, tmp_path):
    voc = make_voc(tmp_path / "VOC2012", 4)
    for i in range(4):
        paint(voc.root / "JPEGImages" / f"i{i:02d}.png", i)
    own = load_settings(
        imgsearch_home=shared_home, database_url=f"sqlite:///{tmp_path / 'metadata.sqlite'}"
    )
    ingest(voc.root / "JPEGImages", "t_in_place", encoder=encoder, settings=own)
    path = voc.root / "JPEGImages" / "i01.png"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with Gallery.open("t_in_place", settings=own) as gallery:
        lines: list[str] = []
        assert len(prepare(gallery, voc, progress=lines.append).ids) == 4
        assert lines == ["identified 0 of 4 images by content"]
        os.utime(path)
        with pytest.raises(DatasetError, match=r"1 of 4 images .* the first is i01"):
            prepare(gallery, voc)
        gallery.drop()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train -> val", Protocol("train", "val")),
        (" trainval->test ", Protocol("trainval", "test")),
        ("leave-one-out trainval", Protocol("trainval", "trainval")),
        ("leave-one-out:val", Protocol("val", "val")),
    ],
)
def test_protocols_are_read_from_text(text, expected):
    assert Protocol.parse(text) == expected
    assert Protocol.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "train", "train > val", "../x -> val", "leave-one-out ../x"])
def test_other_texts_are_refused_as_protocols(text):
    with pytest.raises(ConfigError, match="is not a protocol"):
        Protocol.parse(text)


def test_photographs_of_one_animal_each(shared):
    """Sanity on real photographs and labels: colour means know little, but not nothing."""
    from PIL import Image

    voc = Voc(shared / "voc" / "VOC2012")
    animals = ("cat", "cow", "dog", "horse", "sheep")
    chosen = voc.single_label(voc.image_set("trainval"), animals)
    assert len(chosen) == 187  # of 200; the others are in no set of Main
    files, vectors = voc.image_files(), []
    for name in chosen:
        with Image.open(files[name]) as image:
            image.draft("RGB", (64, 64))
            vectors.append(np.asarray(image.convert("RGB").resize((4, 4))).ravel() - 127.5)
    labels = voc.labels(chosen)
    task = scoring.task(
        np.arange(187), np.array(vectors), *labels, classes=voc.classes, names=chosen
    )
    score = scoring.evaluate(task).summary()[0]
    assert score.metric == "mAP"
    assert score.baseline == pytest.approx(0.2158, abs=5e-3)
    assert 0.216 < score.value < 0.35
