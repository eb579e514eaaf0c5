"""Any function of a list of pictures is an encoder, and what it returns is checked."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest

from imgsearch.encoders import from_callable, load_encoder, register, registry
from imgsearch.errors import ConfigError, EncoderError
from imgsearch.pipeline import Embedded, Pipeline
from tests.encoders.test_base import noise


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """Leave the registry as it was."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def colours(pictures):
    """Mean colours."""
    return np.array([np.asarray(each).mean((0, 1)) + 1 for each in pictures])


def test_a_function_is_an_encoder():
    encoder = from_callable(colours, name="colours", version="2", license="MIT")
    assert encoder.describe() == {
        "name": "colours@2", "dim": 3, "fingerprint": encoder.fingerprint, "license": "MIT",
        "backend": "python",
    }  # fmt: skip
    pictures = [noise(seed=1), noise(40, 90, seed=2)]
    vectors, wanted = encoder.encode(pictures), colours(pictures)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(
        vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6
    )
    assert encoder.encode([]).shape == (0, 3)
    assert encoder.optimized_for(10**6) is encoder
    assert not encoder.text


def test_name_and_version_are_the_identity():
    first = from_callable(colours)
    assert first.name == f"{__name__}.colours@0"
    assert from_callable(colours).fingerprint == first.fingerprint
    others = [
        from_callable(colours, version="1"),
        from_callable(colours, name="mine"),
        from_callable(colours, size=100),
    ]
    assert len({each.fingerprint for each in (first, *others)}) == 4


def test_a_registered_function_is_found_by_name():
    @register(name="mine", version="2")
    def mine(pictures):
        return colours(pictures)

    encoder = load_encoder("mine")
    assert encoder.name == "mine@2"
    assert load_encoder("mine@2") is load_encoder("mine") is load_encoder(mine) is encoder
    with pytest.raises(EncoderError, match=r"known are .*mine@2.*version='1'"):
        load_encoder("mine@1")
    register(colours, name="mine", version="3")
    assert load_encoder("mine").name == "mine@3"
    with pytest.raises(EncoderError, match=r"mine@2: is unknown"):
        load_encoder("mine@2")


def test_a_function_that_was_used_is_known_in_the_session():
    encoder = load_encoder(colours)
    assert load_encoder(encoder.name) is encoder
    with pytest.raises(ConfigError, match="is a function"):
        load_encoder(colours, weights="random:1")


def test_a_large_picture_is_reduced_and_keeps_its_shape():
    seen = []

    def remember(pictures):
        seen.extend((each.mode, each.size) for each in pictures)
        return colours(pictures)

    encoder = from_callable(remember, name="remember", size=200)
    seen.clear()
    encoder.encode([noise(500, 250), noise(90, 70), noise(2000, 1)])
    assert seen == [("RGB", (200, 100)), ("RGB", (90, 70)), ("RGB", (200, 1))]


@pytest.mark.parametrize("function", [lambda pictures: pictures, partial(colours)])
def test_what_has_no_name_of_its_own_needs_one(function):
    with pytest.raises(ConfigError, match=r"from_callable\(function, name='mine', version='1'\)"):
        from_callable(function)


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "a@b"}, {"version": 1}, {"name": "a\0"}])
def test_names_and_versions_are_checked(wrong):
    with pytest.raises(ConfigError, match="must be text"):
        from_callable(colours, **wrong)


@pytest.mark.parametrize(
    ("returned", "why"),
    [
        (lambda n: None, r"array of shape \(\) for 2 pictures"),
        (lambda n: ["a"] * n, "could not convert string"),
        (lambda n: np.ones(n), r"array of shape \(2,\) for 2 pictures; it must be \(2, dim\)"),
        (lambda n: np.ones((n + 1, 4)), r"shape \(3, 4\)"),
        (lambda n: np.ones((n, 4, 4)), r"shape \(2, 4, 4\)"),
        (lambda n: np.ones((n, 0)), r"shape \(2, 0\)"),
        (lambda n: [[1, 2], [1]], "the function failed"),
        (lambda n: 1 / 0, "the function failed: division by zero"),
    ],
)
def test_what_a_function_returns_is_checked(returned, why):
    with pytest.raises(EncoderError, match=why):
        from_callable(lambda pictures: returned(len(pictures)), name="wrong")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e300])
def test_vectors_without_meaning_are_an_error(value):
    bad = False
    encoder = from_callable(lambda p: np.full((len(p), 2), value if bad else 1.0), name="bad")
    bad = True
    with pytest.raises(EncoderError, match="zero or not finite"):
        encoder.encode([noise()])


def test_another_number_of_dimensions_later_is_an_error():
    dim = 2
    encoder = from_callable(lambda pictures: np.ones((len(pictures), dim)), name="changing")
    dim = 3
    with pytest.raises(EncoderError, match=r"shape \(1, 3\) for 1 pictures; it must be \(1, 2\)"):
        encoder.encode([noise()])


def test_the_error_of_a_function_is_the_cause():
    error, bad = KeyError("a key"), False

    def failing(pictures):
        if bad:
            raise error
        return colours(pictures)

    pipeline = Pipeline(from_callable(failing, name="failing"), workers=1)
    bad = True
    with pytest.raises(EncoderError, match="'a key'") as caught:
        pipeline([noise()])
    assert caught.value.__cause__ is error


def test_calls_do_not_overlap():
    inside = most = 0

    def slow(pictures):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return colours(pictures)

    pipeline = Pipeline(from_callable(slow, name="slow"), workers=2)
    results = []
    threads = [
        threading.Thread(target=lambda: results.extend(pipeline([noise(seed=1), noise(9, 9)])))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (most, len(results)) == (1, 8)
    assert all(isinstance(each, Embedded) for each in results)
