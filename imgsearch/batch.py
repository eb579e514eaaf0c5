"""What the notebooks do when nobody watches: parameters in, reports out.

Each function is one notebook's work. It writes its report last and atomically,
so that a report on disk means a run that came to its end.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError, validate_call
from tqdm import tqdm

from imgsearch import config, maintenance, plots
from imgsearch.datasets import Voc
from imgsearch.errors import ConfigError
from imgsearch.evaluation import index_sweep
from imgsearch.evaluation.report import evaluate_collections, write_evaluations
from imgsearch.evaluation.scoring import KS
from imgsearch.gallery import Gallery, Hits
from imgsearch.ingest import IngestReport, ingest
from imgsearch.io import write_figure, write_json
from imgsearch.stores.metadata import MetadataStore

PARAMETERS = "# Parameters"
"""How a cell that sets parameters begins, in our notebooks and in papermill's output."""


def parameters(namespace: dict, function: Callable) -> dict:
    """Take a notebook's parameters out of its globals, and check their names.

    Papermill only warns of a parameter that a notebook does not have, and runs
    it with the default: a typing error would ingest the wrong folder.

    Parameters
    ----------
    namespace : dict
        The notebook's ``globals()``. The cells that set parameters are known by
        their first line, which papermill too begins with ``# Parameters``.
    function : callable
        What the parameters are for; its own parameters are the names allowed.

    Returns
    -------
    dict
        Name to value.

    Raises
    ------
    ConfigError
        A name is set that `function` does not take; offers the nearest one.
    """
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
        raise ConfigError(name, f"is no parameter of this notebook; {hint}")
    return given


def checked(function: Callable) -> Callable:
    """Check the types of a notebook's parameters, in words a reader understands.

    Parameters
    ----------
    function : callable
        With annotated parameters.

    Returns
    -------
    callable
        The same, which raises ConfigError for a value of another type.

    Raises
    ------
    ConfigError
        From the returned function.
    """
    validated = validate_call(function)

    def call(*args, **kwargs):
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            if error.title != function.__name__:
                raise
            first = error.errors(include_url=False)[0]
            raise ConfigError(".".join(map(str, first["loc"])), first["msg"]) from None

    call.__doc__, call.__name__ = function.__doc__, function.__name__
    call.__wrapped__ = function  # keeps the signature for `parameters`
    return call


@checked
def ingest_folder(
    image_dir: str,
    collection: str | None = None,
    encoder: str | None = None,
    weights: str | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | None = None,
    recursive: bool = True,
    limit: int | None = None,
    shard: str | None = None,
    output_dir: str = "output",
) -> IngestReport:
    """Run ``ingest.ipynb`` without a panel.

    Parameters
    ----------
    image_dir : str
        Folder with images.
    collection : str, optional
        ``DEFAULT_TABLE`` if left out.
    encoder, weights, device : str, optional
        As for :meth:`imgsearch.gallery.Gallery.open`.
    batch_size, workers, recursive, limit, shard
        As for :func:`imgsearch.ingest.ingest`.
    output_dir : str
        Receives ``ingest.json``; with a shard, ``ingest-i-of-n.json``.

    Returns
    -------
    IngestReport

    Raises
    ------
    ConfigError
        A parameter has a value that cannot be used.
    ImgSearchError
        As :func:`imgsearch.ingest.ingest`.
    """
    with tqdm(unit=" files", file=sys.stderr, mininterval=1.0) as bar:
        report = ingest(
            image_dir,
            collection or None,
            encoder=encoder or None,
            weights=weights or None,
            batch_size=batch_size,
            workers=workers,
            device=device or None,
            recursive=recursive,
            limit=limit,
            shard=shard or None,
            progress=lambda progress: _advance(bar, progress),
        )
    name = f"ingest-{shard.replace('/', '-of-')}.json" if shard else "ingest.json"
    write_json(Path(output_dir) / name, report.to_dict())
    return report


def _advance(bar: tqdm, progress: IngestReport) -> None:
    bar.total = progress.total
    bar.update(progress.done - bar.n)


@checked
def search_image(
    query_path: str,
    collection: str | None = None,
    top_k: int = 10,
    box: tuple[int, int, int, int] | None = None,
    output_dir: str = "output",
) -> Hits:
    """Run ``search.ipynb`` without a panel.

    Parameters
    ----------
    query_path : str
        Image file.
    collection : str, optional
        ``DEFAULT_TABLE`` if left out.
    top_k : int
        How many hits at most.
    box : tuple of int, optional
        Left, upper, right, lower in pixels of the upright query.
    output_dir : str
        Receives ``search.png`` and, last, ``search.json``.

    Returns
    -------
    Hits

    Raises
    ------
    ConfigError
        A parameter has a value that cannot be used.
    ImgSearchError
        As :meth:`imgsearch.gallery.Gallery.search`.
    """
    query = Path(query_path).expanduser().absolute()
    with Gallery.open(collection or None) as gallery:
        hits = gallery.search(query, top_k, box=box)
    figure = plots.result_grid(query, hits, box=box, title=heading(hits))
    grid = write_figure(Path(output_dir) / "search.png", figure)
    content = {"query": str(query), "box": box, "grid": str(grid)} | hits.to_dict()
    write_json(Path(output_dir) / "search.json", content)
    return hits


@checked
def status(output_dir: str, collection: str | None = None, files: bool = False) -> dict:
    """Run ``admin.ipynb`` without a panel: look at everything, change nothing.

    Parameters
    ----------
    output_dir : str
        Receives ``admin.json``.
    collection : str, optional
        The only one to verify; all of them if left out.
    files : bool
        Also look at every image file.

    Returns
    -------
    dict
        As in ``admin.json``: ``collections`` with counts in both stores,
        ``verifications``, and the latest ``runs``.

    Raises
    ------
    ConfigError
        A parameter has a value that cannot be used.
    CollectionNotFound
        There is no `collection`.
    StoreError
        A store cannot be reached.
    """
    settings = config.load_settings()
    collections = maintenance.overview(settings)
    with MetadataStore.open(settings) as metadata:
        if collection:
            metadata.collection(collection)
        known = [row.name for row in metadata.collections()]
        runs = metadata.runs(collection or None)
    verifications = []
    for name in [collection] if collection else known:
        with Gallery.open(name, settings=settings) as gallery:
            verifications.append(maintenance.verify(gallery, files=files))
    content = {
        "collections": [one.to_dict() for one in collections],
        "verifications": [one.to_dict() for one in verifications],
        "runs": [maintenance.run_to_dict(run) for run in runs],
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
    """Run ``evaluation.ipynb`` without a panel.

    Parameters
    ----------
    voc_root : str
        Folder of a VOC dataset, or one that holds ``VOCdevkit``.
    year : int, optional
        Needed where `voc_root` holds several.
    protocol : str
        ``train -> val`` (gallery, then queries), or ``leave-one-out trainval``.
    collections : str or list of str, optional
        One, or several to compare with the first; ``DEFAULT_TABLE`` if left out.
        In one text, they stand with commas between.
    ks : list of int, optional
        Depths of P@k, R@k and nDCG@k; 1, 5, 10 and 100 if left out.
    seed : int
        Of the intervals and tests.
    distractors : bool
        Search images outside ``ImageSets/Main`` too.
    allow_missing : bool
        Go on without images that a collection does not hold.
    sweep : bool
        Measure recall and latency of other indexes too, for the first collection.
    output_dir : str
        Receives tables and figures and, last, ``evaluation.json``.

    Returns
    -------
    dict
        As in ``evaluation.json``.

    Raises
    ------
    ConfigError
        A parameter has a value that cannot be used.
    ImgSearchError
        As :func:`imgsearch.evaluation.prepare`.
    """
    if isinstance(collections, str):
        collections = [part.strip() for part in collections.split(",")]
    found = evaluate_collections(
        Voc(voc_root, year),
        [name for name in collections or [] if name],
        protocol=protocol,
        ks=KS if ks is None else ks,
        seed=seed,
        distractors=distractors,
        allow_missing=allow_missing,
    )
    points = []
    if sweep:
        with Gallery.open(next(iter(found))) as gallery:
            points = index_sweep.sweep(gallery, seed=seed)
    return write_evaluations(found, output_dir, seed=seed, points=points)


def heading(hits: Hits) -> str:
    """One line that says what made the results.

    Parameters
    ----------
    hits : Hits
        Results of a search.

    Returns
    -------
    str
        Collection, encoder and index.
    """
    return f"{hits.collection} · {hits.encoder['name']} · {hits.index_spec}"
