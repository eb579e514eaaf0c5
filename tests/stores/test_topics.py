"""Topics and judgments, in SQLite and MariaDB."""

from __future__ import annotations

import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from imgsearch.errors import ConfigError
from imgsearch.stores import schema
from imgsearch.stores.metadata import MetadataStore


@pytest.fixture
def name(collection):
    return f"röd bil 🚗 {collection}"


@pytest.fixture
def topics(stores):
    with MetadataStore.open(stores) as store:
        yield store.topics


def judge(topics, row, *values, who="me", collection="a"):
    topics.judge(row.topic_id, values, collection=collection, who=who)


def test_a_topic_comes_back_as_saved_and_can_be_changed(topics, name):
    first = topics.save(name, "a", {"text": "car", "where": {"width": {">=": 800}}})
    assert (first.collection, first.judged) == ("a", 0)
    assert first.query == {"text": "car", "where": {"width": {">=": 800}}}
    topics.save(f"other {name}", "a", {"text": "dog"})
    again = topics.save(name, "b", {"text": "cars"})
    assert again.topic_id == first.topic_id
    assert (again.collection, again.query) == ("b", {"text": "cars"})
    assert again.created_at == first.created_at
    assert {row.name for row in topics.all()} >= {name, f"other {name}"}
    topics.delete(first.topic_id)
    with pytest.raises(
        ConfigError, match=r"there is no topic 'röd bil .*; existing topics: .*other"
    ):
        topics.get(name)


@pytest.mark.parametrize("wrong", ["", " cars", "a\nb", "x" * 191])
def test_invalid_names_are_refused(topics, wrong):
    with pytest.raises(ConfigError, match="is not a valid name: use 1 to 190 printable characters"):
        topics.save(wrong, "a", {})


def test_judgments_keep_their_order_author_and_collection(topics, name):
    row = topics.save(name, "a", {"text": "car"})
    judge(topics, row, (2**62, 1, 3), (7, -1, None))
    judge(topics, row, (7, 1, 1), who="she", collection="b")
    judge(topics, row, (9, 0, 20))
    judge(topics, row)
    found = topics.judgments(row.topic_id)
    assert [one[1:6] for one in found] == [
        (2**62, 1, 3, "a", "me"), (7, -1, None, "a", "me"), (7, 1, 1, "b", "she"),
        (9, 0, 20, "a", "me"),
    ]  # fmt: skip
    assert found[0].judged_at <= found[-1].judged_at
    assert topics.get(name).judged == 2


def test_undo_removes_the_last_judgment_of_the_same_person(topics, name):
    row = topics.save(name, "a", {"text": "car"})
    judge(topics, row, (1, 1, None))
    judge(topics, row, (2, -1, None))
    judge(topics, row, (3, 1, None), who="she")
    judge(topics, row, (4, 0, None))
    assert topics.undo(row.topic_id, "me").image_id == 2
    assert topics.undo(row.topic_id, "me").image_id == 1
    assert topics.undo(row.topic_id, "me") is None
    assert [one.image_id for one in topics.judgments(row.topic_id)] == [3, 4]


def test_a_topic_that_is_deleted_while_it_is_judged_leaves_no_judgment(topics, name):
    row, begun = topics.save(name, "a", {"text": "car"}), threading.Event()

    def judge_on() -> None:
        for number in itertools.count():
            judge(topics, row, (number, 1, None))
            begun.set()

    with ThreadPoolExecutor(2) as pool:
        judging = [pool.submit(judge_on) for _ in range(2)]
        begun.wait()
        topics.delete(row.topic_id)
        for one in judging:
            assert isinstance(one.exception(), ConfigError), one.exception()
    left = sa.select(sa.func.count()).where(schema.judgments.c.topic_id == row.topic_id)
    assert topics._sql.read(left) == [(0,)]


@pytest.mark.parametrize("new", [False, True])
def test_a_topic_that_several_notebooks_save_at_once_is_one(topics, name, new):
    barrier = threading.Barrier(4)

    def save(number: int, turn: int) -> int | None:
        barrier.wait()
        with contextlib.suppress(ConfigError):
            return topics.save(f"{name} {turn}", "a", {"text": str(number)}, new=new).topic_id

    with ThreadPoolExecutor(4) as pool:
        for turn in range(5):
            saved = list(pool.map(save, range(4), [turn] * 4))
            assert len(set(saved) - {None}) == 1
            assert saved.count(None) == (3 if new else 0)


def test_a_topic_that_was_judged_last_is_listed_first(topics, name):
    rows = [topics.save(f"{name} {i}", "a", {"text": "car"}) for i in range(2)]
    judge(topics, rows[0], (1, 1, None))
    first, second = [row for row in topics.all() if row.name.startswith(name)]
    assert (first.name, second.name) == (rows[0].name, rows[1].name)
    assert topics.withdraw(rows[0].topic_id, "she", 1) == 0
    assert topics.withdraw(rows[0].topic_id, "me", 1) == 1
    assert topics.judgments(rows[0].topic_id) == []
    with pytest.raises(ConfigError, match="resume it, or choose another name"):
        topics.save(rows[1].name, "b", {}, new=True)
    assert topics.get(rows[1].name) == second
