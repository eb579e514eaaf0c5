"""The session of the search panel: what was judged, kept at once and resumed later."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import ipywidgets as ipw

from imgsearch.errors import ConfigError, printable
from imgsearch.evaluation.trec import topic_name
from imgsearch.hits import Hit
from imgsearch.sessions import Session
from imgsearch.sources import Stored
from imgsearch.widgets import panel
from imgsearch.widgets.formatting import counted
from imgsearch.widgets.queries import Examples, Query

if TYPE_CHECKING:
    from imgsearch.widgets.search import SearchPanel

CHIPS = 12
"""Examples and judgments that are shown, the last ones."""

HELP = (
    "+ (key y) marks a result as relevant, − (key n) as not relevant; u takes the last judgment "
    "back. Each judgment refines the search and is saved at once, in a session named after the "
    "query. Save renames the session and saves the current filter and box. Resume continues a "
    "session, also in another notebook."
)


class SessionBar(ipw.VBox):
    """A bar to name, resume, export and delete sessions, and chips of what was judged."""

    def __init__(self, owner: SearchPanel):
        self._owner = owner
        self._name = ""  # of the session that is shown
        self._shown: list[tuple[str, Stored, bool]] = []  # chip, image, whether it was judged
        self.toggle = ipw.ToggleButton(description="Session", tooltip="Save and resume judgments")
        owner.watch(self.toggle, self._fold)
        self.name = panel.text_field("Name", "name of the session")
        owner.on_enter(self.name, lambda _: self._save())
        self.save = owner.button("Save", self._save, "Save the name, the query and the filter")
        self.csv = owner.button("Judgments as CSV", lambda: self._export("csv"), "Download")
        self.qrels = owner.button(
            "Judgments as qrels", lambda: self._export("qrels"), "Download, for trec_eval"
        )
        self.topics = ipw.Dropdown(description="Saved")
        self.resume = owner.button("Resume", lambda: owner.resume(self.topics.value))
        self.delete = owner.button("Delete …", lambda: self._ask_to_delete(True))
        self.really_delete = owner.button("Delete", self._delete, "Cannot be undone", "danger")
        self.keep = owner.button("Cancel", lambda: self._ask_to_delete(False))
        self._saved = panel.row(
            self.topics, self.resume, self.delete, self.really_delete, self.keep
        )
        super().__init__(
            [
                panel.row(self.name, self.save, self.csv, self.qrels),
                self._saved,
                ipw.HTML(panel.facts(HELP)),
            ]
        )
        self.account, self.chips = ipw.HTML(), ipw.TagsInput()
        owner.watch(self.chips, self._remove)
        self.examples = panel.row(self.account, self.chips)
        panel.set_visible(self, self._saved, visible=False)
        self._ask_to_delete(False)
        self.show(None, None, ())

    # ------------------------------------------------------------ for jobs only

    def session_of(self, query: Query) -> Session | None:
        """Open the session of a query, if it has one."""
        name, gallery = query.topic.name, self._owner.current_gallery()
        try:
            return Session.open(gallery, name) if name else None
        except ConfigError:
            query.topic.name = ""
            self.show(query, None, ())
            raise ConfigError(
                "Session", f"“{name}” was deleted or renamed in another notebook. Resume it by its "
                "new name, or search again to continue without it"
            ) from None  # fmt: skip

    def judge(self, query: Query, hit: Hit, relevant: bool) -> None:
        """Save a judgment; the first one of a query starts a session."""
        session = self.session_of(query) or self._write(query, self._free_name(query))
        session.judge(hit, relevant)

    def undo(self, query: Query) -> None:
        self.session_of(query).undo()

    def show(self, query: Query | None, session: Session | None, judged: Examples) -> None:
        """Show the session of a query, its examples and its judgments."""
        name = session.topic if session else ""
        if name != self._name:  # else the user may be typing another one
            self._name = self.name.value = name
        self.toggle.description = f"Session: {name[:30]}" if name else "Session"
        self.csv.disabled = self.qrels.disabled = session is None
        relevant = sum(liked for _, liked in judged)
        text = f"Saved in “{name}”: {relevant} relevant, {len(judged) - relevant} not relevant"
        self.account.value = panel.facts(text) if session else ""
        given = [(*one, False) for one in query.examples] if query else []
        self._shown = []
        for image, liked, by_user in [*given, *((*one, True) for one in judged)][-CHIPS:]:
            chip = f"{'+' if liked else '−'} {printable(Path(image.path).name)}"
            while chip in [other for other, _, _ in self._shown]:
                chip += "′"
            self._shown.append((chip, image, by_user))
        self._draw_chips()
        panel.set_visible(self.examples, visible=bool(self._shown))

    def list_topics(self) -> None:
        """Offer the sessions that there are, those that were used last first."""
        rows = self._owner.metadata.topics.all()
        labels = [f"{r.name} · {r.collection} · {r.judged} judged" for r in rows]
        names = [row.name for row in rows]
        chosen = next((n for n in (self.topics.value, *names) if n in names), None)
        pairs = [(printable(label), n) for label, n in zip(labels, names, strict=True)]
        self._owner.set_options(self.topics, pairs, chosen)
        panel.set_visible(self._saved, visible=bool(names))

    def _free_name(self, query: Query) -> str:
        taken = {row.name for row in self._owner.metadata.topics.all()}
        name = printable(query.text or query.name)[:150].strip()
        names = (name if n == 1 else f"{name} {n}" for n in count(1))
        return next(name for name in names if name not in taken)

    def _write(self, query: Query, name: str) -> Session:
        """Save the query and the filter under a name."""
        gallery, session = self._owner.current_gallery(), self.session_of(query)
        if session and name != session.topic:
            session.rename(name)
            query.topic.name = name
        parts, where = query.saved(gallery), self._owner.filters.where
        saved = Session.open(gallery, name, **parts, where=where, new=session is None)
        query.topic.name = name
        return saved

    # ------------------------------------------------------------ what a user does

    def _fold(self) -> None:
        panel.set_visible(self, visible=self.toggle.value)
        self._ask_to_delete(False)
        if self.toggle.value:
            self._owner.submit(self.list_topics)

    def _save(self) -> None:
        query, typed = self._owner.query, self.name.value.strip()
        if query is None or self._owner.hits is None:
            raise ConfigError("Session", "search first: a session keeps a query and judgments")

        def work() -> None:
            session = self._write(query, typed or query.topic.name or self._free_name(query))
            self.show(query, session, tuple(session.examples()))
            self.list_topics()
            self._owner.status.show(f"Saved the session “{session.topic}”.", "good")

        self._owner.submit(work)

    def _remove(self) -> None:
        """Withdraw the judgments and the examples whose chips were removed."""
        gone = [one for one in self._shown if one[0] not in self.chips.value]
        self._draw_chips()  # they go when the store has forgotten them
        query, judged = self._owner.query, [image for _, image, by_user in gone if by_user]
        others = [image for _, image, by_user in gone if not by_user]
        kept = tuple(one for one in query.examples if one[0] not in others)

        def withdraw() -> None:
            session = self.session_of(query)
            for image in judged:
                if not session.withdraw(image):
                    name = printable(Path(image.path).name)
                    raise ConfigError(
                        "Session", f"{name} was judged by another user, who alone can take it back"
                    )

        self._owner.search(replace(query, examples=kept), withdraw)

    def _draw_chips(self) -> None:
        chips = [chip for chip, _, _ in self._shown]
        with self._owner.muted(self.chips):
            self.chips.allowed_tags, self.chips.value = chips, chips

    def _export(self, kind: str) -> None:
        query = self._owner.query

        def work() -> None:
            session = self.session_of(query)
            with TemporaryDirectory() as folder:
                path = Path(folder) / kind
                write = session.write_csv if kind == "csv" else session.write_qrels
                data, name = write(path).read_bytes(), f"{topic_name(session.topic)}.{kind}"
            self._owner.grid.download(name, "text/plain", data)
            self._owner.status.show(f"Downloaded {name}.", "good")

        self._owner.submit(work)

    def _ask_to_delete(self, ask: bool) -> None:
        self.really_delete.description = f"Delete “{self.topics.value}” and its judgments"
        panel.set_visible(self.really_delete, self.keep, visible=ask)
        panel.set_visible(self.delete, visible=not ask)

    def _delete(self) -> None:
        name, query = self.topics.value, self._owner.query

        def work() -> None:
            session = Session.open(self._owner.current_gallery(), name)
            judged = len(session.judgments())
            session.delete()
            self.list_topics()
            if query is not None and query.topic.name == name:
                query.topic.name = ""
                self._owner.search(query)
            text = f"Deleted the session “{name}” with {counted(judged, 'judgment')}."
            self._owner.submit(lambda: self._owner.status.show(text, "good"))

        self._ask_to_delete(False)
        self._owner.submit(work)
