"""Summarise `make demo` in a few lines, from the reports that the notebooks wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def summary(ingest: dict, search: dict, evaluation: dict, folder: Path) -> str:
    """Return the summary; `folder` holds the reports and the notebooks with their outputs."""
    lines = [
        "",
        f"Ingested {ingest['total']} images with the encoder {ingest['encoder']['name']} in "
        f"{ingest['seconds']:.1f} s: {ingest['encoded']} encoded, {ingest['unchanged']} unchanged, "
        f"{ingest['failed']} failed.",
        *(["No image had to be encoded again."] if not ingest["encoded"] else []),
        f"Images similar to {Path(search['query']).name}:",
        *(f"  {hit['score']:.3f}  {Path(hit['path']).name}" for hit in search["hits"][:5]),
        *(
            f"{row['metric']} {row['value']:.3f}, 95 % confidence interval {row['low']:.3f} to "
            f"{row['high']:.3f}, in random order {row['baseline']:.3f}."
            for row in evaluation["evaluations"]["sample"]["summary"]
            if row["average"] == "micro" and row["metric"] in ("mAP", "P@1")
        ),
        f"The notebooks with their outputs, and the reports, are in {folder}/.",
        "Next: `make lab` opens the notebooks.",
    ]
    return "\n".join(lines)


REPORTS = ("ingest.json", "search.json", "evaluation.json")

if __name__ == "__main__":
    place = Path(sys.argv[1])
    reports = [json.loads((place / name).read_text()) for name in REPORTS]
    print(summary(*reports, place))
