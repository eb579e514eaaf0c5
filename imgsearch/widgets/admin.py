"""The admin panel: what there is, whether it is sound, and what to do if it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape

import ipywidgets as ipw

from imgsearch import config, export, maintenance
from imgsearch.errors import ConfigError
from imgsearch.maintenance import Overview, Repair, Verification
from imgsearch.stores.metadata import ImageRow, RunRow
from imgsearch.widgets import formatting, image_grid, panel

PAGE = 40
"""Images on a page."""

LOOK = 1.5
"""Seconds between two looks at the ingests of other processes."""


class AdminPanel(panel.Panel):
    """List, browse, verify, repair, move and drop collections.

    Parameters
    ----------
    collection : str, optional
        Chosen at first.
    settings : Settings, optional
        Read from the environment if left out.

    Attributes
    ----------
    verification : Verification or None
        What was found last.
    repaired : Repair or None
        What was done last.
    """

    def __init__(self, collection: str | None = None, *, settings: config.Settings | None = None):
        super().__init__(settings)
        self.verification: Verification | None = None
        self.repaired: Repair | None = None
        self._wanted, self._listing, self._page = collection, False, 0
        self._rows: list[ImageRow] = []
        self._stop, self._closed = threading.Event(), threading.Event()
        self._galleries, self._thumbnails = panel.Galleries(), image_grid.Thumbnails(160)
        self._build()
        if self.settings is not None:
            self.run(self._look, "Looking at the collections …")
            threading.Thread(target=self._watch_runs, daemon=True, name="imgsearch-runs").start()

    def _build(self) -> None:
        self.overview, self.runs = ipw.HTML(), ipw.HTML()
        self.collection = ipw.Dropdown(description="Collection")
        self.refresh = self.button("Refresh", self._refresh, "Look again")
        self.stop = self.button("Stop", self._press_stop, "Stop at the next safe place")
        self.stop.disabled = True

        self.find = ipw.Text(
            placeholder="part of a path", description="Find", continuous_update=False
        )
        self.previous = self.button("Previous", lambda: self._turn_page(-1))
        self.next = self.button("Next", lambda: self._turn_page(1))
        self.page = ipw.HTML()
        self.delete = self.button("Delete chosen …", self._ask_to_delete)
        self.really = self.button("Delete", self._delete, "", "danger")
        self.keep = self.button("Keep", self._keep)
        self.grid = image_grid.Grid(small=True, choosing=True, label="Images of the collection")
        self.grid.on("pick", lambda key: self.guarded(self._choose, key))

        self.files = ipw.Checkbox(False, description="look at every image file too", indent=False)
        self.verify = self.button("Verify", self._verify, "Changes nothing", "primary")
        self.remove_orphans = ipw.Checkbox(
            False, description="remove vectors whose image is nowhere to be found", indent=False
        )
        self.image_dirs = ipw.Text(
            placeholder="folders to look in, with ; between", description="Files in"
        )
        self.image_dirs.layout.width = "420px"
        self.repair = self.button("Repair", self._repair, "Make it whole from what is left")
        self.account = ipw.HTML()

        self.file = ipw.Text(placeholder="/folder/name.imgsearch", description="File")
        self.new_name = ipw.Text(placeholder="as in the file", description="Import as")
        self.file.layout.width = "480px"
        self.export = self.button("Export", self._export, "The chosen collection into this file")
        self.bring = self.button("Import", self._import, "This file into a new collection")

        self.typed = ipw.Text(placeholder="name of the collection", description="Type it")
        self.drop = self.button("Drop the collection", self._drop, "There is no way back", "danger")
        self.warning = ipw.HTML()

        tabs = {
            "Browse": [
                panel.row(self.find, self.previous, self.page, self.next),
                self.grid,
                panel.row(self.delete, self.really, self.keep),
            ],
            "Verify and repair": [
                panel.row(self.verify, self.files),
                panel.row(self.repair, self.image_dirs, self.remove_orphans),
                self.account,
            ],
            "Export and import": [
                panel.row(self.file),
                panel.row(self.export, self.new_name, self.bring),
            ],
            "Drop": [self.warning, panel.row(self.typed, self.drop)],
        }
        self.tabs = ipw.Tab([panel.column("imgsearch-main", *made) for made in tabs.values()])
        self.tabs.titles = list(tabs)
        self.fill(
            self.overview,
            self.runs,
            panel.row(self.collection, self.refresh, self.stop),
            self.status,
            self.tabs,
        )
        self.watch(self.collection, self._collection_changed)
        self.watch(self.find, self._browse)
        self._buttons = [
            *(self.refresh, self.collection, self.verify, self.repair),
            *(self.export, self.bring, self.drop, self.really),
        ]
        self._ask(False)

    def close(self) -> None:
        """Look no more at the ingests of other processes."""
        self._closed.set()
        super().close()

    # ------------------------------------------------------------ overview

    def _look(self) -> None:
        found = maintenance.overview(self.settings)
        self.overview.value = (
            formatting.table("Collections", [_in_columns(one) for one in found])
            or panel.heading("There is no collection yet: ingest a folder first").value
        )
        names = [one.name for one in found]
        held = self.collection.value or self._wanted
        self._listing = True
        try:
            self.collection.options = names
            self.collection.value = held if held in names else next(iter(names), None)
        finally:
            self._listing = False
        if self.status.kind == "busy":
            self.status.say("")
        self._collection_changed()

    def _refresh(self) -> None:
        self.run(self._look, "Looking at the collections …")

    def _collection_changed(self) -> None:
        if self._listing:
            return
        name = self.collection.value
        self.account.value, self.typed.value = "", ""
        self.warning.value = (
            f"Takes <b>{name}</b> out of both stores. Image files are left alone. "
            "To do it, type its name."
            if name
            else ""
        )
        self.tabs.layout.display = None if name else "none"
        if name:
            self._browse()

    def _watch_runs(self) -> None:
        """Show the ingests of all processes, as long as the panel lives."""
        while not self._closed.wait(LOOK):
            try:
                runs = self._galleries.metadata(self.settings).runs(limit=5)
                shown = formatting.table("Latest ingests", [_run_in_columns(run) for run in runs])
            except Exception as error:  # the store may be away for a while: look again
                shown = f'<div class="imgsearch-facts">Ingests: {escape(str(error))}</div>'
            if shown != self.runs.value:
                self.runs.value = shown

    # ------------------------------------------------------------ browse and delete

    def _browse(self) -> None:
        self._page = 0
        self._turn_page(0)

    def _turn_page(self, step: int) -> None:
        self._page = max(0, self._page + step)
        self.run(self._show_page)

    def _show_page(self) -> None:
        name = self.collection.value
        if not name:
            return
        metadata = self._galleries.metadata(self.settings)
        if name not in {row.name for row in metadata.collections()}:
            self.grid.items, self._rows = [], []
            self.page.value = "the metadata do not know this collection: repair it"
            return
        like, start = self.find.value.strip() or None, self._page * PAGE
        rows = metadata.browse(name, offset=start, limit=PAGE + 1, like=like)
        self._rows = rows[:PAGE]
        self.grid.selected = []
        self.grid.items = image_grid.tiles(self._rows, self._thumbnails, "Choose")
        self.page.value = (
            f"{start + 1} to {start + len(self._rows)}" if self._rows else "no image fits"
        )
        self.previous.disabled, self.next.disabled = self._page == 0, len(rows) <= PAGE
        self._ask(False)

    def _choose(self, key: str) -> None:
        chosen = set(self.grid.selected) ^ {key}
        self.grid.selected = sorted(chosen & {str(i) for i in range(len(self._rows))})
        self._ask(False)

    def _ask(self, ask: bool) -> None:
        n = len(self.grid.selected)
        self.delete.disabled = not n
        self.delete.description = f"Delete {n} chosen …" if n else "Delete chosen …"
        self.really.description = f"Delete {n} from the collection, leave the files"
        for widget in (self.really, self.keep):
            panel.shown(widget, ask)
        panel.shown(self.delete, not ask)

    def _ask_to_delete(self) -> None:
        self._ask(bool(self.grid.selected))

    def _keep(self) -> None:
        self._ask(False)

    def _delete(self) -> None:
        paths = [self._rows[int(key)].path for key in self.grid.selected]
        name = self.collection.value

        def work() -> None:
            n = self._galleries.get(name, self.settings).delete(paths)
            self._look()
            self.status.say(
                f"{n} paths taken out of {name}; the files are where they were.", "good"
            )

        self._ask(False)
        self._long(work, f"Deleting {len(paths)} images from {name} …")

    # ------------------------------------------------------------ long work

    def _long(self, work: Callable[[], None], busy: str) -> None:
        self._stop = threading.Event()
        self.stop.disabled = False
        self.run(work, busy, disabling=self._buttons, after=self._end)

    def _end(self) -> None:
        self.stop.disabled = True

    def _press_stop(self) -> None:
        self._stop.set()
        self.stop.disabled = True

    def _go_on(self, text: str) -> None:
        if self._stop.is_set():
            raise panel.Stopped
        self.status.say(text, "busy")

    def _verify(self) -> None:
        name, files = self._chosen(), self.files.value

        def work() -> None:
            found = maintenance.verify(
                self._galleries.get(name, self.settings),
                files=files,
                progress=lambda n, of: self._go_on(f"Verifying {name}: {n:,} of {of:,} …"),
            )
            self.verification = found
            self.account.value = _found(found)
            self.status.say(str(found), "good" if found.sound else "bad")

        self._long(work, f"Verifying {name} …")

    def _repair(self) -> None:
        name, remove = self._chosen(), self.remove_orphans.value
        folders = [part.strip() for part in self.image_dirs.value.split(";") if part.strip()]

        def work() -> None:
            done = maintenance.repair(
                name,
                image_dirs=folders,
                remove_orphans=remove,
                settings=self.settings,
                progress=lambda account: self._go_on(f"Repairing {account} …"),
            )
            self.repaired = done
            self._look()
            self.account.value = _done(done)
            self.status.say(str(done), "good")

        self._long(work, f"Repairing {name} …")

    def _export(self) -> None:
        name, path = self._chosen(), self._file()

        def work() -> None:
            written = export.export_collection(
                self._galleries.get(name, self.settings),
                path,
                progress=lambda n, of: self._go_on(f"Exporting {name}: {n:,} of {of:,} …"),
            )
            size = formatting.bytes_in_words(written.stat().st_size)
            self.status.say(f"{name} was written to {written} ({size}).", "good")

        self._long(work, f"Exporting {name} …")

    def _import(self) -> None:
        path, name = self._file(), self.new_name.value.strip() or None

        def work() -> None:
            n = export.import_collection(
                path,
                name,
                settings=self.settings,
                progress=lambda n, of: self.status.say(f"Importing: {n:,} of {of:,} …", "busy"),
            )
            self._look()
            self.status.say(f"{n} images came in from {path}.", "good")

        self._long(work, f"Checking {path} …")

    def _drop(self) -> None:
        name = self._chosen()
        if self.typed.value.strip() != name:
            raise ConfigError("Drop", f"type {name} into the field to drop it; nothing was done")

        def work() -> None:
            self._galleries.get(name, self.settings).drop()
            self._look()
            self.status.say(f"{name} was dropped; the image files are where they were.", "good")

        self._long(work, f"Dropping {name} …")

    def _chosen(self) -> str:
        if not self.collection.value:
            raise ConfigError("collection", "there is none: ingest a folder of images first")
        return self.collection.value

    def _file(self) -> str:
        if not self.file.value.strip():
            raise ConfigError("File", "is empty: say where the file is, or is to be")
        return self.file.value.strip()


def _in_columns(one: Overview) -> dict[str, object]:
    run = one.last_run
    return {
        "Name": one.name,
        "Images": one.images,
        "Vectors": "?" if one.vectors is None else one.vectors,
        "Files": one.paths,
        "Encoder": f"{one.encoder} ({one.dim})" if one.encoder else "",
        "Index": one.index.partition(":")[0],
        "On disk": "on the server" if one.size is None else formatting.bytes_in_words(one.size),
        "Last ingest": f"{_ago(run.updated_at)}, {run.state}" if run else "never",
        "To note": one.problem,
    }


def _run_in_columns(run: RunRow) -> dict[str, object]:
    rate = maintenance.rate(run)
    left = (run.total - run.done) / rate if rate and run.state == "running" else None
    speed = f"{rate:.1f}/s" + (f", {formatting.time_in_words(left)} left" if left else "")
    return {
        "State": {"stale": "cut off"}.get(run.state, run.state),
        "Collection": run.collection,
        "Folder": run.folder,
        "Files": f"{run.done:,} of {run.total:,}",
        "Failed": run.failed or "",
        "Speed": speed if rate else "",
        "Begun": _ago(run.started_at),
        "By": f"{run.who} on {run.host} ({run.pid})",
        "Error": run.error or "",
    }


def _ago(when: datetime) -> str:
    seconds = (datetime.now(UTC) - when).total_seconds()
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"


def _found(found: Verification) -> str:
    """Tell in plain words what was found, and what `repair` would do about it."""
    if found.sound:
        text = "Both stores agree, and every vector is the one that was written."
        return f'<div class="imgsearch-facts">{text}</div>'
    told = [
        {"Found": f"The vectors cannot be read: {found.damage}",
         "Repair": "moves them aside and makes them again from the image files"},
    ] if found.damage else []  # fmt: skip
    for n, what, then in (
        (len(found.missing_vectors), "images cannot be found by searches: they have no vector",
         "makes the vectors again from the files"),
        (len(found.wrong_vectors), "images are found wrongly: their vector is damaged",
         "makes the vectors again from the files"),
        (len(found.orphan_vectors), "vectors belong to no image",
         "looks for their files; removes them if you say so"),
        (found.unfinished, "images are half done", "finishes or withdraws them"),
        (len(found.lost_files), "image files are gone",
         "leaves them; an ingest with “take out” removes them"),
        (len(found.changed_files), "image files have changed",
         "leaves them; an ingest brings them up to date"),
    ):  # fmt: skip
        if n:
            told.append({"Found": f"{n:,} {what}", "Repair": then})
    shown = formatting.table("What was found", told)
    files = [{"File": path, "What": "gone"} for path in found.lost_files]
    files += [{"File": path, "What": "changed"} for path in found.changed_files]
    return shown + formatting.table("Files", files)


def _done(done: Repair) -> str:
    lost = [{"File": path, "Why": reason} for path, reason in done.lost]
    text = escape(str(done))
    return f'<div class="imgsearch-facts">{text}</div>' + formatting.table("Lost", lost)
