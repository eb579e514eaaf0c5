"""Weights: found, downloaded over a real server, verified, never executed."""

from __future__ import annotations

import hashlib
import http.server
import multiprocessing
import pickle
import threading
from pathlib import Path

import pytest
import torch

from imgsearch.encoders import weights
from imgsearch.errors import WeightsError

BODY = bytes(range(256)) * 12_000  # 3 MB
SHA = hashlib.sha256(BODY).hexdigest()
NAME = f"net-{SHA[:8]}.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serves `BODY`; `plan` says what goes wrong with one request after another."""

    def __init__(self):
        self.plan, self.seen = [], []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{NAME}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.seen.append(asked)
        what = server.plan.pop(0) if server.plan else "good"
        if isinstance(what, int):
            self.send_error(what)
            return
        body = b"other" * 1000 if what == "wrong" else BODY
        start = int(asked[6:-1]) if asked and what != "whole" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + 1_000_000 if what == "cut" else len(body)
        self.wfile.write(body[start:end])


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def folder(path: Path) -> set[str]:
    return {each.name for each in path.iterdir() if not each.name.endswith(".lock")}


def test_download_verified_and_kept(server, tmp_path, capfd):
    target = tmp_path / "cache" / NAME
    assert weights.fetch(server.url, target) == target
    assert target.read_bytes() == BODY
    assert "100%" in capfd.readouterr().err
    weights.fetch(server.url, target)
    assert len(server.seen) == 1
    assert folder(target.parent) == {NAME}


def test_a_transfer_that_breaks_off_is_continued(server, tmp_path):
    server.plan = ["cut", "cut"]
    weights.fetch(server.url, tmp_path / NAME, progress=False)
    assert server.seen == [None, "bytes=1000000-", "bytes=2000000-"]
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_later_call_continues(server, tmp_path):
    part = tmp_path / f"{NAME}.part"
    server.plan = ["cut", 404]
    with pytest.raises(WeightsError, match=r"404.*IMGSEARCH_WEIGHTS.*cache.*'mini'"):
        weights.fetch(server.url, tmp_path / NAME, progress=False)
    assert folder(tmp_path) == {part.name}
    assert part.read_bytes() == BODY[:1_000_000]
    weights.fetch(server.url, tmp_path / NAME, progress=False)
    assert folder(tmp_path) == {NAME}
    assert (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize("left", [BODY, BODY + b"more", b"of another file" * 9, BODY[:5000]])
@pytest.mark.parametrize("plan", [[], ["whole"]])
def test_whatever_lies_there_the_file_becomes_whole(server, tmp_path, left, plan):
    (tmp_path / f"{NAME}.part").write_bytes(left)
    server.plan = plan
    weights.fetch(server.url, tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == BODY


def test_wrong_bytes_never_reach_the_cache(server, tmp_path):
    server.plan = ["wrong"]
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.fetch(server.url, tmp_path / NAME, progress=False)
    assert folder(tmp_path) == set()


def test_a_damaged_cache_is_replaced(server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY[:-1])
    weights.fetch(server.url, tmp_path / NAME, progress=False)
    assert (tmp_path / NAME).read_bytes() == BODY


def test_server_errors_and_no_network(server, tmp_path):
    server.plan = [503, 503, 503, 503]
    with pytest.raises(WeightsError, match="Service Unavailable"):
        weights.fetch(server.url, tmp_path / NAME, progress=False)
    server.plan = [503]
    weights.fetch(server.url, tmp_path / NAME, progress=False)
    with pytest.raises(WeightsError, match=r"refused.*'mini'"):
        weights.locate("resnet50", home=tmp_path, source="http://127.0.0.1:9", progress=False)


def _fetch(url, target):
    weights.fetch(url, target, progress=False)


def test_two_processes_download_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fetch, args=(server.url, tmp_path / NAME)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert [each.exitcode for each in both] == [0, 0]
    assert len(server.seen) == 1
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_local_file_wins_and_must_be_there(tmp_path):
    file = tmp_path / "mine.pth"
    with pytest.raises(WeightsError, match=r"no such file.*IMGSEARCH_WEIGHTS"):
        weights.locate("resnet50", file=file, home=tmp_path)
    file.touch()
    assert weights.locate("resnet50", file=file, home=tmp_path) == file


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
        ({"a": 3}, "is no tensor"),
        ({"a": torch.tensor([1, 2])}, "floats are wanted"),
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


def test_fit_names_what_does_not_fit():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {k: v for k, v in network.state_dict().items() if "num" not in k}
    weights.fit(network, dict(state), "net")
    state["0.weight"] = torch.zeros(5, 3)
    state["extra"] = state.pop("1.bias")
    with pytest.raises(WeightsError) as caught:
        weights.fit(network, state, "net")
    for part in ("1 missing (1.bias)", "not of this network (extra)", "(5, 3) instead of (2, 3)"):
        assert part in str(caught.value)
