"""Say in a few lines what `make demo` did, from the reports that the notebooks wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def summary(ingest: dict, search: dict, evaluation: dict, folder: Path) -> str:
    """Return the closing lines.

    Parameters
    ----------
    ingest : dict
        The ingest notebook's report.
    search : dict
        The search notebook's report.
    evaluation : dict
        The evaluation notebook's report.
    folder : Path
        Where they lie, beside the notebooks that ran.

    Returns
    -------
    str
        Lines without a newline at the end.
    """
    lines = [
        "",
        f"Ingested {ingest['total']} images with the encoder {ingest['encoder']['name']} in "
        f"{ingest['seconds']:.1f} s: {ingest['encoded']} encoded, {ingest['unchanged']} unchanged, "
        f"{ingest['failed']} failed.",
        *(["Nothing had to be encoded again."] if not ingest["encoded"] else []),
        f"Most like {Path(search['query']).name}:",
        *(f"  {hit['score']:.3f}  {Path(hit['path']).name}" for hit in search["hits"][:5]),
        *(
            f"{row['metric']} {row['value']:.3f}, 95 % interval {row['low']:.3f} to "
            f"{row['high']:.3f}, in random order {row['baseline']:.3f}."
            for row in evaluation["evaluations"]["sample"]["summary"]
            if row["average"] == "micro" and row["metric"] in ("mAP", "P@1")
        ),
        f"The notebooks as they ran, and their reports, are in {folder}/.",
        "Next: `make lab` opens the notebooks.",
    ]
    return "\n".join(lines)


REPORTS = ("ingest.json", "search.json", "evaluation.json")

if __name__ == "__main__":
    place = Path(sys.argv[1])
    reports = [json.loads((place / name).read_text()) for name in REPORTS]
    print(summary(*reports, place))
