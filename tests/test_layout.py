"""The map in docs/design.md is true, imports go downwards, and Milvus's inside stays its own."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "imgsearch"


def floors() -> dict[str, int]:
    """Floor of each room, from the table of the map."""
    text = (ROOT / "docs" / "design.md").read_text()
    found = {}
    for floor, rooms in re.findall(r"^\| (\d) \| ((?:`[\w./]+`(?:, )?)+) \|", text, re.MULTILINE):
        for room in re.findall(r"`(\w+)(?:\.py|/)`", rooms):
            found[room] = int(floor)
    return found


def imported(path) -> set[str]:
    """Rooms that a module imports when it runs, at its top or later."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts == ["imgsearch"]:
                found |= {alias.name for alias in node.names}
            elif parts[0] == "imgsearch":
                found.add(parts[1])
    return {name.lstrip("_").removesuffix("_net") for name in found}


def test_every_room_is_on_the_map():
    rooms = {path.stem for path in PACKAGE.glob("*.py") if path.stem[0] != "_"}
    rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(floors())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_go_downwards_only(path):
    known = floors()
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room.startswith("__init__"):
        return
    room = room.lstrip("_").removesuffix("_net")
    upwards = {
        other for other in imported(path) & known.keys() - {room} if known[other] >= known[room]
    }
    assert not upwards, f"{room} is on floor {known[room]} of docs/design.md"


def hidden(tree: ast.AST) -> set[str]:
    """Names that begin with an underscore and are not of the module itself."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                own.add(node.attr)
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("__"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # as in getattr(collection, "_wal")
    return {
        name
        for name in found - {"os._exit"}  # documented, in spite of its name
        for part in [name.rsplit(".", 1)[-1]]
        if re.fullmatch(r"_[a-z]\w*", part) and part not in own
    }


def test_what_is_hidden_is_seen():
    lines = "import os", "os._exit(1)", "class A:", "    def _b(self): self._c", "A()._b(), it._c"
    assert hidden(ast.parse("\n".join(lines))) == set()
    for line in ("it._wal.write()", "getattr(it, '_wal')", "from milvus_lite.db import _wal"):
        assert len(hidden(ast.parse(line))) == 1


@pytest.mark.parametrize("name", ["embedded", "lite", "lite_search", "vectors"])
def test_milvus_is_used_by_its_public_names_only(name):
    assert not hidden(ast.parse((PACKAGE / f"{name}.py").read_text()))


ELSEWHERE = {
    "lite.py": "guarantees/test_damage.py",  # what it is for shows under damage only
    "runners.py": "test_encoder.py",  # an encoder must be the same whatever runs it
}


def test_the_tests_mirror_the_package():
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE)
        if path.stem[0] != "_" and part.parts[0] != "widgets":  # whose tests run in notebooks
            test = ELSEWHERE.get(str(part), part.parent / f"test_{part.name}")
            assert (ROOT / "tests" / test).is_file(), part
