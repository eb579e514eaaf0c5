"""Judged topics as ground truth: pooled from two encoders, exported, read by pytrec_eval."""

from __future__ import annotations

import numpy as np
import pytest

from imgsearch.config import load_settings
from imgsearch.errors import ConfigError, DatasetError
from imgsearch.evaluation import scoring, trec
from imgsearch.evaluation.comparison import compare
from imgsearch.evaluation.report import evaluate_gallery, write_evaluations
from imgsearch.evaluation.topics import JudgedTopics
from imgsearch.gallery import Gallery
from imgsearch.sessions import Session
from tests.helpers import rows_and_vectors

pytrec_eval = pytest.importorskip("pytrec_eval")

IMAGES = 60


@pytest.fixture
def galleries(tmp_path, encoder):
    """The same images in two collections, with vectors as if of two encoders."""
    settings = load_settings(imgsearch_home=tmp_path / "home")
    with (
        Gallery.open("one", encoder=encoder, create=True, settings=settings) as one,
        Gallery.open("two", encoder=encoder, create=True, settings=settings) as two,
    ):
        rows, vectors = rows_and_vectors(encoder.dim, IMAGES)
        one.store(rows, vectors)
        _, others = rows_and_vectors(encoder.dim, IMAGES, seed=1)
        moved = {i: v + 2 * w for (i, v), w in zip(vectors.items(), others.values(), strict=True)}
        two.store(rows, {i: v / np.linalg.norm(v) for i, v in moved.items()})
        yield one, two, rows


@pytest.fixture
def judged(galleries):
    """Two topics whose pools of both collections were judged, but for a few images."""
    one, two, rows = galleries
    sessions = []
    for number in range(2):
        session = Session.open(one, f"topic {number}", like=[rows[number].image_id], who="me")
        for place, hit in enumerate(session.pool([two], depth=12)):
            if place % 4 != 3:
                session.judge(hit, relevant=hit.image_id % 3 == number)
        sessions.append(session)
    return sessions


def test_judgments_of_two_encoders_are_read_by_pytrec_eval(galleries, judged, tmp_path):
    one, two, _ = galleries
    for session in judged:
        by = {made.collection for made in one.metadata.topics.judgments(session._row.topic_id)}
        assert by == {"one", "two"}, "the pool is of both collections"
        values = list(session.pooled().values())
        assert {True, False, None} <= set(values)
        assert len(values) > 12
    qrels = {}
    for number, session in enumerate(judged):
        with session.write_qrels(tmp_path / f"{number}.qrels").open() as file:
            qrels |= pytrec_eval.parse_qrel(file)
    measures = {"map": "AP", "bpref": "bpref", "infAP": "infAP", "P_10": "P@10"}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"map", "bpref", "infAP", "P.10"})
    for gallery in (one, two):
        task = JudgedTopics().task(gallery)
        with trec.write_run(tmp_path / "run", task).open() as file:
            theirs = evaluator.evaluate(pytrec_eval.parse_run(file))
        ours = scoring.evaluate(task).views["all"]
        assert len(ours.rows) == 2
        for name, metric in measures.items():
            found = [theirs[topic][name] for topic in ("topic-0", "topic-1")]
            assert found == pytest.approx(list(ours.values[metric]), abs=1e-6), metric


def test_evaluations_of_two_collections_are_compared_and_reported(galleries, judged, tmp_path):
    one, two, _ = galleries
    first, second = (evaluate_gallery(gallery, JudgedTopics()) for gallery in (one, two))
    report = write_evaluations({"one": first, "two": second}, tmp_path)
    assert report["evaluations"]["two"]["about"]["protocol"] == "2 topics"
    assert first.task.fingerprint == second.task.fingerprint
    assert compare(first, second, metric="bpref").overall.metric == "bpref"


def test_examples_are_junk_and_unjudged_images_are_not(galleries, judged):
    one = galleries[0]
    task = JudgedTopics(["topic 1"]).task(one)
    assert task.classes == ("topic 1",)
    found = scoring.evaluate(task).views["all"]
    assert found.counts.candidates.tolist() == [IMAGES - 1]
    pooled = judged[1].pooled()
    assert found.counts.relevant.tolist() == [sum(state is True for state in pooled.values())]
    assert found.counts.pooled.tolist() == [len(pooled)]


def test_what_is_missing_is_named(galleries, judged):
    one, two, _ = galleries
    with pytest.raises(ConfigError, match="there is no topic 'unicorns'"):
        JudgedTopics(["unicorns"]).task(one)
    relevant = next(i for i, state in judged[0].judgments().items() if state)
    two.delete([two.get(relevant).path])
    with pytest.raises(
        DatasetError, match="collection 'two' lacks relevant images: 1 of 'topic 0'; add"
    ):
        JudgedTopics(["topic 0"]).task(two)
    task = JudgedTopics(["topic 0"]).task(two, allow_missing=True)
    assert task.about["missing_images"] == 1
    two.delete(galleries[2][1])
    with pytest.raises(ConfigError, match="the query of 'topic 1' cannot be searched with: query"):
        JudgedTopics("topic 1").task(two, allow_missing=True)


def test_topics_without_judgments_are_refused(galleries):
    with pytest.raises(ConfigError, match="no image to be found was judged relevant: judge some"):
        JudgedTopics().task(galleries[0])


def test_a_named_topic_is_never_left_out(galleries, judged):
    one, _, rows = galleries
    Session.open(one, "empty", like=[rows[9].image_id])
    assert JudgedTopics().task(one).classes == ("topic 0", "topic 1")
    assert JudgedTopics("topic 1").task(one).classes == ("topic 1",)
    with pytest.raises(
        ConfigError, match="no image to be found was judged relevant in 'empty': judge"
    ):
        JudgedTopics(["topic 0", "empty"]).task(one)
    with pytest.raises(ConfigError, match="no image to be found was judged relevant: judge some"):
        JudgedTopics([]).task(one)
    itself = Session.open(one, "itself", rows[8].image_id)
    itself.judge(rows[8].image_id)
    assert JudgedTopics().task(one).classes == ("topic 0", "topic 1")
    with pytest.raises(ConfigError, match="no image to be found was judged relevant in 'itself'"):
        JudgedTopics(["itself", "topic 0"]).task(one)


def test_topics_whose_names_mean_something_else_are_refused(galleries, judged):
    one = galleries[0]
    judged[0].rename("topic-1")
    with pytest.raises(ConfigError, match=r"'topic-1'.* have the same name in files of trec_eval"):
        JudgedTopics().task(one)
    judged[0].rename("all")
    with pytest.raises(ConfigError, match="'all' stands for all of them: rename the one"):
        JudgedTopics().task(one)


def test_the_picture_of_a_query_is_neither_pooled_nor_ranked(galleries):
    one, two, rows = galleries
    own = rows[3].image_id
    session = Session.open(one, "like this one", own)
    pool = session.pool(two, depth=10)
    ranks = {hit.image_id: hit.rank for hit in pool}
    assert own not in ranks
    for gallery in (one, two):
        for hit in gallery.search(own, top_k=10, exclude=[own]):
            assert ranks[hit.image_id] <= hit.rank
    for hit in pool:
        session.judge(hit, relevant=ranks[hit.image_id] == 1)
    found = scoring.evaluate(JudgedTopics().task(one)).views["all"]
    assert found.counts.candidates.tolist() == [IMAGES - 1]
    assert found.values["P@1"].tolist() == [1]
