from __future__ import annotations

import json
import os
import stat

import pytest

from imgsearch import io
from imgsearch.errors import ConfigError


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_report_has_the_permissions_that_the_umask_leaves(tmp_path, umask, mode):
    """Review 1 (process-wide side effects): the umask is applied by the kernel, not changed."""
    before = os.umask(umask)
    try:
        path = io.write_json(tmp_path / "new folder" / "report.json", {"n": 1})
        assert stat.S_IMODE(path.stat().st_mode) == mode
        with io.atomic(tmp_path / "secret", permissions=0o600) as file:
            file.write(b"x")
        assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    finally:
        assert os.umask(before) == umask


def test_a_report_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "report.json"
    for n in range(2):
        assert io.write_json(path, {"n": n}) == path
    content = json.loads(path.read_text())
    assert content["n"] == 1
    assert content["versions"]["numpy"]
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    path = io.write_json(tmp_path / "report.json", {"n": 1})
    old = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        io.write_json(path, {"score": float("nan")})
    with pytest.raises(TypeError), io.atomic(path) as file:
        file.write("no bytes")
    assert path.read_bytes() == old
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        io.write_json(path, {"n": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_text_is_utf8_and_undecodable_bytes_are_escaped(tmp_path):
    with io.atomic(tmp_path / ("ä" * 127), "w") as file:
        file.write("猫 \udce4\n")
    assert (tmp_path / ("ä" * 127)).read_bytes() == "猫 \\udce4\n".encode()


@pytest.mark.parametrize("path", ["", "a\0b", "a\ud800b", "~nobody-of-this-name/x"])
def test_an_invalid_path_is_refused(path):
    """Attack rows 3 and 10: NUL, lone surrogates, empty paths, unknown users."""
    with pytest.raises(ConfigError, match="path"):
        io.absolute(path)


def test_equivalent_spellings_of_a_path_give_the_same_path(tmp_path, monkeypatch):
    """Attack row 10: ``a/../a`` doubled the paths of a collection."""
    monkeypatch.chdir(tmp_path)
    assert io.absolute("a/../a/./b.jpg") == io.absolute("a/b.jpg") == tmp_path / "a" / "b.jpg"
    assert io.absolute("~").is_absolute()
    assert io.absolute("bad \udce4.jpg").name == "bad \udce4.jpg"


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_figures_are_written_in_the_format_of_their_suffix(tmp_path, name, magic):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    assert io.write_figure(tmp_path / name, figure).read_bytes().startswith(magic)
