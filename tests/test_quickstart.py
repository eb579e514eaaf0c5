"""The code of the quickstart runs as it stands."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_the_ten_tasks_of_the_quickstart(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "quickstart.md").read_text()
    assert len(re.findall(r"^## \d+\. ", text, re.MULTILINE)) == 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    names: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(code, code, "exec"), names)
    gallery = names["g"]
    try:
        assert len(gallery) == 199
        assert len(list((tmp_path / "out").iterdir())) == 12
        assert len(names["labelled"][0]) == 3
        assert names["evaluation"].task.queries.size == 100
    finally:
        gallery.close()
