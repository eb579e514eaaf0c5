"""`make demo`: run notebooks on the sample in batch, and report in a few lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

SAMPLE = Path("data/VOCsample")
OUTPUT = Path("output/demo")
WORDS = OUTPUT / "words"
QUERY = SAMPLE / "JPEGImages" / "2026_000106.jpg"
WORD = "chair"
COLLECTION = "sample"

# Kernels print on this terminal. Without the first, each warns that its messages are not encrypted;
# without the second, one that is interrupted at its end may report that as an error.
SILENT = Config(
    {
        "KernelManager": {"transport_encryption": "auto"},
        "NotebookClient": {"shutdown_kernel": "immediate"},
    }
)


def run(notebook: str, output: Path = OUTPUT, **parameters: object) -> dict:
    """Run a notebook in batch and return the report that it writes last."""
    report = output / f"{notebook}.json"
    report.unlink(missing_ok=True)
    papermill.execute_notebook(
        f"notebooks/{notebook}.ipynb",
        str(output / f"{notebook}.ipynb"),
        parameters | {"output_dir": str(output)},
        progress_bar=False,
        config=SILENT,
    )
    return json.loads(report.read_text(encoding="utf-8"))


def show(found: dict) -> None:
    """Print the first results of a search."""
    for hit in found["hits"][:3]:
        print(f"{'':20}{hit['score']:.3f}  {Path(hit['path']).name}")


def demo() -> None:
    """Ingest, search with a picture, evaluate, and search with a word."""
    WORDS.mkdir(parents=True, exist_ok=True)
    print(f"Demo: the images of {SAMPLE}, the encoder mini, and four notebooks in batch.\n")

    print("1 of 4  ingest", end="", flush=True)
    found = run("ingest", image_dir=str(QUERY.parent), collection=COLLECTION, encoder="mini")
    print(
        f"      {found['total']} images in {found['seconds']:.1f} s: {found['encoded']} encoded, "
        f"{found['unchanged']} unchanged, {found['failed']} failed"
    )

    print("2 of 4  search", end="", flush=True)
    found = run("search", query_path=str(QUERY), collection=COLLECTION)
    print(f"      images similar to {QUERY.name}, with their cosine similarity:")
    show(found)

    print("3 of 4  evaluation", end="", flush=True)
    found = run("evaluation", voc_root=str(SAMPLE), collections=COLLECTION)
    one = found["evaluations"][COLLECTION]
    print(f"  {one['counts']['queries']} queries, with 95 % confidence intervals:")
    for row in [row for row in one["headline"] if row["metric"] in ("mAP", "P@1")]:
        print(
            f"{'':20}{row['metric']:4} {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}); "
            f"{row['baseline']:.3f} in random order"
        )

    print("4 of 4  search", end="", flush=True)
    found = run("search", WORDS, query_text=WORD, collection=COLLECTION)
    print(f"      images that the word {WORD!r} fits:")
    show(found)

    print(f"\nPictures:   {OUTPUT}/search.png, {OUTPUT}/evaluation-classes.png, {WORDS}/search.png")
    print(f"Notebooks:  {OUTPUT}/*.ipynb and {WORDS}/search.ipynb, with their outputs")
    print("Next:       run `make lab`, open search.ipynb, and choose Run > Run All Cells.")
    print(f"            The collection {COLLECTION!r} is there.")


if __name__ == "__main__":
    try:
        demo()
    except PapermillExecutionError as error:
        sys.exit(f"\n{error.ename}: {error.evalue}\nThe notebook so far is in {OUTPUT}.")
