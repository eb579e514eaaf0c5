"""Words for the bundled encoder: what it knows, what it refuses, what it finds."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from imgsearch.datasets.voc import Voc
from imgsearch.encoders import load_encoder, mini_words
from imgsearch.errors import EncoderError, WeightsError


@pytest.fixture(scope="module")
def words():
    return mini_words.Words.load()


def test_file_is_the_described_one_and_small():
    content = mini_words.FILE.read_bytes()
    assert len(content) <= 700_000
    assert hashlib.sha256(content).hexdigest() == mini_words.SHA256


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "words.npz").write_bytes(b"broken")
    with pytest.raises(WeightsError, match="is damaged: install imgsearch again"):
        mini_words.Words.load(tmp_path / "words.npz")


def test_vectors_are_unit_vectors_of_the_image_space(words):
    vectors = words.encode(["dog", "a photo of a cat", "sports car on a beach"])
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 256))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert words.encode([]).shape == (0, 256)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dogs", "dog"), ("a horse", "horses"),
        ("pottedplant", "potted plants"), ("tvmonitor", "TV monitor"), ("geese", "goose"),
        ("diningtable", "dining table"), ("sofa", "couches"), ("buses", "bus"), ("kites", "kite"),
        ("oranges", "orange"), ("potatoes", "potato"),
        ("a picture of the aeroplane.", "airplane"), ("lady's slipper", "ladys slipper"),
    ],
)  # fmt: skip
def test_different_ways_to_write_a_word_are_one(words, one, other):
    np.testing.assert_array_equal(*words.encode([one, other]))


def test_the_longest_name_counts_and_several_are_averaged(words):
    tree, house, both = words.encode(["tree frog", "frog", "frog and car"])
    assert tree @ house < 0.999
    parts = words.encode(["frog", "car"]).sum(axis=0)
    np.testing.assert_allclose(both, parts / np.linalg.norm(parts), atol=1e-6)


def test_kinds_are_nearer_to_their_members_than_to_others(words):
    members = {
        "dog": "beagle", "bird": "robin", "vehicle": "minivan", "furniture": "bookcase",
        "food": "pizza",
    }  # fmt: skip
    kinds, ones = (words.encode(list(names)) for names in (members, members.values()))
    assert (kinds @ ones.T).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "word", "offered"),
    [
        ("zebbra", "zebbra", "zebra"), ("motorcyles", "motorcyles", "motorcycle"),
        ("a kitten", "kitten", "cat"), ("six puppies", "six", "six gun, six shooter"),
        ("puppies", "puppies", "dog, canine, domestic animal"), ("lamb", "lamb", "sheep"),
        ("chaise", "chaise", "chair, furniture"), ("lorry", "lorry", "wagon, "),
        ("a brown horse", "brown", "brown bear"), ("grass", "grass", "grass snake"),
        ("tubes", "tubes", "electronic device"), ("clothes", "clothes", "clothing"),
    ],
)  # fmt: skip
def test_an_unknown_word_is_an_error_that_offers_the_nearest(words, text, word, offered):
    nearest = f"does not know the word '{word}'( in .*)?; the nearest that it knows: {offered}"
    with pytest.raises(EncoderError, match=nearest):
        words.encode(["dog", text])


@pytest.mark.parametrize(("text", "word"), [("woman", "woman"), ("dog 猫", "猫"), ("Café", "café")])
def test_a_word_that_is_like_no_other_is_named_whole(words, text, word):
    with pytest.raises(EncoderError, match=f"does not know the word '{word}'.*it knows none like"):
        words.encode([text])


def test_everything_that_is_offered_is_known(words):
    offered = {name for offer in words.offers.values() for name in offer.split(", ")}
    assert words.encode(sorted(offered)).shape == (len(offered), 256)
    assert not words.offers.keys() & set(words.names)


@pytest.mark.parametrize("text", ["", "the", "?!", "a picture of"])
def test_a_text_without_a_word_to_search_for_is_an_error(words, text):
    with pytest.raises(EncoderError, match="finds no word to search for"):
        words.encode([text])


def test_finds_what_is_named(shared):
    voc = Voc(shared / "voc" / "VOC2012")
    names = voc.single_label(sorted(voc.annotated()), ("cat", "cow", "dog", "horse", "sheep"))
    files, encoder = voc.image_files(), load_encoder("mini", device="cpu", backend="eager")
    vectors = np.concatenate(
        [encoder.encode([files[name] for name in names[i : i + 50]]) for i in range(0, 200, 50)]
    )
    present, _ = voc.labels(names)
    order = np.argsort(-encoder.encode_text(["dog", "sheep"]) @ vectors.T, axis=1)[:, :10]
    dog, sheep = (present[:, voc.classes.index(name)] for name in ("dog", "sheep"))
    assert dog[order[0]].mean() >= 0.9
    assert sheep[order[1]].mean() >= 0.9
