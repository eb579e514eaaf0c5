"""Protocols on real stores: what is a query, what is searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.datasets.voc import Voc
from imgsearch.errors import ConfigError, DatasetError
from imgsearch.evaluation import protocols, scoring
from imgsearch.evaluation.protocols import Protocol, prepare
from imgsearch.gallery import Gallery
from tests.helpers import rows_and_vectors

KINDS = ("cat", "dog", "horse")
MAIN = 30  # images in Main: even ones are train, odd ones val; the others are in no set


def annotation(*things: tuple[str, int]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for name, difficult in things
    )
    return f"<annotation><size><width>9</width><height>9</height></size>{objects}</annotation>"


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Voc:
    """36 images: one class each, every fifth with a person, number 7 with a difficult cat."""
    root = tmp_path_factory.mktemp("data") / "VOC2012"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for i in range(36):
        things = [(KINDS[i % 3], 0)] + [("person", 0)] * (i % 5 == 0) + [("cat", 1)] * (i == 7)
        (root / "Annotations" / f"i{i:02d}.xml").write_text(annotation(*things))
    sets = {"train": range(0, MAIN, 2), "val": range(1, MAIN, 2), "trainval": range(MAIN)}
    for name, some in sets.items():
        text = "".join(f"i{i:02d}\n" for i in some)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return Voc(root)


@pytest.fixture(scope="module")
def gallery(shared_home, encoder, voc, tmp_path_factory):
    """The 36 images, a byte-identical copy of one of them elsewhere, two that are not VOC's."""
    database = tmp_path_factory.mktemp("metadata") / "metadata.sqlite"
    own = load_settings(imgsearch_home=shared_home, database_url=f"sqlite:///{database}")
    with Gallery.open("t_evaluation", encoder=encoder, create=True, settings=own) as gallery:
        rows, vectors = rows_and_vectors(gallery.row.dim, 38)
        folder = voc.root / "JPEGImages"
        rows = [
            row._replace(path=str(folder / f"i{i:02d}.jpg")) if i < 36 else row
            for i, row in enumerate(rows)
        ]
        directions = np.eye(3, gallery.row.dim)
        for i, row in enumerate(rows[:36]):
            vector = 0.5 * vectors[row.image_id] + directions[i % 3] * 0.4
            vectors[row.image_id] = (vector / np.linalg.norm(vector)).astype(np.float32)
        rows.append(rows[4]._replace(path="/elsewhere/copy.jpg"))
        assert gallery.add(rows, vectors) == []
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
    for i, image_id in enumerate(task.ids):
        assert (task.vectors[i] == stored[image_id]).all()


def test_leave_one_out_ranks_everything_but_the_query(gallery, voc):
    task = prepare(gallery, voc, "leave-one-out trainval")
    assert len(task.queries) == len(task.gallery) == MAIN
    view = protocols.exact(task).views["all"]
    place = {name: i for i, name in enumerate(task.names[q] for q in task.queries)}
    # i07 shows a dog and a difficult cat; cats are junk to it, and it to cats.
    assert view.candidates[place["i07"]] == MAIN - 1 - 10
    assert view.candidates[place["i09"]] == MAIN - 1 - 1
    assert view.candidates[place["i08"]] == MAIN - 1
    assert view.values["mAP"].mean() > 0.8


def test_distractors_are_searched_and_never_relevant(gallery, voc):
    plain = prepare(gallery, voc, "leave-one-out trainval")
    task = prepare(gallery, voc, Protocol("trainval", "trainval", distractors=True))
    assert len(task.queries) == MAIN
    assert len(task.gallery) == MAIN + 8
    assert task.about["distractors"] == 8
    without, with_them = (protocols.exact(t).views["all"] for t in (plain, task))
    assert (without.relevant == with_them.relevant).all()
    # Of the eight, the two that share the annotated class are junk; persons are in i30, i35.
    i = [plain.names[q] for q in plain.queries].index("i08")
    assert with_them.candidates[i] - without.candidates[i] == 6


def test_images_of_one_class_only(gallery, voc):
    task = prepare(gallery, voc, "leave-one-out trainval", classes=["cat", "horse"])
    kept = {f"i{i:02d}" for i in range(MAIN) if i % 3 != 1 and i % 5 != 0}
    assert names(task, task.queries) == kept
    assert task.about["single_label_classes"] == ["cat", "horse"]


def test_missing_images_are_an_error_or_counted(gallery, voc, tmp_path):
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").parent.mkdir()
    for folder in ("Annotations", "ImageSets"):
        (root / folder).symlink_to(voc.root / folder)
    (root / "JPEGImages").mkdir()
    with pytest.raises(DatasetError, match=r"30 of 30 images .* the first is i00.*very path"):
        prepare(gallery, Voc(root), "leave-one-out trainval")
    (root / "JPEGImages").rmdir()
    (root / "JPEGImages").symlink_to(voc.root / "JPEGImages")
    assert len(prepare(gallery, Voc(root), "leave-one-out trainval").ids) == MAIN
    target = voc.root / "JPEGImages" / "i02.jpg"
    row = gallery.get(str(target))
    vector = dict(zip(*gallery.embeddings(), strict=True))[row.image_id]
    gallery.delete([row.path])
    try:
        with pytest.raises(DatasetError, match=r"1 of 30 .* the first is i02.*allow_missing"):
            prepare(gallery, voc, "leave-one-out trainval")
        task = prepare(gallery, voc, "leave-one-out trainval", allow_missing=True)
        assert (len(task.ids), task.about["missing_images"]) == (MAIN - 1, 1)
    finally:
        gallery.add([row], {row.image_id: vector})


def test_served_to_full_depth_is_the_exact_ranking(gallery, voc):
    for protocol in ("train -> val", "leave-one-out trainval"):
        task = prepare(gallery, voc, protocol)
        exact, served = protocols.exact(task), protocols.as_served(gallery, task, top_k=38)
        for metric, values in exact.views["all"].values.items():
            assert served.views["all"].values[metric] == pytest.approx(values, abs=1e-6), metric
        assert served.neighbour_scores == pytest.approx(exact.neighbour_scores, abs=1e-5)
        assert "as served by HNSW" in served.about["ranking"]
        shallow = protocols.as_served(gallery, task, top_k=5, search_params={"ef": 32})
        assert shallow.about["mean_depth"] <= 5
        assert (shallow.views["all"].relevant == exact.views["all"].relevant).all()
        assert shallow.summary()[0].value < exact.summary()[0].value


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
def test_other_texts_are_no_protocol(text):
    with pytest.raises(ConfigError, match="is none"):
        Protocol.parse(text)


def test_photographs_of_one_animal_each(shared):
    """Sanity on real photographs and labels: colour means know little, but not nothing."""
    from PIL import Image

    voc = Voc(shared / "voc" / "VOC2012")
    animals = ("cat", "cow", "dog", "horse", "sheep")
    chosen = voc.single_label(voc.image_set("trainval"), animals)
    assert len(chosen) == 187  # of 200; the others are in no set of Main
    vectors = []
    for name in chosen:
        with Image.open(voc.image_path(name)) as image:
            image.draft("RGB", (64, 64))
            vectors.append(np.asarray(image.convert("RGB").resize((4, 4))).ravel() - 127.5)
    task = scoring.task(np.arange(187), np.array(vectors), *voc.labels(chosen), names=chosen)
    figure = protocols.exact(task).summary()[0]
    assert figure.metric == "mAP"
    assert figure.baseline == pytest.approx(0.2158, abs=5e-3)
    assert 0.216 < figure.value < 0.35
