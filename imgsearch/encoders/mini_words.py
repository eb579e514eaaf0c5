"""The words that ``mini`` understands, each as a direction among its image vectors.

Made by ``training/words.py``; ``docs/mini-encoder.md`` describes how, and the limits.
"""

from __future__ import annotations

import difflib
import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from imgsearch.encoders import weights as files
from imgsearch.errors import EncoderError, WeightsError

FILE = Path(__file__).parent / "mini_words.npz"
SHA256 = "22bb15a030136acc00b26db7dc7628d4d1c1e4878b4352c487c7ee8df4e3977c"
IGNORED = re.compile(
    r"an?|the|and|or|of|in|on|at|by|with|near|some|(photo|photograph|picture|image)s?"
)
_LONGEST = 6  # tokens of a name
_PLURALS = (
    ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("s", ""),
    *((end + "es", end) for end in ("s", "x", "z", "ch", "sh", "o")),
)  # fmt: skip


class Words:
    """Directions of `dim` numbers by name: names are as :func:`tokens` gives them, joined.

    `offers` gives the names to offer for words that are not known.
    """

    def __init__(self, rows: dict[str, int], directions: np.ndarray, offers: dict[str, str]):
        self.directions, self.names, self.offers = directions, list(rows), offers
        joined = {name.replace(" ", ""): row for name, row in rows.items()}
        self._rows = joined | rows  # "pottedplant" is "potted plant"

    @classmethod
    def load(cls, file: Path = FILE) -> Words:
        """Read the bundled file."""
        if files.file_digest(file) != SHA256:
            raise WeightsError("mini", f"{file} is damaged: install imgsearch again")
        with np.load(io.BytesIO(file.read_bytes())) as archive:
            names, unknown, different = (
                archive[part].tobytes().decode("ascii").split("\n")
                for part in ("names", "unknown", "offers")
            )
            rows = dict(zip(names, archive["rows"].tolist(), strict=True))
            offered = (different[number] for number in archive["offered"].tolist())
            offers = dict(zip(unknown, offered, strict=True))
            directions = archive["directions"].astype(np.float32)
        return cls(rows, directions / np.linalg.norm(directions, axis=1, keepdims=True), offers)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Mean direction of the known words of each text: float32 (n, dim), of length 1."""
        means = [self.directions[list(self._parse(text))].mean(axis=0) for text in texts]
        vectors = np.array(means, np.float32).reshape(len(texts), self.directions.shape[1])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _parse(self, text: str) -> Iterator[int]:
        """Rows of the longest names that a text consists of; any other word is an error."""
        words, start, found = tokens(text), 0, False
        while start < len(words):
            for end in range(min(start + _LONGEST, len(words)), start, -1):
                row = self._row(" ".join(words[start:end]))
                if row is not None:
                    yield row
                    found = True
                    break
            else:
                if not IGNORED.fullmatch(words[start]):
                    raise EncoderError("mini", self._unknown(words[start], text))
            start = end
        if not found:
            raise EncoderError(
                "mini",
                f"finds no word to search for in {text[:80]!r}: name a thing or an animal",
            )

    def _row(self, name: str) -> int | None:
        return next((self._rows[form] for form in _forms(name) if form in self._rows), None)

    def _unknown(self, word: str, text: str) -> str:
        related = next((self.offers[form] for form in _forms(word) if form in self.offers), None)
        # Only what is not a noun with names to offer may be a spelling mistake.
        near = [] if related else difflib.get_close_matches(word, self.names, n=5, cutoff=0.82)
        parts = [name for name in self.names if word in name.split()]
        offered = related or ", ".join(dict.fromkeys([*near, *parts][:8]))
        nearest = f"the nearest that it knows: {offered}" if offered else "it knows none like it"
        where = "" if text.strip().lower() == word else f" in {text[:80]!r}"
        return (
            f"does not know the word {word[:40]!r}{where}; {nearest}. It knows English names of "
            "things and animals, such as vehicle, chair and dog: for free text use an encoder "
            "such as clip:PE-Core-B-16"
        )


def _forms(name: str) -> Iterator[str]:
    """The name itself and the singulars that it may be the plural of."""
    yield name
    yield from (name.removesuffix(s) + one for s, one in _PLURALS if name.endswith(s))


@functools.cache
def known_words() -> Words:
    """The bundled words, read once."""
    return Words.load()


def tokens(text: str) -> list[str]:
    """Words of a text in lower case, without apostrophes and punctuation."""
    return re.findall(r"[^\W_]+", re.sub(r"['’]", "", text.casefold()))
