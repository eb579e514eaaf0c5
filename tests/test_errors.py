from __future__ import annotations

import inspect

import pytest

from imgsearch import errors
from imgsearch.errors import printable

EXAMPLES = [
    errors.ConfigError("top_k", "is 0"),
    errors.FilterError('where["label"]', "is empty"),
    errors.ImageError("/a/b.jpg", "truncated"),
    errors.WeightsError("resnet50", "is missing"),
    errors.EncoderError("resnet50", "is unknown"),
    errors.EncoderMismatch("mine", "mini (abc)", "resnet50 (def)"),
    errors.CollectionNotFound("mine", ["other"]),
    errors.ImageNotFound("mine", "/a/b.jpg"),
    errors.StoreBusy("SQLite /x", "python, process 7", "it is being written"),
    errors.DatasetError("/voc/a.xml", "line 3: is no number"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_the_text_of_an_error_contains_its_attributes(error):
    assert isinstance(error, errors.ImgSearchError)
    attributes = [v for v in vars(error).values() if isinstance(v, str)]
    assert attributes
    for value in attributes:
        assert value in str(error)


def test_with_no_collection_the_error_advises_to_ingest():
    assert "run an ingest" in str(errors.CollectionNotFound("mine"))


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        ("plain.jpg", "plain.jpg"),
        ("Ängström 猫 🐈.jpg", "Ängström 猫 🐈.jpg"),
        ("two\nlines\t.jpg", r"two\nlines\t.jpg"),
        ("bad \udce4 byte.jpg", r"bad \udce4 byte.jpg"),
        ("\x1b[31mred", r"\x1b[31mred"),
    ],
)
def test_any_path_can_be_printed(thing, shown):
    assert printable(thing) == shown
    printable(thing).encode("utf-8")


def test_every_error_has_the_same_base_class():
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, Exception):
            assert issubclass(kind, errors.ImgSearchError)
