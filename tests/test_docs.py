"""Every name of the public API is documented; no docstring only repeats names."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import textwrap

import pytest

import imgsearch
from imgsearch.errors import ImgSearchError
from tests.conftest import ROOT

MODULES = [name for _, name, _ in pkgutil.walk_packages(imgsearch.__path__, "imgsearch.")]
DOORS = ["imgsearch", "imgsearch.datasets", "imgsearch.encoders", "imgsearch.evaluation"]
"""What these export is the public API."""
PUBLIC = [f"{door}.{name}" for door in DOORS for name in importlib.import_module(door).__all__]

# (n,), (n, dim), (crop, crop, 3), (..., d)
SHAPE = re.compile(r"\((?:\w+|\.\.\.)\s*,[^()]*\)")
DTYPE = re.compile(r"\b(?:u?int(?:8|16|32|64)?|float(?:16|32|64)?|bool|str|object|dtype)\b")
ARRAY = re.compile(r"\bndarray\b|\bNDArray\b")
# Names that leave their unit open; max_pixels or grace_seconds do not.
TIME_NAME = re.compile(r"(?:^|_)(?:timeout|interval|delay|duration|age|idle|grace)$")
TIME = re.compile(r"\b(?:milliseconds?|ms|seconds?|minutes?|hours?|s)\b", re.I)
SIZE_NAME = re.compile(r"^(?:size|width|height|max_size)$")
SIZE = re.compile(
    r"\b(?:bytes?|[KMG]i?B|pixels?|inch(?:es)?|points?|images?|rows?|columns?)\b", re.I
)


def sections(doc: str) -> dict[str, str]:
    """Split a docstring at its numpydoc headings."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", inspect.cleandoc(doc), flags=re.M)
    return dict(zip(parts[1::2], (part.strip("\n") for part in parts[2::2]), strict=True))


def entries(section: str) -> dict[str, str]:
    """Split a section of parameters into name -> its whole entry."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line[:1].strip():
            names = [name.strip().lstrip("*") for name in line.partition(":")[0].split(",")]
        for name in names:
            found[name] = found.get(name, "") + line + "\n"
    return found


def raised(function, names: dict) -> set[str]:
    """Return the errors of this package that a function's own source raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            target = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            kind = names.get(target.id) if isinstance(target, ast.Name) else None
            if inspect.isclass(kind) and issubclass(kind, ImgSearchError):
                found.add(kind.__name__)
    return found


# What a class says whose constructor nobody calls but the function it names.
MADE_ELSEWHERE = re.compile(r"\b(?:[Mm]ade|[Oo]pened|[Gg]iven|[Rr]eturned) by\b")


def complaints(where: str, function, doc: str | None, names: dict, *, init: bool = False):
    """Yield what the docstring of a function lacks."""
    if not doc:
        yield f"{where}: no docstring"
        return
    found = sections(doc)
    taken = documented = entries(found.get("Parameters", ""))
    if init:  # what it keeps under the same name may be described as an attribute
        documented = entries(found.get("Attributes", "")) | taken
    signature = inspect.signature(function)
    parameters = {
        name: str(parameter.annotation)
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls") and not name.startswith("_")
    }
    for name in parameters.keys() - documented.keys():
        yield f"{where}: Parameters lacks {name}"
    for name in taken.keys() - parameters.keys():
        yield f"{where}: Parameters names {name}, which it does not take"
    for name in parameters.keys() & documented.keys():
        yield from _units(f"{where}: {name}", name, parameters[name], documented[name])
    given = str(signature.return_annotation)
    nothing = ("None", "NoReturn", "Never", "Iterator[None]", str(inspect.Signature.empty))
    # A single line over a function without parameters already says what comes back.
    told = not parameters and "\n" not in doc.strip() and not ARRAY.search(given)
    if not init and not told and given not in nothing:
        text = found.get("Returns", found.get("Yields"))
        if text is None:
            yield f"{where}: no section Returns or Yields for {given}"
        elif ARRAY.search(given):
            yield from _array(f"{where}: the result", text)
    for kind in sorted(raised(function, names)):
        if not re.search(rf"^{kind}\b", found.get("Raises", ""), re.M):
            yield f"{where}: Raises lacks {kind}"


def _units(where: str, name: str, annotation: str, text: str):
    if ARRAY.search(annotation) and "Sequence" not in annotation:  # that has no dtype to name
        yield from _array(where, text)
    numeric = re.fullmatch(r"(?:int|float)(?: \| (?:int|float|None))*", annotation)
    if numeric and TIME_NAME.search(name) and not TIME.search(text):
        yield f"{where}: no unit of time"
    if numeric and SIZE_NAME.search(name) and not SIZE.search(text):
        yield f"{where}: no unit of size"


def _array(where: str, text: str):
    if not SHAPE.search(text):
        yield f"{where}: an array without a shape such as (n, dim)"
    if not DTYPE.search(text):
        yield f"{where}: an array without a dtype"


def class_complaints(where: str, cls: type, names: dict):
    """Yield what a class and its public methods lack."""
    doc = vars(cls).get("__doc__")
    # Named tuples and dataclasses make one up, which says nothing.
    if not doc or doc.startswith(f"{cls.__name__}("):
        yield f"{where}: no docstring"
        return
    own = vars(cls).get("__init__")
    if issubclass(cls, ImgSearchError):
        # Nobody outside makes one: what counts is what a caught one carries.
        known = entries(sections(doc).get("Attributes", ""))
        for name in (_assigned(own) if own else set()) - known.keys():
            yield f"{where}: Attributes lacks {name}"
    elif _written(own) and own.__module__ == cls.__module__ and not MADE_ELSEWHERE.search(doc):
        yield from complaints(where, own, doc, names, init=True)
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        if any(
            name in vars(base) and base.__module__.startswith("imgsearch")
            for base in cls.__mro__[1:]
        ):
            continue  # documented where it is declared
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        if isinstance(member, property):
            if not member.__doc__:
                yield f"{where}.{name}: no docstring"
        elif _written(member):
            yield from complaints(f"{where}.{name}", member, member.__doc__, names)
        elif inspect.isclass(member) and member.__module__ == cls.__module__:
            yield from class_complaints(f"{where}.{name}", member, names)


def _assigned(function) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def _written(function) -> bool:
    """Whether this is a function that stands in a file, not one that a decorator made."""
    return inspect.isfunction(function) and function.__code__.co_filename[:1] != "<"


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_api_is_documented(name):
    door, _, short = name.rpartition(".")
    value = getattr(importlib.import_module(door), short)
    if inspect.isclass(value):
        found = list(class_complaints(name, value, vars(sys.modules[value.__module__])))
    elif callable(value):
        function = inspect.unwrap(value)
        found = list(complaints(name, function, value.__doc__, function.__globals__))
    else:
        found = []  # data is described where it is defined
    assert not found, "\n" + "\n".join(found)


def repeats(name: str, description: str) -> bool:
    """Whether the description of a parameter holds nothing but its name."""
    words = set(re.findall(r"[a-z]+", description.lower()))
    own = set(re.findall(r"[a-z]+", name.lower()))
    return words <= own | {f"{word}s" for word in own} | {"a", "an", "the", "which", "what"}


@pytest.mark.parametrize("module_name", MODULES)
def test_no_docstring_only_repeats_names(module_name):
    source = inspect.getsource(importlib.import_module(module_name))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (doc := ast.get_docstring(node)):
            for name, entry in entries(sections(doc).get("Parameters", "")).items():
                description = entry.partition("\n")[2]
                if description.strip():
                    assert not repeats(name, description), f"{node.name}: {name}: {description}"


def test_the_walk_finds_what_is_missing():
    def scale(vectors: np.ndarray, timeout: float, size: int) -> np.ndarray:  # noqa: F821
        """Scale.

        Parameters
        ----------
        vectors : np.ndarray
            Vectors.
        timeout : float
            How long.
        sizes : int
            How big.

        Returns
        -------
        np.ndarray
            float32, (n, dim).
        """
        raise Lost("x")

    class Lost(ImgSearchError):
        pass

    found = set(complaints("f", scale, scale.__doc__, {"Lost": Lost}))
    assert found == {
        "f: Parameters lacks size",
        "f: Parameters names sizes, which it does not take",
        "f: vectors: an array without a shape such as (n, dim)",
        "f: vectors: an array without a dtype",
        "f: timeout: no unit of time",
        "f: Raises lacks Lost",
    }
    assert list(complaints("g", lambda a: a, None, {})) == ["g: no docstring"]
    assert list(class_complaints("C", Lost, {})) == ["C: no docstring"]


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    program = (
        "import json, sys, time; start = time.process_time(); import imgsearch;"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    seconds = []
    for _ in range(5):  # the best of five: other things run on this machine too
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        took, modules = json.loads(done.stdout)
        assert not {"torch", "towhee", "pymilvus", "matplotlib"} & set(modules)
        seconds.append(took)
        if took < 0.3:
            break
    assert min(seconds) < 0.3, seconds
