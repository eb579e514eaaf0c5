"""Filters find the same rows in each database as plain Python does."""

from __future__ import annotations

import ast
import itertools
import os
import random
import re
from concurrent import futures
from datetime import datetime, timedelta
from pathlib import PurePosixPath

import pytest

from imgsearch.stores.attributes import decode, encode
from imgsearch.stores.metadata import WITH_VECTOR, MetadataStore
from tests.conftest import ROOT
from tests.guarantees.common import rounds
from tests.stores.test_metadata import ODD_PATHS, ROW, config, row, store  # noqa: F401

NAMES = [
    *("label", "tags", "n", "a b", 'quo"te', "dot.ted", "$", "$.x[*]", "\\", "🦊", "ü", "select"),
    *("'; DROP TABLE imgsearch_images; --", "%", "x" * 64, "Label"),
]
TEXTS = [
    *("", "cat", "Cat", "cat ", " cat", "c_t", "c%t", "category", "a\0b", "\\", '"', "'", "🦊"),
    *("e\u0301", "é", "z", "'; DROP TABLE imgsearch_images; --", '" or 1=1', "t", "1", "true"),
]
NUMBERS = [0, -0.0, 1, 1.0, -1, 0.1, 0.1 + 0.2, 1e-300, -1e-300, 5e-324, 1e308, -1e308]
NUMBERS += [2**53, -(2**53), 255, 256, 3.5]
SCALARS = [*TEXTS, *NUMBERS, True, False]
CAMERAS = [None, "Canon EOS 5D", "NIKON D70 ", "ü", ""]
TIMES = [datetime(2024, 5, 31, 23, 59, 59) + timedelta(seconds=i * 40_000) for i in range(9)]
FIELDS = [
    *("path", "name", "folder", "format", "width", "height", "size", "added_at", "date_taken"),
    *("camera", "orientation", "has_gps"),
]


def kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "text" if isinstance(value, str) else "number"


def same(a, b) -> bool:
    return kind(a) == kind(b) and a == b


def period(text: str) -> tuple[datetime, datetime]:
    """The start and the end of a day or of a month."""
    start = datetime.fromisoformat(f"{text}-01"[:10])
    day, month = start + timedelta(days=1), start.replace(day=1) + timedelta(days=32)
    return start, day if len(text) == 10 else month.replace(day=1)


def test_of(value: object, operator: str, operand: object) -> bool:
    """What one operator says about the value of one file, None where it has none."""
    if operator == "exists":
        return (value is not None) == operand
    if operator == "!=":
        return not test_of(value, "=", operand)
    if operator == "in":
        return any(test_of(value, "=", one) for one in operand)
    if value is None:
        return False
    if isinstance(value, datetime):
        start, end = period(operand)
        moment = value.replace(tzinfo=None)
        return {
            "=": start <= moment < end, "<": moment < start, "<=": moment < end,
            ">": moment >= end, ">=": moment >= start,
        }[operator]  # fmt: skip
    if operator == "contains" and isinstance(value, str) and isinstance(operand, str):
        return operand in value
    if operator == "contains":
        return isinstance(value, list) and any(same(one, operand) for one in value)
    if isinstance(value, list):
        return any(test_of(one, operator, operand) for one in value)
    if operator == "=":
        return same(value, operand)
    if kind(value) != kind(operand):
        return False
    if operator == "prefix":
        return isinstance(value, str) and value.startswith(operand)
    if isinstance(value, str):
        value, operand = os.fsencode(value), os.fsencode(operand)
    return {"<": value < operand, "<=": value <= operand, ">": value > operand,
            ">=": value >= operand}[operator]  # fmt: skip


test_of.__test__ = False


def fulfils(where: dict, values: dict) -> bool:
    """Whether a file with these values fulfils a filter."""

    def entry(key, value):
        if key == "and":
            return all(fulfils(part, values) for part in value)
        if key == "or":
            return any(fulfils(part, values) for part in value)
        if key == "not":
            return not fulfils(value, values)
        if not isinstance(value, dict):
            value = {"in" if isinstance(value, list) else "=": value}
        return all(test_of(values.get(key), *test) for test in value.items())

    return all(itertools.starmap(entry, where.items()))


class Fuzz:
    """Random files, and random filters that often find some of them."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def attributes(self) -> dict:
        names = self.random.sample(NAMES, self.random.randint(0, 6))
        return {name: self.value() for name in names}

    def value(self):
        if self.random.random() < 0.7:
            return self.pick(SCALARS)
        return self.random.choices(SCALARS, k=self.random.randint(0, 4))

    def row(self, number: int, path: str):
        return row(
            path, number, size=self.pick([0, 5, 10**12]), width=self.pick([1, 640, 800]),
            height=self.pick([1, 480]), format=self.pick(["JPEG", "PNG"]),
            date_taken=self.pick([None, *TIMES]), camera=self.pick(CAMERAS),
            orientation=self.pick([None, 1, 6, 8]), has_gps=self.pick([None, True, False]),
            attributes=self.attributes(),
        )  # fmt: skip

    def where(self, rows: list, depth: int = 0) -> dict:
        if depth < 4 and self.random.random() < 0.4:
            parts = [self.where(rows, depth + 1) for _ in range(self.random.randint(1, 3))]
            return self.pick([{"and": parts}, {"or": parts}, {"not": parts[0]}])
        names = self.random.sample([*NAMES, *FIELDS, "unknown"], self.pick([1, 1, 2]))
        return {name: self.condition(name, rows) for name in names}

    def condition(self, field: str, rows: list):
        known = [v for v in (values_of(one).get(field) for one in rows) if v is not None]
        flat = [one for v in known for one in (v if isinstance(v, list) else [v])]
        operators = ["=", "!=", "in", "exists", "<", "<=", ">", ">=", "prefix", "contains"]
        if field in ("width", "height", "size", "orientation", "added_at", "date_taken"):
            operators = operators[:8]
        elif field == "has_gps":
            operators = operators[:4]
        operator = self.pick(operators)
        if operator == "exists":
            return {"exists": self.pick([True, False])}
        if flat and (field not in NAMES or self.random.random() < 0.7):
            operand, other = self.pick(flat), self.pick(flat)
        else:
            operand, other = self.pick(SCALARS), self.pick(SCALARS)
        if isinstance(operand, datetime):
            operand, other = (f"{one:%Y-%m-%d}"[: self.pick([7, 10])] for one in (operand, other))
        if operator == "in":
            return {"in": [operand, other]}
        if isinstance(operand, str) and operator in ("prefix", "contains"):
            cut = sorted(self.random.randint(0, len(operand)) for _ in range(2))
            operand = operand[: cut[1]] if operator == "prefix" else operand[slice(*cut)]
        if operator == "prefix" and not isinstance(operand, str):
            operand = "ca"
        if operator[0] in "<>" and isinstance(operand, bool):
            operand = 1
        return self.pick([{operator: operand}, operand]) if operator == "=" else {operator: operand}


def values_of(one) -> dict:
    """Everything that a file can be filtered by."""
    path = PurePosixPath(one.path)
    own = one._asdict() | {"name": path.name, "folder": str(path.parent)}
    return {name: value for name, value in own.items() if name != "attributes"} | one.attributes


@pytest.mark.parametrize("count", rounds("FILTERS", 250, 4_000))
def test_every_filter_finds_what_python_finds(store, count):  # noqa: F811
    fuzz = Fuzz(seed=7)
    store.create_collection(ROW)
    store.create_collection(ROW._replace(name="other"))
    # Every third image lies under two paths.
    paths = [*ODD_PATHS, "/root.jpg", *(f"/p/{'ab'[i % 2]}/{i}.jpg" for i in range(60))]
    rows = [fuzz.row(i - (i % 3 == 1), path) for i, path in enumerate(paths)]
    store.prepare("c", rows)
    store.prepare("other", [fuzz.row(100 + i, path) for i, path in enumerate(paths)])
    store.commit("c", paths[:-5])
    store.commit("other", paths)
    rows = store.browse("c", limit=1_000)
    assert len(rows) == len(paths) - 5
    found = 0
    for _ in range(count):
        where = fuzz.where(rows)
        expected = [one for one in rows if fulfils(where, values_of(one))]
        ids = sorted({one.image_id for one in expected})
        assert store.matching("c", where).tolist() == ids, where
        assert store.browse("c", where=where, limit=1_000) == expected, where
        assert store.count("c", where=where)[:2] == (len(ids), len(expected)), where
        found += 0 < len(expected) < len(rows)
    assert found > 0.4 * count


def test_the_examples_of_the_documentation_find_what_they_say(store):  # noqa: F811
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "filters.md").read_text(), re.S)
    examples = [ast.literal_eval(line) for line in block.splitlines()]
    assert len(examples) == 10
    cat = row(
        "/data/holidays/cat.jpg", 1, width=1_000, camera="Canon EOS 5D", has_gps=True,
        date_taken=datetime(2024, 5, 31, 12), attributes={"label": "cat", "tags": ["blurred"]},
    )  # fmt: skip
    dog = row("/data/dog.jpg", 2, has_gps=True, camera="D70", attributes={"label": "dog"})
    none = row("/data/none.jpg", 3, has_gps=False, camera="D70", attributes={"rating": 4})
    store.create_collection(ROW)
    store.prepare("c", [cat, dog, none])
    store.commit("c", [one.path for one in (cat, dog, none)])
    found = [store.matching("c", where).tolist() for where in examples]
    assert found == [[1], [1, 2], [1], [1], [1], [1], [1], [3], [1, 3], [3]]


def test_bytes_sort_as_values_do_and_come_back():
    for values in (TEXTS, NUMBERS, [False, True]):
        for a, b in itertools.product(values, repeat=2):
            first, second = (v.encode() if isinstance(v, str) else v for v in (a, b))
            assert (encode(a) < encode(b)) == (first < second)
            assert (encode(a) == encode(b)) == (a == b)
    for value in SCALARS:
        assert decode(encode(value)) == value
        assert kind(decode(encode(value))) == kind(value)
    assert len({encode(v) for v in ("1", 1, True, "true", "")}) == 5


def test_a_remembered_answer_is_forgotten_with_every_change(store, config):  # noqa: F811
    store.create_collection(ROW)
    found = lambda: store.matching("c", {"label": "cat"}).tolist()  # noqa: E731
    cat = {"label": "cat"}
    with MetadataStore.open(config) as other:  # as another process

        def each_time(change, expected):
            change()
            assert found() == expected == found()

        assert found() == []
        each_time(lambda: other.prepare("c", [row("/1", 1, attributes=cat), row("/2", 2)]), [])
        each_time(lambda: other.commit("c", ["/1", "/2"]), [1])
        each_time(lambda: store.set_attributes("c", {"/2": cat}), [1, 2])
        each_time(lambda: other.set_attributes("c", {"/1": {"label": None}}), [2])
        other.prepare("c", [row("/2", 3)])
        each_time(lambda: other.commit("c", ["/2"]), [3])
        each_time(lambda: store.hide("c", "deleting", ["/2"]), [])
        each_time(lambda: other.remove("c", ["/2"]), [])
    store.set_attributes("c", {"/1": {"n": True}})
    assert [store.matching("c", {"n": n}).tolist() for n in (1, True, 1.0)] == [[], [1], []]
    ids = store.matching("c", {"label": {"exists": False}})
    assert ids.tolist() == [1]
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 5
    for i in range(20):
        store.matching("c", {"n": i})
    assert len(store._remembered) == 8


def test_a_filter_of_several_tests_sees_one_state(store, config):  # noqa: F811
    store.create_collection(ROW)
    store.prepare("c", [row("/1", 1, attributes={"a": 1, "b": 2})])
    store.commit("c", ["/1"])

    def swap() -> None:
        with MetadataStore.open(config) as other:
            for turn in range(50):
                now = {"a": 1, "b": 2} if turn % 2 else {"a": 2, "b": 1}
                other.set_attributes("c", {"/1": now})

    with futures.ThreadPoolExecutor(1) as pool:
        swapped = pool.submit(swap)
        found = []
        while not swapped.done():
            upper = 1.5 + len(found) / 1e6  # another one each time: no answer is remembered
            found.append(store.matching("c", {"a": 1, "b": {"<": upper}}))
        swapped.result()
    assert found
    assert not any(map(len, found))


def test_attributes_are_merged_replaced_and_removed(store):  # noqa: F811
    store.create_collection(ROW)
    store.prepare("c", [row("/a/1", 1, attributes={"label": "cat", "n": 1}), row("/a/2", 2)])
    store.commit("c", ["/a/1", "/a/2"])

    def now(path: str) -> dict:
        return store.by_path("c", [path])[path].attributes

    assert (now("/a/1"), now("/a/2")) == ({"label": "cat", "n": 1}, {})
    changes = {"/a/1": {"n": 2, "tags": ["x", "y"]}, "/a/2": {"label": "dog"}, "/a/3": {"n": 3}}
    assert store.set_attributes("c", changes) == 2
    assert now("/a/1") == {"label": "cat", "n": 2, "tags": ["x", "y"]}
    assert store.set_attributes("c", {"/a/1": {"n": None}}) == 1
    assert now("/a/1") == {"label": "cat", "tags": ["x", "y"]}
    assert store.matching("c", {"n": {"exists": True}}).tolist() == []
    assert store.set_attributes("c", {"/a/1": {"label": "fox"}}, replace=True) == 1
    assert now("/a/1") == {"label": "fox"}
    assert store.matching("c", {"label": ["cat", "fox", "dog"]}).tolist() == [1, 2]
    assert store.matching("c", {"tags": {"exists": True}}).tolist() == []
    store.set_attributes("c", {"/a/1": {}}, replace=True)
    assert now("/a/1") == {}
    assert store.attribute_values("c") == {"label": [("dog", 1)]}


def test_attributes_belong_to_the_path_whatever_its_content(store):  # noqa: F811
    store.create_collection(ROW)
    store.prepare("c", [row("/a/1", 1, attributes={"label": "cat"})])
    store.commit("c", ["/a/1"])
    store.prepare("c", [row("/a/1", 7, attributes={"n": 1})])
    store.commit("c", ["/a/1"])
    assert store.matching("c", {"label": "cat", "n": 1}).tolist() == [7]
    store.hide("c", "deleting", ["/a/1"])
    assert store.matching("c", {"label": "cat"}).tolist() == []
    store.remove("c", ["/a/1"])
    store.prepare("c", [row("/a/1", 1)])
    store.commit("c", ["/a/1"])
    assert store.by_path("c", ["/a/1"])["/a/1"].attributes == {}
    assert store.matching("c", {"label": {"exists": True}}).tolist() == []


def test_attributes_outlive_a_change_of_content_that_was_interrupted(store):  # noqa: F811
    given = {"label": "cat", "tags": ["b", "a"], "none": [], "n": 1.5, "yes": True}
    store.create_collection(ROW)
    store.prepare("c", [row("/a/1", 1, attributes=given), row("/a/2", 2)])
    store.commit("c", ["/a/1"])
    store.prepare("c", [row("/a/1", 7)])
    store.hide("c", "lost", ["/a/1"])  # as recovery does
    assert [row.path for row in store.unfinished("c")] == ["/a/2"]
    assert store.ids("c", WITH_VECTOR).tolist() == [2]
    assert store.count("c")[:2] == (0, 0)
    assert store.matching("c", {"label": "cat"}).tolist() == []
    assert store.attribute_values("c") == {}
    store.prepare("c", [row("/a/1", 7, attributes={"n": 2}), row("/a/2", 2)])
    store.commit("c", ["/a/1"])
    assert store.by_path("c", ["/a/1"])["/a/1"].attributes == given | {"n": 2}
    assert store.matching("c", {"tags": "a", "n": 2, "yes": True}).tolist() == [7]


def test_a_collection_made_again_has_none_of_the_attributes_of_before(store):  # noqa: F811
    store.create_collection(ROW)
    store.prepare("c", [row("/a/1", 1, attributes={"label": "cat"})])
    store.drop_collection("c")
    store.create_collection(ROW)
    store.prepare("c", [row("/a/1", 1)])
    store.commit("c", ["/a/1"])
    assert store.attribute_values("c") == {}


def test_the_values_of_attributes_are_counted_by_file(store):  # noqa: F811
    store.create_collection(ROW)
    given = [{"label": "cat", "n": 1}, {"label": "cat", "tags": ["b", "a", "b"]}, {"label": True}]
    given += [{"label": 1, "tags": []}, {"n": 1.5}]
    rows = [row(f"/a/{i}", i // 2, attributes=one) for i, one in enumerate(given)]
    store.prepare("c", rows)
    store.commit("c", [one.path for one in rows])
    assert store.attribute_values("c") == {
        "label": [("cat", 2), (True, 1), (1, 1)],
        "n": [(1, 1), (1.5, 1)],
        "tags": [("a", 1), ("b", 1)],
    }
    assert store.attribute_values("c", most=1)["label"] == [("cat", 2)]
