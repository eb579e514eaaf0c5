"""`make demo`: run three notebooks on the sample in batch, and report in a few lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

SAMPLE = Path("data/VOCsample")
OUTPUT = Path("output/demo")
QUERY = SAMPLE / "JPEGImages" / "2026_000001.jpg"
COLLECTION = "sample"

# Without it, every kernel warns on the terminal that its messages are not encrypted.
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def run(notebook: str, **parameters: object) -> dict:
    """Run a notebook in batch and return the report that it writes last."""
    report = OUTPUT / f"{notebook}.json"
    report.unlink(missing_ok=True)
    papermill.execute_notebook(
        f"notebooks/{notebook}.ipynb",
        str(OUTPUT / f"{notebook}.ipynb"),
        parameters | {"output_dir": str(OUTPUT)},
        progress_bar=False,
        config=ENCRYPTED,
    )
    return json.loads(report.read_text(encoding="utf-8"))


def demo() -> None:
    """Ingest, search and evaluate."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    print(f"Demo: the images of {SAMPLE}, the encoder mini, and three notebooks in batch.\n")

    print("1 of 3  ingest", end="", flush=True)
    found = run("ingest", image_dir=str(QUERY.parent), collection=COLLECTION, encoder="mini")
    print(
        f"      {found['total']} images in {found['seconds']:.1f} s: {found['encoded']} encoded, "
        f"{found['unchanged']} unchanged, {found['failed']} failed"
    )

    print("2 of 3  search", end="", flush=True)
    found = run("search", query_path=str(QUERY), collection=COLLECTION)
    print(f"      images similar to {QUERY.name}, with their cosine similarity:")
    for hit in found["hits"][:5]:
        print(f"{'':20}{hit['score']:.3f}  {Path(hit['path']).name}")

    print("3 of 3  evaluation", end="", flush=True)
    found = run("evaluation", voc_root=str(SAMPLE), collections=COLLECTION)
    one = found["evaluations"][COLLECTION]
    print(f"  {one['counts']['queries']} queries, with 95 % confidence intervals:")
    for row in [row for row in one["headline"] if row["metric"] in ("mAP", "P@1")]:
        print(
            f"{'':20}{row['metric']:4} {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}); "
            f"{row['baseline']:.3f} in random order"
        )

    print(f"\nPictures:   {OUTPUT}/search.png, {OUTPUT}/evaluation-classes.png")
    print(f"Notebooks:  {OUTPUT}/*.ipynb, with their outputs")
    print("Next:       run `make lab`, open search.ipynb, and choose Run > Run All Cells.")
    print(f"            The collection {COLLECTION!r} is there.")


if __name__ == "__main__":
    try:
        demo()
    except PapermillExecutionError as error:
        sys.exit(f"\n{error.ename}: {error.evalue}\nThe notebook so far is in {OUTPUT}.")
