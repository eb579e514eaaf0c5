"""Indexes of Milvus, with their build and search parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from imgsearch.errors import ConfigError

_Ranges = dict[str, tuple[int, int, int]]  # name: lowest, highest, default

# kind: (build parameters, search parameters)
_KINDS: dict[str, tuple[_Ranges, _Ranges]] = {
    "HNSW": ({"M": (4, 64, 16), "efConstruction": (8, 512, 200)}, {"ef": (1, 32_768, 128)}),
    "FLAT": ({}, {}),
    "IVF_FLAT": ({"nlist": (1, 65_536, 128)}, {"nprobe": (1, 65_536, 16)}),
    "AUTOINDEX": ({}, {}),
}


@dataclass(frozen=True)
class IndexSpec:
    """A kind of index with its validated build (`params`) and search parameters."""

    kind: str
    params: dict[str, int] = field(default_factory=dict)
    search: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, embedded: bool = False) -> IndexSpec:
        """Parse ``KIND`` or ``KIND:name=number,…``; ``auto`` is FLAT embedded, HNSW on servers.

        Names and ranges are checked here, because Milvus Lite accepts a misspelt index and fails
        only much later.
        """
        kind, _, rest = text.strip().partition(":")
        kind = kind.strip().upper()
        if kind == "AUTO":
            kind = "FLAT" if embedded else "HNSW"
        if kind not in _KINDS:
            raise ConfigError(
                "index",
                f"{text!r} is unknown: use auto, {', '.join(_KINDS)}, with parameters as in "
                "HNSW:M=16,efConstruction=200",
            )
        build, search = _KINDS[kind]
        given = dict(_pairs(kind, rest))
        values = {name: default for name, (_, _, default) in (build | search).items()} | given
        if kind == "IVF_FLAT":
            if "nprobe" not in given:
                values["nprobe"] = min(values["nprobe"], values["nlist"])
            if values["nprobe"] > values["nlist"]:
                raise ConfigError(
                    "index", "nprobe={nprobe} must not exceed nlist={nlist}".format_map(values)
                )
        return cls(kind, {n: values[n] for n in build}, {n: values[n] for n in search})

    @classmethod
    def described(cls, facts: Mapping[str, object]) -> IndexSpec:
        """Parse Milvus' description of an index, which contains no search parameters."""
        given = {**facts, **(facts.get("params") or {})}
        kind = str(given.get("index_type", "")).upper()
        names = _KINDS[kind][0] if kind in _KINDS else ()
        return cls.parse(f"{kind}:" + ",".join(f"{n}={given[n]}" for n in names if n in given))

    def search_with(
        self, given: Mapping[str, int] | None, limit: int, *, thorough: bool = False
    ) -> dict[str, int]:
        """Return the parameters of a search for `limit` hits; `given` ones override the index's.

        A `thorough` search finds the last hits with the same recall as the first ones.
        """
        params, known = dict(self.search), _KINDS[self.kind][1]
        for name, value in (given or {}).items():
            if name not in known:
                raise ConfigError("search_params", f"{self.kind} has no {name!r}{_only(known)}")
            low, high, _ = known[name]
            if not low <= value <= high:
                raise ConfigError("search_params", f"{name}={value} must be from {low} to {high}")
            params[name] = int(value)
        if self.kind == "HNSW":  # Milvus rejects an ef below the number of hits
            params["ef"] = max(params["ef"], min((1 + thorough) * limit, known["ef"][1]))
        if thorough and self.kind == "IVF_FLAT":
            params["nprobe"] = self.params["nlist"]
        return params

    def __str__(self) -> str:
        pairs = ",".join(f"{name}={value}" for name, value in (self.params | self.search).items())
        return f"{self.kind}:{pairs}" if pairs else self.kind


def _only(known: _Ranges) -> str:
    return f", only {', '.join(known)}" if known else ""


def _pairs(kind: str, text: str) -> Iterator[tuple[str, int]]:
    known = _KINDS[kind][0] | _KINDS[kind][1]
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (x.strip() for x in part.partition("="))
        name = {n.lower(): n for n in known}.get(name.lower(), name)
        if name not in known:
            raise ConfigError("index", f"{kind} has no parameter {name!r}{_only(known)}")
        if (name, value.lower()) == ("ef", "auto"):  # written by older versions of imgsearch
            continue
        low, high, _ = known[name]
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ConfigError(
                "index", f"{name}={value} of {kind} must be a whole number from {low} to {high}"
            )
        yield name, int(value)
