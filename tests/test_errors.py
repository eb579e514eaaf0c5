from __future__ import annotations

import inspect

import pytest

from imgsearch import errors
from imgsearch.errors import printable

EXAMPLES = [
    errors.ConfigError("top_k", "is 0"),
    errors.ImageError("/a/b.jpg", "truncated"),
    errors.WeightsError("resnet50", "is missing"),
    errors.EncoderError("resnet50", "is unknown"),
    errors.EncoderMismatch("mine", "mini (abc)", "resnet50 (def)"),
    errors.CollectionNotFound("mine", ["other"]),
    errors.ImageNotFound("mine", "/a/b.jpg"),
    errors.StoreBusy("SQLite /x", "python, process 7", "it is being written"),
    errors.DatasetError("/voc/a.xml", "line 3: is no number"),
    errors.IngestError("/photos", "the disk is full"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_says_in_its_text_what_it_carries(error):
    assert isinstance(error, errors.ImgSearchError)
    carried = [v for v in vars(error).values() if isinstance(v, str)]
    assert carried
    for value in carried:
        assert value in str(error)


def test_an_empty_home_is_told_what_to_do():
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


def test_every_error_of_the_module_is_of_one_family():
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, Exception):
            assert issubclass(kind, errors.ImgSearchError)
