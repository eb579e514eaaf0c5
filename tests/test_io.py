from __future__ import annotations

import json
import os
import stat

import pytest

from imgsearch import io


def test_a_report_is_replaced_whole_and_readable_by_colleagues(tmp_path):
    path = tmp_path / "new folder" / "report.json"
    os.umask(0o022)
    for n in range(2):
        assert io.write_json(path, {"n": n}) == path
    content = json.loads(path.read_text())
    assert content["n"] == 1
    assert content["versions"]["numpy"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = io.write_atomic(tmp_path / "report.json", b"old")
    with pytest.raises(ValueError, match="JSON"):
        io.write_json(path, {"score": float("nan")})
    assert path.read_bytes() == b"old"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        io.write_atomic(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_figures_come_in_the_format_of_their_name(tmp_path, name, magic):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    assert io.write_figure(tmp_path / name, figure).read_bytes().startswith(magic)
