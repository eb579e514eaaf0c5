"""The admin panel: what the collections hold, whether they are intact, and how to repair them."""

from __future__ import annotations

import json
import threading
from functools import partial

import ipywidgets as ipw

from imgsearch import config, export, maintenance
from imgsearch.errors import ConfigError, printable
from imgsearch.maintenance import Repair, Verification
from imgsearch.overview import Overview, drop, overview
from imgsearch.stores.metadata import ImageRow, MetadataStore, RunRow
from imgsearch.widgets import first_steps, image_grid, panel
from imgsearch.widgets.formatting import counted, format_age, format_bytes, format_seconds, table

PAGE = 40
"""Images on a page."""

ATTRIBUTES = (
    'As JSON, such as {"label": "cat", "tags": ["indoor", "blurred"], "rating": 4}. Shown is what '
    "all selected images have in common; what you take out is removed."
)

POLL = 1.5
"""Seconds between two looks at the ingests of all processes."""


class AdminPanel(panel.Panel):
    """List, browse, verify, repair, export, import and delete collections.

    Parameters
    ----------
    collection : str, optional
        Collection to start with.
    settings : Settings, optional
        Read from the environment if left out.

    Attributes
    ----------
    verification : Verification or None
        What the last verification found.
    planned, repaired : Repair or None
        What the last repair would do, and what it did.
    """

    def __init__(self, collection: str | None = None, *, settings: config.Settings | None = None):
        super().__init__(settings)
        self.verification: Verification | None = None
        self.planned: Repair | None = None
        self.repaired: Repair | None = None
        self._wanted = collection
        self._rows: list[ImageRow] = []
        self._common: dict[str, object] = {}
        self._polling: threading.Event | None = None
        self._build()
        self._refresh()
        self._view_count = 0  # the browser counts its views of the panel from here on
        self.observe(lambda _: self._poll_while_displayed(), "_view_count")

    def _build(self) -> None:
        self.overview, self.runs = ipw.HTML(), ipw.HTML()
        self.collection = ipw.Dropdown(description="Collection")
        self.refresh = self.button("Refresh", self._refresh, "Read everything again")

        self.find = panel.text_field("Find", "part of a path")
        self.pager = panel.Pager(self, PAGE, lambda: self.submit(self._show_page), self.find)
        self.delete = self.button("Delete …", lambda: self._ask_to_delete(True))
        self.really_delete = self.button("Delete", self._delete, "", "danger")
        self.keep = self.button("Cancel", lambda: self._ask_to_delete(False))
        self.grid = image_grid.Grid(size=110, selecting="tiles", label="Images of the collection")
        self.grid.on("open", lambda key: self.attempt(self._show_original, key))

        self.attributes = panel.text_field("Attributes", width="480px")
        self.set_attributes = self.button("Set", self._set_attributes, "For the selected images")
        self._selection = panel.column(
            "imgsearch-main",
            panel.row(
                *(self.attributes, self.set_attributes),
                *(self.delete, self.really_delete, self.keep),
            ),
            ipw.HTML(panel.facts(ATTRIBUTES)),
        )

        self.files = panel.checkbox("Also check image files")
        self.verify = self.button("Verify", self._verify, "Changes nothing", "primary")
        self.remove_orphans = panel.checkbox("Remove vectors whose image is missing")
        self.image_dirs = panel.text_field("Look in", "/folder; /another folder", width="420px")
        self.repair = self.button(
            "Repair …", lambda: self._repair(dry_run=True), "Shows what it would do, and asks"
        )
        self.really_repair = self.button(
            "Repair now", lambda: self._repair(dry_run=False), "", "danger"
        )
        self.cancel = self.button("Cancel", lambda: self._ask_to_repair(False))
        self.account = ipw.HTML()

        self._default_file = ""
        self.file = panel.text_field("File", "/folder/name.parquet", width="560px")
        self.new_name = panel.text_field("Import as", "name in the file")
        self.export = self.button("Export", self._export, "Write the collection to this file")
        self.import_ = self.button("Import", self._import, "Create a collection from this file")

        self.typed = panel.text_field("Name")
        self.typed.continuous_update = True
        self.drop = self.button("Delete collection", self._drop, "Cannot be undone", "danger")
        self.warning = ipw.HTML()

        self.tabs = panel.tabs(
            {
                "Collections": [self.overview, self.runs],
                "Browse": [
                    panel.row(self.find, self.pager),
                    self._selection,
                    panel.column("imgsearch-tall", self.grid),
                ],
                "Verify and repair": [
                    panel.row(self.verify, self.files),
                    panel.row(self.repair, self.image_dirs, self.remove_orphans),
                    panel.row(self.really_repair, self.cancel),
                    self.account,
                ],
                "Export and import": [
                    panel.row(self.file),
                    panel.row(self.export, self.new_name, self.import_),
                ],
                "Delete": [self.warning, panel.row(self.typed, self.drop)],
            }
        )
        self.first_steps = first_steps.FirstSteps(self, lambda name: self._look())
        self.fill(
            self.first_steps,
            panel.row(self.collection, self.refresh, self.stop),
            self.status,
            self.tabs,
        )
        self.watch(self.collection, self._collection_changed)
        self.watch(self.tabs, self._forget_status, "selected_index")
        self.watch(self.grid, self._selection_changed, "selected")
        self.watch(self.typed, self._name_typed)
        self._buttons = [
            *(self.refresh, self.collection, self.verify, self.repair, self.really_repair),
            *(self.export, self.import_, self.really_delete),
        ]
        self.drop.disabled = True
        self._ask_to_delete(False)
        self._ask_to_repair(False)

    def close(self) -> None:
        """Close the panel, and stop looking at the ingests of all processes."""
        if self._polling is not None:
            self._polling.set()
        super().close()

    # ------------------------------------------------------------ overview

    def _look(self) -> None:
        collections = overview(self.settings)
        names = [one.name for one in collections]
        wanted = self.collection.value or self._wanted
        chosen = wanted if wanted in names else self.recent_collection(names)
        self.set_options(self.collection, names, chosen)
        panel.set_visible(self.first_steps, visible=not names)
        self._collection_changed()
        self.overview.value = table("Collections", list(map(_collection_columns, collections)))
        self.runs.value = _runs_table(self.metadata)

    def _forget_status(self) -> None:
        """Clear what another tab reported."""
        if self.status.kind != "busy":
            self.status.show("")

    def _refresh(self) -> None:
        self.submit(self._look, "Reading the collections …")

    def _collection_changed(self) -> None:
        name = self.collection.value
        self.account.value, self.typed.value = "", ""
        self._ask_to_repair(False)
        self.warning.value = panel.facts(
            f"Deletes the collection {name} from both stores. The image files stay where they are. "
            "Type the name to confirm."
        )
        panel.set_visible(self.tabs, visible=bool(name))
        if name:
            folder = first_steps.output_folder(self.settings)
            if self.file.value == self._default_file:
                self.file.value = self._default_file = str(folder / f"{name}.parquet")
            self.pager.restart()

    def _poll_while_displayed(self) -> None:
        if self._view_count and self._polling is None:
            self._polling = threading.Event()
            panel.start_thread(partial(self._poll, self._polling), "imgsearch-runs")
        elif not self._view_count and self._polling is not None:
            self._polling.set()
            self._polling = None

    def _poll(self, hidden: threading.Event) -> None:
        """Show the ingests of all processes while a browser displays the panel."""
        metadata: MetadataStore | None = None
        while not hidden.wait(POLL):
            try:
                metadata = metadata or MetadataStore.open(self.settings)
                shown = _runs_table(metadata)
            except Exception as error:  # the store may come back: try again
                shown = panel.facts(f"Ingests: {error}")
            if shown != self.runs.value:
                self.runs.value = shown
        if metadata is not None:
            metadata.close()

    # ------------------------------------------------------------ browse and delete

    def _show_page(self) -> None:
        name = self.collection.value
        if not name:
            return
        if name in self.collection_names():
            self._rows = self.pager.read(self.metadata, name)
        else:
            self._rows = []
            self.pager.position.value = "The metadata store does not know this collection."
        self.grid.selected = []
        self.grid.items = image_grid.tiles(self._rows, "Select")
        self._selection_changed()

    def _show_original(self, key: str) -> None:
        path = self._rows[int(key)].path
        self.submit(lambda: self.grid.show_original(key, path))

    def _selected(self) -> list[ImageRow]:
        return [self._rows[int(key)] for key in self.grid.selected]

    def _selection_changed(self) -> None:
        """Show the attributes that all selected images have in common."""
        self._ask_to_delete(False)
        rows = self._selected()
        first = rows[0].attributes if rows else {}
        self._common = {
            name: value
            for name, value in first.items()
            if all(row.attributes.get(name) == value for row in rows)
        }
        text = json.dumps(self._common, ensure_ascii=False) if self._common else ""
        self.attributes.value = text
        panel.set_visible(self._selection, visible=bool(rows))

    def _set_attributes(self) -> None:
        try:
            given = json.loads(self.attributes.value or "{}")
        except ValueError:
            given = None
        if not isinstance(given, dict):
            raise ConfigError("Attributes", 'type names and values as JSON: {"label": "cat"}')
        change = dict.fromkeys(self._common) | given  # what was taken out is removed
        name, paths = self.collection.value, [row.path for row in self._selected()]

        def work() -> None:
            n = self.gallery(name).set_attributes(dict.fromkeys(paths, change), key="path")
            self._show_page()
            self.status.show(f"Set the attributes of {counted(n, 'file')}.", "good")

        self._submit(work, "Setting attributes …")

    def _ask_to_delete(self, ask: bool) -> None:
        n = len(self.grid.selected)
        self.delete.description = f"Delete {n} selected …"
        self.really_delete.description = f"Delete {n} from the collection, keep the files"
        panel.set_visible(self.really_delete, self.keep, visible=ask and n > 0)
        panel.set_visible(self.delete, visible=not ask)

    def _delete(self) -> None:
        paths = [row.path for row in self._selected()]
        name = self.collection.value

        def work() -> None:
            n = self.gallery(name).delete(paths)
            self._look()
            self.status.show(
                f"Deleted {counted(n, 'path')} from {name}. The image files stay.", "good"
            )

        self._ask_to_delete(False)
        self._submit(work, f"Deleting {counted(len(paths), 'image')} from {name} …")

    # ------------------------------------------------------------ verify and repair

    def _submit(self, work, busy: str) -> None:
        self.submit(work, busy, disable=self._buttons, stoppable=True)

    def _verify(self) -> None:
        name, files = self._chosen(), self.files.value

        def work() -> None:
            found = maintenance.verify(
                self.gallery(name),
                files=files,
                progress=self.count_progress(f"Verifying {name}"),
            )
            self.verification = found
            self.account.value = _findings(found)
            self.status.show(str(found), "good" if found.sound else "bad")

        self._submit(work, f"Verifying {name} …")

    def _repair(self, *, dry_run: bool) -> None:
        name, remove_orphans = self._chosen(), self.remove_orphans.value
        folders = [part.strip() for part in self.image_dirs.value.split(";") if part.strip()]
        busy = f"{'Checking' if dry_run else 'Repairing'} {name}"

        def work() -> None:
            done = maintenance.repair(
                name,
                image_dirs=folders,
                remove_orphans=remove_orphans,
                dry_run=dry_run,
                settings=self.settings,
                progress=lambda so_far: self.report_progress(
                    f"{busy}: {so_far.encoded:,} vectors …"
                ),
            )
            if dry_run:
                self.planned = done
            else:
                self.repaired = done
                self._look()
            lost = [{"File": printable(path), "Reason": reason} for path, reason in done.lost]
            self.account.value = panel.facts(str(done)) + table("Lost", lost)
            if dry_run and done != Repair(name, dry_run=True):
                self._ask_to_repair(True)
                self.status.show("Repair would do what is listed below. Nothing was changed yet.")
            else:
                self.status.show(str(done), "good")

        self._ask_to_repair(False)
        self._submit(work, f"{busy} …")

    def _ask_to_repair(self, ask: bool) -> None:
        panel.set_visible(self.really_repair, self.cancel, visible=ask)

    # ------------------------------------------------------------ export, import, delete

    def _export(self) -> None:
        name, path = self._chosen(), self._file()

        def work() -> None:
            progress = self.count_progress(f"Exporting {name}")
            written = export.export_collection(self.gallery(name), path, progress=progress)
            size = format_bytes(written.stat().st_size)
            self.status.show(f"Exported {name} to {written} ({size}).", "good")

        self._submit(work, f"Exporting {name} …")

    def _import(self) -> None:
        path, name = self._file(), self.new_name.value.strip() or None

        def work() -> None:
            n = export.import_collection(
                path, name, settings=self.settings, progress=self.count_progress("Importing")
            )
            self._look()
            self.status.show(f"Imported {counted(n, 'image')} from {path}.", "good")

        self._submit(work, f"Checking {path} …")

    def _name_typed(self) -> None:
        # A click and the text before it may reach two threads of the kernel, in any order.
        self.drop.disabled = self.typed.value.strip() != self.collection.value

    def _drop(self) -> None:
        if self.drop.disabled:
            return
        name, self.typed.value = self._chosen(), ""  # asks again, should it fail

        def work() -> None:
            drop(name, settings=self.settings)
            self._look()
            self.status.show(f"Deleted the collection {name}. The image files stay.", "good")

        self._submit(work, f"Deleting {name} …")

    def _chosen(self) -> str:
        if not self.collection.value:
            raise ConfigError(
                "Collection", "there is none yet: load the sample, or ingest a folder"
            )
        return self.collection.value

    def _file(self) -> str:
        if not self.file.value.strip():
            raise ConfigError("File", "type the path of the file to write or to read")
        return self.file.value.strip()


def _collection_columns(one: Overview) -> dict[str, object]:
    run = one.last_run
    return {
        "Name": one.name,
        "Images": one.images,
        "Files": "" if one.paths == one.images else one.paths,
        "Vectors": "" if one.vectors == one.images else "?" if one.vectors is None else one.vectors,
        "Encoder": f"{one.encoder} ({one.dim})" if one.encoder else "",
        "Index": one.index.partition(":")[0],
        "On disk": "on the server" if one.size is None else format_bytes(one.size),
        "Last ingest": f"{format_age(run.updated_at)}, {run.state}" if run else "never",
        "Problem": one.problem,
    }


def _runs_table(metadata: MetadataStore) -> str:
    return table("Latest ingests", list(map(_run_columns, metadata.runs(limit=5))))


def _run_columns(run: RunRow) -> dict[str, object]:
    seconds = (run.updated_at - run.started_at).total_seconds()
    time = format_seconds(seconds)
    if run.state == "running" and run.done:
        left = seconds / run.done * (run.total - run.done)
        time = f"{time}, {format_seconds(left)} left"
    state = {"stale": "interrupted"}.get(run.state, run.state)
    return {
        "Collection": run.collection,
        "Folder": run.folder,
        "Files": f"{run.done:,} of {run.total:,}",
        "Failed": run.failed or "",
        "Started": f"{format_age(run.started_at)}, {state}",
        "Time": time,
        "By": f"{run.who} on {run.host} ({run.pid})" if run.state == "running" else "",
        "Error": run.error or "",
    }


def _findings(found: Verification) -> str:
    """Describe what was found, and what a repair would do about it."""
    if found.sound:
        return panel.facts("No problems found.")
    problems = [
        (len(found.missing_vectors), "images have no vector, so searches cannot find them",
         "encodes the files again"),
        (len(found.wrong_vectors), "images have a damaged vector, so searches find them wrongly",
         "encodes the files again"),
        (len(found.orphan_vectors), "vectors belong to no image",
         "looks for their files; removes them on request"),
        (found.unfinished, "images were left unfinished", "completes or withdraws them"),
        (len(found.lost_files), "image files are missing",
         "leaves them; an ingest with “Remove missing files” removes them"),
        (len(found.changed_files), "image files have changed",
         "leaves them; an ingest updates them"),
    ]  # fmt: skip
    rows = [{"Problem": f"{n:,} {what}", "Repair": repair} for n, what, repair in problems if n]
    if found.damage:
        repair = "moves them aside and encodes the image files again"
        rows.insert(0, {"Problem": f"The vectors cannot be read: {found.damage}", "Repair": repair})
    files = [{"File": path, "Problem": "missing"} for path in found.lost_files]
    files += [{"File": path, "Problem": "changed"} for path in found.changed_files]
    return table("Problems found", rows) + table("Files", files)
