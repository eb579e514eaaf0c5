"""The map in docs/design.md is true: every room is on it, and imports go downwards only."""

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
