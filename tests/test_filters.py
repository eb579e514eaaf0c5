from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from imgsearch.errors import FilterError
from imgsearch.filters import (
    MAX_BYTES,
    And,
    Condition,
    Not,
    Or,
    check_attributes,
    parse,
)

CAT = Condition("label", "in", ("cat",))
DOG = Condition("label", "in", ("dog",))


@pytest.mark.parametrize(
    ("where", "tree"),
    [
        ({"label": "cat"}, CAT),
        ({"label": {"=": "cat"}}, CAT),
        ({"label": {"!=": "cat"}}, Not(CAT)),
        ({"label": ["cat", "dog"]}, Condition("label", "in", ("cat", "dog"))),
        ({"label": {"in": ("cat", "dog")}}, Condition("label", "in", ("cat", "dog"))),
        ({"label": []}, Condition("label", "in", ())),
        ({"label": {"exists": True}}, Condition("label", "exists", None)),
        ({"label": {"exists": False}}, Not(Condition("label", "exists", None))),
        ({"label": "cat", "n": 5}, And((CAT, Condition("n", "in", (5,))))),
        (
            {"n": {">=": 1, "<": 2.5}},
            And((Condition("n", ">=", 1), Condition("n", "<", 2.5))),
        ),
        ({"or": [{"label": "cat"}, {"label": "dog"}]}, Or((CAT, DOG))),
        ({"and": [{"label": "cat"}, {"label": "dog"}]}, And((CAT, DOG))),
        ({"and": [{"label": "cat"}]}, CAT),
        ({"not": {"label": "cat"}}, Not(CAT)),
        ({"label": np.array(["cat", "dog"])}, Condition("label", "in", ("cat", "dog"))),
        ({"day": date(2024, 5, 31)}, Condition("day", "in", ("2024-05-31",))),
        ({"format": "jpeg"}, Condition("format", "in", ("JPEG",))),
        ({"format": ["jpg", "tif"]}, Condition("format", "in", ("JPEG", "TIFF"))),
        ({"path": Path("/a//b/../c.png")}, Condition("path", "in", ("/a/c.png",))),
        ({"folder": "/a/"}, Condition("folder", "in", ("/a",))),
        ({"path": {"prefix": "/a/"}}, Condition("path", "prefix", "/a/")),
        ({"width": np.int64(7)}, Condition("width", "in", (7,))),
        ({"n": np.float32(0.5)}, Condition("n", "in", (0.5,))),
        ({"has_gps": np.True_}, Condition("has_gps", "in", (True,))),
        ({"$.a\"'": "x"}, Condition("$.a\"'", "in", ("x",))),
    ],
)
def test_a_filter_becomes_a_tree(where, tree):
    assert parse(where) == tree
    assert parse(parse(where)) == tree
    assert hash(tree) == hash(parse(where))


def test_no_filter_and_an_empty_one_admit_everything():
    assert parse(None) is None
    assert parse({}) is None


@pytest.mark.parametrize(
    ("value", "start", "length"),
    [
        ("2024", datetime(2024, 1, 1), timedelta(days=366)),
        ("2024-02", datetime(2024, 2, 1), timedelta(days=29)),
        ("2024-12", datetime(2024, 12, 1), timedelta(days=31)),
        ("2024-05-31", datetime(2024, 5, 31), timedelta(days=1)),
        (date(2024, 5, 31), datetime(2024, 5, 31), timedelta(days=1)),
        ("2024-05-31 12:30", datetime(2024, 5, 31, 12, 30), timedelta(minutes=1)),
        ("2024-05-31T12:30:59", datetime(2024, 5, 31, 12, 30, 59), timedelta(seconds=1)),
        (datetime(2024, 5, 31), datetime(2024, 5, 31), timedelta(microseconds=1)),
        (pd.Timestamp("2024-05-31"), datetime(2024, 5, 31), timedelta(microseconds=1)),
    ],
)
def test_a_date_is_the_period_that_it_names(value, start, length):
    assert parse({"date_taken": {"<": value}}).value == (start, start + length)
    utc = start.replace(tzinfo=UTC)
    span = parse({"added_at": {"<": value}}).value
    assert span == (utc, utc + length)
    assert {type(time) for time in span} == {datetime}  # what databases take


def test_a_time_with_a_zone_is_converted():
    (span,) = parse({"added_at": "2024-05-31T12:30:00+02:00"}).value
    assert span.start == datetime(2024, 5, 31, 10, 30, tzinfo=UTC)


def deep(levels: int) -> dict:
    where = {"label": "cat"}
    for _ in range(levels - 1):
        where = {"not": where}
    return where


@pytest.mark.parametrize(
    ("where", "place", "reason"),
    [
        ("label = cat", "where", "a dict such as"),
        ([{"label": "cat"}], "where", "a dict such as"),
        ({"not": {}}, 'where["not"]', "is empty"),
        ({"and": []}, 'where["and"]', "a list of one or more"),
        ({"or": {"label": "cat"}}, 'where["or"]', "a list of one or more"),
        ({"or": [{"label": "cat"}, 5]}, 'where["or"][1]', "a dict such as"),
        ({"label": {}}, 'where["label"]', "give a value, or an operator"),
        ({"label": {"=>": 1}}, 'where["label"]["=>"]', "is no operator: did you mean '>'"),
        ({"label": {"contain": "a"}}, 'where["label"]["contain"]', "did you mean 'contains'?"),
        ({"label": {"$gt": 1}}, 'where["label"]["$gt"]', "there are =, !=, <"),
        ({"label": {5: 1}}, 'where["label"][5]', "is no operator"),
        ({"label": {"not in": ["a"]}}, 'where["label"]["not in"]', "operator: there are"),
        ({"label": {"!=": ["a", "b"]}}, 'where["label"]["!="]', 'use {"not": '),
        ({"label": pd.NaT}, 'where["label"]["="]', "is NaT"),
        ({"image_id": 5}, 'where["image_id"]', "Gallery.get"),
        (pd.Series([True]), "where", "a dict such as"),
        ({"path": "photos/a.png"}, 'where["path"]["="]', "give the absolute path"),
        ({"folder": ["/a", "photos"]}, 'where["folder"]["in"]', '"photos", a relative path'),
        ({"path": {"prefix": "~/"}}, 'where["path"]["prefix"]', "use 'contains'"),
        ({"label": None}, 'where["label"]["="]', '{"exists": False}'),
        ({"label": {"in": "cat"}}, 'where["label"]["in"]', "a list of values"),
        ({"label": {"in": ["cat", ["dog"]]}}, 'where["label"]["in"]', "a text, a number"),
        ({"label": {"exists": 1}}, 'where["label"]["exists"]', "true or false"),
        ({"label": {"prefix": 1}}, 'where["label"]["prefix"]', "a text is needed"),
        ({"label": {"<": True}}, 'where["label"]["<"]', "neither less nor more"),
        ({"label": float("nan")}, 'where["label"]["="]', "a finite number"),
        ({"label": 10**17}, 'where["label"]["="]', "beyond 2**53"),
        ({"label": b"cat"}, 'where["label"]["="]', "a bytes"),
        ({"label": "\ud800"}, 'where["label"]["="]', "not valid Unicode"),
        ({"label": "x" * (MAX_BYTES + 1)}, 'where["label"]["="]', "limit 8,192"),
        ({"width": "800"}, 'where["width"]["="]', '"800", but width is a number'),
        ({"width": True}, 'where["width"]["="]', "but width is a number"),
        ({"width": {"prefix": "8"}}, 'where["width"]["prefix"]', "which is a number"),
        ({"path": 5}, 'where["path"]["="]', "but path is a text"),
        ({"has_gps": 1}, 'where["has_gps"]["="]', "but has_gps is a truth value"),
        ({"has_gps": {">": True}}, 'where["has_gps"][">"]', "which is a truth value"),
        ({"added_at": "May 2024"}, 'where["added_at"]["="]', "such as '2024-05-31'"),
        ({"added_at": "2024-02-30"}, 'where["added_at"]["="]', "which is no time"),
        ({"added_at": "9999"}, 'where["added_at"]["="]', "which is no time"),
        ({"added_at": date.max}, 'where["added_at"]["="]', "in the years 1 to 9998"),
        ({"added_at": "0001-01-01T00:00+14:00"}, 'where["added_at"]["="]', "which is no time"),
        ({"added_at": pd.NaT}, 'where["added_at"]["="]', "is NaT; a date is needed"),
        ({"date_taken": "2024-05-31T12:00Z"}, 'where["date_taken"]["="]', "has a time zone"),
        ({"": 1}, 'where[""]', "is not a name"),
        ({" label": 1}, 'where[" label"]', "is not a name"),
        ({"a\nb": 1}, r'where["a\nb"]', "is not a name"),
        ({"x" * 65: 1}, None, "is not a name"),
        ({5: 1}, "where[5]", "is not a name"),
        (deep(17), None, "more than 16 levels"),
        ({"or": [{"label": "cat"}] * 257}, "where", "more than 256 tests"),
        ({"label": ["cat"] * 10_001}, "where", "more than 10,000 values"),
    ],
)
def test_an_error_names_the_place_and_the_way_out(where, place, reason):
    with pytest.raises(FilterError) as caught:
        parse(where)
    assert reason in str(caught.value)
    assert place in (None, caught.value.name)
    assert len(str(caught.value)) < 600


def test_what_the_limits_allow_is_parsed():
    parse(deep(16))
    parse({"or": [{"label": "cat"}] * 256})
    parse({"label": ["cat"] * 10_000})


def test_attributes_become_plain_values():
    given = {"label": "cat", "tags": ("a", 1, True), "n": np.int64(5), "f": np.float64(0.5)}
    given |= {"b": np.False_, "array": np.array([1, 2]), "days": [date(2024, 5, 31)]}
    checked = check_attributes({**given, "gone": None, "none": []})
    assert json.loads(json.dumps(checked)) == {
        "label": "cat", "tags": ["a", 1, True], "n": 5, "f": 0.5, "b": False, "array": [1, 2],
        "days": ["2024-05-31"], "gone": None, "none": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (["label"], "give a dict"),
        ({"width": 5}, "a property of the file itself"),
        ({"and": 5}, "is reserved"),
        ({"image_id": 5}, "is no attribute"),
        ({"day": pd.NaT}, "is NaT"),
        ({"": 5}, "is not a name"),
        ({"a": {"b": 1}}, "a dict; a text, a number"),
        ({"a": [["b"]]}, "a list; a text, a number"),
        ({"a": [None]}, "a NoneType"),
        ({"a": float("inf")}, "a finite number"),
        ({"a": 2**53 + 1}, "beyond 2**53"),
        ({"a": "\udcff"}, "not valid Unicode"),
        ({f"a{i}": "x" * 900 for i in range(10)}, "limit 8,192"),
    ],
)
def test_attributes_that_cannot_be_kept(attributes, reason):
    with pytest.raises(FilterError, match="attributes") as caught:
        check_attributes(attributes)
    assert reason in str(caught.value)
