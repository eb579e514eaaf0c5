"""Weights: found, downloaded over a real server, verified, never executed."""

from __future__ import annotations

import hashlib
import http.server
import multiprocessing
import pickle
import re
import socket
import threading
from pathlib import Path

import pytest
import torch

from imgsearch.encoders import weights
from imgsearch.errors import WeightsError

BODY = bytes(range(256)) * 12_000  # 3 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what `server.answer` says: a body, or a status."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.seen.append(self.path)
        answer = self.server.answer
        if isinstance(answer, int):
            self.send_error(answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setitem(weights.PUBLISHED, "net", SHA)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.answer, running.seen = BODY, []
        monkeypatch.setattr(weights, "SOURCE", f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_download_is_verified_in_full_and_kept(server, tmp_path, capfd):
    """Review 3: the full SHA-256 is compared, not its first digits."""
    path = weights.locate("net", None, tmp_path)
    assert path == tmp_path / "weights" / f"net-{SHA[:8]}.pth"
    assert path.read_bytes() == BODY
    assert "100%" in capfd.readouterr().err
    assert weights.locate("net", None, tmp_path) == path
    assert len(server.seen) == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_every_published_digest_is_a_full_one():
    for digest in weights.PUBLISHED.values():
        assert re.fullmatch("[0-9a-f]{64}", digest)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"x" * len(BODY), f"does not have the SHA-256 {SHA}"),
        (BODY[:1_000_000], f"does not have the SHA-256 {SHA}"),
        (404, r"404.*IMGSEARCH_WEIGHTS.*another machine.*'mini'"),
        (503, "Service Unavailable"),
    ],
)
def test_nothing_but_the_whole_file_reaches_the_cache(server, tmp_path, answer, why):
    server.answer = answer
    with pytest.raises(WeightsError, match=why):
        weights.locate("net", None, tmp_path)
    assert list((tmp_path / "weights").glob("*")) == []
    server.answer = BODY
    assert weights.locate("net", None, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"x"])
def test_a_damaged_cache_is_replaced(server, tmp_path, change):
    path = weights.locate("net", None, tmp_path)
    path.write_bytes(change(BODY))
    assert weights.locate("net", None, tmp_path).read_bytes() == BODY


def test_a_server_that_says_nothing_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(weights, "SOURCE", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WeightsError, match="timed out"):
            weights.locate("resnet50", None, tmp_path)


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "SOURCE", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"refused.*'mini'"):
        weights.locate("resnet50", None, tmp_path)


def test_two_processes_may_download_at_once(server, tmp_path):
    """Without a lock each has a whole file, and one of them stays."""
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=weights.locate, args=("net", None, tmp_path)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    (only,) = (tmp_path / "weights").iterdir()
    assert only.read_bytes() == BODY


def test_a_local_file_wins_and_must_be_there(tmp_path):
    file = tmp_path / "mine.pth"
    with pytest.raises(WeightsError, match=r"no such file.*IMGSEARCH_WEIGHTS"):
        weights.locate("resnet50", str(file), tmp_path)
    file.touch()
    assert weights.locate("resnet50", str(file), tmp_path) == file


# ---------------------------------------------------------------- reading


def test_containers_hold_the_same_weights(tmp_path):
    from safetensors.torch import save_file

    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3), "fc.weight": torch.ones(2)}
    state["bn.num_batches_tracked"] = torch.tensor(5)
    torch.save(state, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors")
    digests = set()
    for name in ("a.pth", "b.pth", "c.safetensors"):
        got = weights.read_state(tmp_path / name)
        assert set(got) == {"a.weight", "a.bias"}
        digests.add(weights.digest(got))
    assert len(digests) == 1
    got["a.bias"][0] += 1
    assert weights.digest(got) not in digests


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path, old):
    file, trace = tmp_path / "evil.pth", tmp_path / "it ran"
    if old:
        file.write_bytes(pickle.dumps(Evil(trace)))
    else:
        torch.save({"a": Evil(trace)}, file)
    with pytest.raises(WeightsError, match="could run code: refused"):
        weights.read_state(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot be read"),
        (b"<html>", "cannot be read|is damaged"),
        ([1, 2], "no state dict"),
        ({"a": 3}, "is not a tensor"),
        ({"a": torch.tensor([1, 2])}, "floats are needed"),
        ({"a": torch.tensor([1.0, float("nan")])}, "NaN"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_state_dict_is_refused(tmp_path, content, why, suffix):
    file = tmp_path / f"bad{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
        why = why if suffix == ".pth" else "cannot be read"
    with pytest.raises(WeightsError, match=why) as caught:
        weights.read_state(file)
    assert caught.value.name == str(file)


def test_truncated_files_are_refused(tmp_path):
    file = tmp_path / "cut.pth"
    torch.save({"a": torch.randn(1000)}, file)
    data = file.read_bytes()
    for part in (10, 500, len(data) // 2, len(data) - 30):
        file.write_bytes(data[:part])
        with pytest.raises(WeightsError, match="cannot be read"):
            weights.read_state(file)


def test_weights_of_another_network_are_named():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {k: v for k, v in network.state_dict().items() if "num" not in k}
    weights.load_state(network, dict(state), "net")
    state["extra"] = state.pop("1.bias")
    with pytest.raises(WeightsError, match=r"1 missing \(1.bias\); 1 not of .* \(extra\)"):
        weights.load_state(network, state, "net")
    state["0.weight"] = torch.zeros(5, 3)
    with pytest.raises(WeightsError, match=r"size mismatch for 0.weight.*another network"):
        weights.load_state(network, state, "net")


def test_indices_of_a_network_are_no_weights():
    network = torch.nn.Linear(3, 2)
    network.register_buffer("index", torch.tensor([1, 0]))
    state = weights.random_state(network, 0)
    assert set(state) == {"weight", "bias"}
    weights.load_state(network, state, "net")
    assert network.index.tolist() == [1, 0]
