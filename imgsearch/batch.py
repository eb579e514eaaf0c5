"""What the notebooks do under papermill: check the parameters, do the work, write a report.

Each report is written last and atomically: a report on disk means that the run was completed.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError, validate_call
from tqdm import tqdm

from imgsearch import config, maintenance, plots, sources
from imgsearch.datasets import Voc
from imgsearch.errors import ConfigError
from imgsearch.evaluation import index_sweep
from imgsearch.evaluation.report import evaluate_collections, write_evaluations
from imgsearch.evaluation.scoring import KS
from imgsearch.gallery import Gallery
from imgsearch.hits import Hits
from imgsearch.ingestion import IngestReport, ingest
from imgsearch.io import write_figure, write_json
from imgsearch.overview import overview, run_to_dict
from imgsearch.stores.metadata import MetadataStore

PARAMETERS = "# Parameters"
"""First line of a cell that sets parameters, in our notebooks and in papermill's output."""


def parameters(namespace: dict, function: Callable) -> dict:
    """Return the parameters that a notebook's cells set in `namespace`, its ``globals()``."""
    # Papermill only warns of a parameter that a notebook does not have, and runs the notebook
    # with the default.
    allowed = list(inspect.signature(function).parameters)
    cells = [cell for cell in namespace["In"] if cell.startswith(PARAMETERS)]
    given = {
        target.id: namespace[target.id]
        for cell in cells
        for statement in ast.parse(cell).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for name in sorted(given.keys() - set(allowed)):
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(allowed)}"
        raise ConfigError(name, f"is not a parameter of this notebook; {hint}")
    return given


def checked(function: Callable) -> Callable:
    """Make a function raise ConfigError for an argument of another type than its annotation."""
    validated = validate_call(function)

    @functools.wraps(function)  # keeps the signature for `parameters`
    def call(*args, **kwargs):
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            if error.title != function.__name__:
                raise
            first = error.errors(include_url=False)[0]
            raise ConfigError(".".join(map(str, first["loc"])), first["msg"]) from None

    return call


@checked
def ingest_folder(
    image_dir: str,
    collection: str | None = None,
    encoder: str | None = None,
    weights: str | None = None,
    index: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    backend: str | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    recursive: bool = True,
    prune: bool = False,
    limit: int | None = None,
    shard: str | None = None,
    attributes: str | dict[str, Any] | None = None,
    from_folders: bool = False,
    output_dir: str = "output",
) -> IngestReport:
    """Run ``ingest.ipynb`` without a panel; write ``ingest.json``, or one report per shard.

    `attributes` is the path of a CSV file, or attributes that every image gets. With
    `from_folders`, the name of its folder becomes the attribute ``label`` of an image.
    """
    # Papermill's command line cannot pass None; an empty text means the same.
    options = {name: None if value == "" else value for name, value in locals().items()}
    del options["output_dir"]
    # On stderr, notebooks show the bar as if it were an error.
    with tqdm(unit=" files", file=sys.stdout, mininterval=1.0, delay=0.5, leave=False) as bar:

        def advance(report: IngestReport) -> None:
            bar.total = report.total
            bar.update(report.done - bar.n)

        report = ingest(**options, progress=advance)
    name = f"ingest-{shard.replace('/', '-of-')}.json" if shard else "ingest.json"
    write_json(Path(output_dir) / name, report.to_dict())
    return report


@checked
def search_image(
    query_path: str = "",
    collection: str | None = None,
    top_k: int = 10,
    box: tuple[int, int, int, int] | None = None,
    exclude_query: bool = True,
    query_text: str = "",
    like: str | list[str] = "",
    unlike: str | list[str] = "",
    where: dict[str, Any] | None = None,
    output_dir: str = "output",
) -> Hits:
    """Run ``search.ipynb`` without a panel; write ``search.png`` and ``search.json``.

    With `exclude_query`, the query is not among its own results. `like` and `unlike` are paths
    of examples and counter-examples. `where` is a filter.
    """
    query = sources.describe(query_path) if query_path else None
    picture = query.source if query else None
    itself = [query.image_id] if query and exclude_query else ()
    parts = {"text": query_text or None, "like": like or (), "unlike": unlike or ()}
    with Gallery.open(collection or None) as gallery:
        hits = gallery.search(picture, top_k, **parts, where=where, box=box, exclude=itself)
    named = [query.name if query else "", f"“{query_text}”" if query_text else ""]
    title = f"Similar to {' and '.join(filter(None, named)) or 'examples'}, in {hits.collection}"
    figure = plots.result_grid(picture, hits, box=box, title=title)
    grid = write_figure(Path(output_dir) / "search.png", figure)
    about = {
        "query": str(picture) if query else None,
        "box": box,
        "where": where,
        "grid": str(grid),
    }
    write_json(Path(output_dir) / "search.json", about | parts | hits.to_dict())
    return hits


@checked
def status(output_dir: str, collection: str | None = None, files: bool = False) -> dict:
    """Run ``admin.ipynb`` without a panel: verify one or all collections, write ``admin.json``."""
    settings = config.load_settings()
    collections = overview(settings)
    with MetadataStore.open(settings) as metadata:
        rows = [metadata.collection(collection)] if collection else metadata.collections()
        runs = metadata.runs(collection or None)
    verifications = []
    for name in [row.name for row in rows]:
        with Gallery.open(name, settings=settings) as gallery:
            verifications.append(maintenance.verify(gallery, files=files))
    content = {
        "collections": [one.to_dict() for one in collections],
        "verifications": [one.to_dict() for one in verifications],
        "runs": [run_to_dict(run) for run in runs],
    }
    write_json(Path(output_dir) / "admin.json", content)
    return content


@checked
def evaluate_voc(
    voc_root: str,
    year: int | None = None,
    protocol: str = "train -> val",
    collections: str | list[str] | None = None,
    ks: list[int] | None = None,
    seed: int = 0,
    distractors: bool = False,
    allow_missing: bool = False,
    sweep: bool = False,
    output_dir: str = "output",
) -> dict:
    """Run ``evaluation.ipynb`` without a panel; write tables, figures, ``evaluation.json``.

    One text of `collections` holds names separated by commas. `sweep` also measures other
    indexes over the first collection.
    """
    if isinstance(collections, str):
        collections = [part.strip() for part in collections.split(",")]
    evaluations = evaluate_collections(
        Voc(voc_root, year),
        collections or (),
        protocol=protocol,
        ks=KS if ks is None else ks,
        seed=seed,
        distractors=distractors,
        allow_missing=allow_missing,
    )
    points = []
    if sweep:
        with Gallery.open(next(iter(evaluations))) as gallery:
            points = index_sweep.sweep(gallery, seed=seed)
    return write_evaluations(evaluations, output_dir, points=points)
