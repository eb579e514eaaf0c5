"""The layer table in docs/design.md is true: imports go down, and never in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "imgsearch"
LARGEST = 500  # lines of code in a module
PATCHES = 200  # lines of code that replace functions of a library


def layers() -> dict[str, int]:
    """Layer of each top-level module and subpackage, from the table."""
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (\d) \| ((?:`[\w./]+`(?:, )?)+) \|", text, re.MULTILINE)
    return {
        name: int(layer)
        for layer, names in rows
        for name in re.findall(r"`(\w+)(?:\.py|/)`", names)
    }


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below ``imgsearch``."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules that a module imports when it runs, at its top or inside a function."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imgsearch"):
            package = node.module.removeprefix("imgsearch").lstrip(".")
            for alias in node.names:
                name = f"{package}.{alias.name}".lstrip(".")
                found.add(name if name in known else package)
    return found & known.keys()


def test_the_table_names_every_module():
    top = {name.partition(".")[0] for name in modules()}
    assert top == set(layers())
    assert max(layers().values()) < 7


def test_imports_go_down():
    known, layer = modules(), layers()
    upwards = {
        (name, other)
        for name, path in known.items()
        for other in imported(path, known)
        if layer[other.partition(".")[0]] > layer[name.partition(".")[0]]
    }
    assert not upwards


def test_no_module_imports_itself_through_others():
    known = modules()
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    list(TopologicalSorter(graph).static_order())


def test_no_module_is_too_large():
    def lines(path: Path) -> int:
        tree = ast.parse(text := path.read_text())
        documented = {
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
            for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
        }
        return sum(
            bool(line.strip()) and not line.strip().startswith("#") and number not in documented
            for number, line in enumerate(text.splitlines(), 1)
        )

    sizes = {name: lines(path) for name, path in modules().items()}
    assert not {name: size for name, size in sizes.items() if size > LARGEST}
    assert sizes["stores.milvus_lite_patches"] <= PATCHES


def test_no_folder_hides_a_single_module():
    for folder in {path.parent for path in modules().values()} - {PACKAGE}:
        assert len([p for p in folder.glob("*.py") if p.stem != "__init__"]) > 1, folder


def test_the_tests_mirror_the_package():
    for path in modules().values():
        part = path.relative_to(PACKAGE)
        if path.stem != "__init__" and part.parts[0] != "widgets":  # tested in notebooks
            assert (ROOT / "tests" / part.parent / f"test_{part.name}").is_file(), part
