"""What encoders there are: built in, registered by a caller, declared by a package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imgsearch import encoders
from imgsearch.encoders import Entry, load_encoder, mini, register, registry, resnet
from imgsearch.errors import ConfigError, EncoderError


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """Leave the registry as it was."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_importing_the_package_loads_no_torch():
    code = "import sys, imgsearch.encoders as e; e.list(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_entry_describes_its_encoder():
    known = {entry.name: entry for entry in encoders.list()}
    for entry in known.values():
        assert entry.purpose.endswith(".")
        depends = entry.name.isupper() or entry.name.endswith((":NAME", ".onnx"))
        assert (entry.license is None) == (entry.dim is None) == depends
    assert (known["mini"].dim, known["mini"].input_size) == (mini.DIM, mini.PREPROCESSING.crop)
    for name in resnet.LAYERS:
        assert known[name].dim == resnet.resnet(name).dim
        floats = sum(value.numel() for value in resnet.resnet(name).state_dict().values())
        classifier = 1000 * (known[name].dim + 1)
        assert known[name].download == pytest.approx(4 * (floats + classifier), rel=0.01)


def test_a_notebook_shows_the_list_as_a_table():
    register(Entry("<b>", "<b>", "x:Y", "A & B", 1, 2, "", 2_000_000, "A test."))
    shown = encoders.list()._repr_html_()
    assert shown.count("<tr") == len(encoders.list()) + 1
    for part in ("&lt;b&gt;", "A &amp; B", "<td>2000000</td>", "<th>input_size</th>"):
        assert part in shown


def test_a_registered_encoder_is_found_by_its_name():
    model = "imgsearch.encoders.mini:MiniModel"
    register(Entry("ours:NAME", r"ours:\w+", model, "MIT", 256, 160, "", None, "A test."))
    assert encoders.list()[-1].name == "ours:NAME"
    encoder = load_encoder("ours:small")
    assert (encoder.name, encoder.dim, encoder.license) == ("ours:small", 256, "MIT")
    with pytest.raises(EncoderError, match=r"known are mini, resnet18.*FILE\.onnx, ours:NAME"):
        load_encoder("ours")


@pytest.mark.parametrize("name", ["mini", "timm:x", "a.onnx"])
def test_a_function_takes_no_name_that_means_another_encoder(name):
    with pytest.raises(ConfigError, match="already refers to"):
        register(len, name=name)


def test_a_package_declares_its_encoders(tmp_path, monkeypatch, caplog):
    """An installed distribution with two entry points: a good module and a broken one."""
    (tmp_path / "theirs.py").write_text(
        "import numpy as np\nfrom imgsearch.encoders import register\n"
        "@register(name='theirs', version='3', license='MIT')\n"
        "def encode(pictures):\n    '''Mean colours.'''\n"
        "    return [np.asarray(each).mean((0, 1)) + 1 for each in pictures]\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    about = tmp_path / "theirs-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[imgsearch.encoders]\na = broken\nb = theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._load_plugins.cache_clear()
    try:
        with caplog.at_level("WARNING"):
            entry = encoders.list()[-1]
    finally:
        registry._load_plugins()
    assert (entry.name, entry.license, entry.purpose) == ("theirs@3", "MIT", "Mean colours.")
    assert "encoders of broken cannot be loaded" in caplog.text
    assert load_encoder("theirs").dim == 3
