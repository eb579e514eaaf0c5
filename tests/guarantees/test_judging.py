"""A process that judges is killed: no judgment that it acknowledged is lost."""

from __future__ import annotations

import random
import time

import pytest

from imgsearch.config import load_settings
from imgsearch.gallery import Gallery
from imgsearch.sessions import Session
from tests.guarantees.common import environment, rounds
from tests.helpers import rows_and_vectors

IMAGES = 50
JUDGE = """
from imgsearch.gallery import Gallery
from imgsearch.sessions import Session
with Gallery.open("kept") as gallery:
    session = Session.open(gallery, "topic")
    report(begins=True)
    for turn in range(arguments["first"], 1_000_000):
        image_id = arguments["ids"][turn % len(arguments["ids"])]
        session.judge(image_id, relevant=turn % 3 == 0)
        report(judged=turn)
"""


@pytest.mark.parametrize("kills", rounds("JUDGING_KILLS", 2, 50))
def test_a_process_that_judges_is_killed(forkserver, tmp_path, encoder, kills, record_property):
    settings = load_settings(imgsearch_home=tmp_path / "home")
    rows, vectors = rows_and_vectors(encoder.dim, IMAGES)
    ids, rng, first = [row.image_id for row in rows], random.Random(7), 0
    with Gallery.open("kept", encoder=encoder, create=True, settings=settings) as gallery:
        gallery.store(rows, vectors)
        session = Session.open(gallery, "topic", like=ids[:1])
        for _ in range(kills):
            child = forkserver.run(JUDGE, environment(settings), ids=ids, first=first)
            child.wait_for("judged")
            time.sleep(rng.uniform(0, 0.3))  # the random moment
            child.kill()
            acknowledged = max(child.reported("judged"))
            made = gallery.metadata.topics.judgments(session._row.topic_id)
            # The last one may have been written and not yet reported.
            assert len(made) - 1 in (acknowledged, acknowledged + 1)
            expected = [
                (ids[turn % IMAGES], 1 if turn % 3 == 0 else -1) for turn in range(len(made))
            ]
            assert [(one.image_id, one.value) for one in made] == expected
            first = len(made)
    record_property("figures", f"{kills} kills, {first} judgments")
