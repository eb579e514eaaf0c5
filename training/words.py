"""Makes ``imgsearch/encoders/mini_words.npz``: ``python -m training.words``.

Each word gets the direction among `mini`'s image vectors that best predicts the probability
that the teacher gives to the ImageNet classes that the word names. ``training/README.md`` says
more.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from imgsearch.encoders import load_encoder, mini_words
from imgsearch.io import atomic
from training import pictures, wordnet
from training.distil import ROOT

ANIMALS = 398
"""The first classes of ImageNet are the animals."""

BROAD = 150
"""A kind of more classes than this is too general to be offered for an unknown word."""

ALIASES = {
    "potted plant": ["flowerpot"],
    "pot plant": ["flowerpot"],
    "houseplant": ["flowerpot"],
    "cow": ["cattle"],
    "bike": ["bicycle"],
    "motorbike": ["motorcycle", "motor scooter"],
    "train": ["bullet train", "electric locomotive", "steam locomotive", "passenger car"],
    "tv": ["television", "monitor"],
    "tv monitor": ["television", "monitor"],
    "screen": ["television", "monitor", "crt screen"],
    "beach": ["seashore", "sandbar"],
    "geese": ["goose"],
    "mice": ["mouse"],
}
"""Common words for what ImageNet has under other names only, and irregular plurals."""


def main(arguments: list[str] | None = None) -> None:
    """Observe, fit and write as the command line says."""
    options = parse(arguments)
    nouns = wordnet.read(wordnet.download(options.cache / "wordnet"))
    with np.load(options.classifier) as classifier:
        labels = classifier["labels"].tolist()[1:]
        weight, bias = classifier["weight"][1:], classifier["bias"][1:]
    names, members = vocabulary(labels, nouns, coverage=options.coverage)
    vectors, features = observed(options)
    logits = (features @ weight.T + bias) / options.temperature
    directions = fit(vectors, logits, members, options.penalty)
    offers = related(names, members, labels, nouns)
    content = packed(names, directions, offers)
    with atomic(options.output) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    print(f"{len(names)} names of {len(members)} directions, {len(content):,} bytes")
    print(f"{len(offers)} other nouns with names to offer")
    print(f'{options.output}\nSHA256 = "{digest}"')


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; the defaults are what made the bundled file."""
    parser = argparse.ArgumentParser(prog="python -m training.words", description=__doc__)
    shared = ROOT.parent / "shared"
    add = parser.add_argument
    add("--photos", type=Path, default=shared / "photos-unlabelled", help="folder of JPEG files")
    add("--teacher", type=Path, default=shared / "weights" / "mobilenet_v2.onnx",
        help="ONNX file with its card: features of the teacher")  # fmt: skip
    add("--classifier", type=Path, default=shared / "weights" / "mobilenet_v2_classifier.npz",
        help="weight, bias and labels of the teacher's last layer")  # fmt: skip
    add("--output", type=Path, default=mini_words.FILE)
    add("--cache", type=Path, default=ROOT / "build" / "words", help="WordNet and features")
    add("--rounds", type=int, default=2, help="random crops of each photograph")
    add("--coverage", type=float, default=0.01,
        help="share of the kinds of a thing that ImageNet must have")  # fmt: skip
    add("--temperature", type=float, default=1.5, help="of the teacher's probabilities")
    add("--penalty", type=float, default=1e-4, help="of the ridge regression, per observation")
    return parser.parse_args(arguments)


# ---------------------------------------------------------------- words


def vocabulary(
    labels: Sequence[str], nouns: wordnet.Nouns, *, coverage: float
) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """Give names with the number of their direction, and the classes of each direction.

    A name is a lemma of a class, or of one of its hypernyms if that is the first or second
    sense of the lemma. Hypernyms of more than half of the classes say nothing ("artifact"),
    and those of which ImageNet has hardly any kind would promise too much: both are left out,
    and with them all kinds of people, of whom it knows bridegroom, ballplayer and diver.
    """
    synsets = synsets_of(labels, nouns)
    below = classes_below(synsets, nouns)
    kinds, person = dict.fromkeys(below, 0), nouns.senses["person"][0]
    for synset in nouns.lemmas.keys() - _parents(nouns):
        for ancestor in _ancestors(synset, nouns) & below.keys():
            kinds[ancestor] += 1
    kept = {
        synset: classes
        for synset, classes in below.items()
        if synset in synsets
        or (
            2 * len(classes) <= len(labels)
            and len(classes) >= coverage * kinds[synset]
            and person not in _ancestors(synset, nouns)
        )
    }
    classes_of: dict[str, tuple[int, ...]] = {}
    for lemma in {lemma.lower() for synset in kept for lemma in nouns.lemmas[synset]}:
        for rank, synset in enumerate(nouns.senses[lemma]):
            if synset in synsets or (rank < 2 and synset in kept):
                classes_of[_name(lemma)] = kept[synset]
                break
    for number, label in enumerate(labels):
        for lemma in label.split(", "):
            classes_of.setdefault(_name(lemma), (number,))
    for alias, targets in ALIASES.items():
        classes_of[alias] = tuple(sorted({c for t in targets for c in classes_of[t]}))
    members = sorted(set(classes_of.values()))
    row = {classes: number for number, classes in enumerate(members)}
    return {name: row[classes_of[name]] for name in sorted(classes_of)}, members


def related(
    names: dict[str, int],
    members: Sequence[Sequence[int]],
    labels: Sequence[str],
    nouns: wordnet.Nouns,
) -> dict[str, str]:
    """Known names to offer for common nouns that are not known, for the first two senses.

    They are the kinds of thing that the noun names ("truck" for "lorry"); else the classes that
    are kinds of it ("daisy" for "flower"); else, for animals, known animals in the definition:
    WordNet has "kitten" below "young mammal" only, but defines it as a "young domestic cat".
    """
    synsets = synsets_of(labels, nouns)
    below = classes_below(synsets, nouns)
    known: dict[str, str] = {}
    for synset, classes in below.items():
        for name in map(_name, nouns.lemmas[synset]):
            if len(classes) <= BROAD and name in names and members[names[name]] == classes:
                known.setdefault(synset, name)
    animal = nouns.senses["animal"][0]

    def nearest(synset: str) -> list[str]:
        found, level = [], [synset]
        for _ in range(5):
            found += [known[one] for one in level if one in known]
            level = [parent for one in level for parent in nouns.hypernyms[one]]
        classes = below.get(synset, ())
        if not found and len(classes) <= BROAD:
            found = [known[synsets[number]] for number in classes if synsets[number] in known]
        if not found and animal in _ancestors(synset, nouns):
            words = mini_words.tokens(nouns.glosses[synset].partition(";")[0])
            found = [
                word
                for word in words
                if word in names
                and len(members[names[word]]) <= BROAD
                and max(members[names[word]]) < ANIMALS
            ]
        return list(dict.fromkeys(found))[:3]

    common = {lemma for lemmas in nouns.lemmas.values() for lemma in lemmas}
    offers = {}
    for word in sorted(common - names.keys()):
        if word.isascii() and word.isalpha() and word.islower():
            found = [name for synset in nouns.senses[word][:2] for name in nearest(synset)]
            if found:
                offers[word] = ", ".join(dict.fromkeys(found))
    return offers


def classes_below(synsets: Sequence[str], nouns: wordnet.Nouns) -> dict[str, tuple[int, ...]]:
    """Give the classes below each synset, from the synsets of the classes."""
    below: dict[str, list[int]] = {}
    for number, synset in enumerate(synsets):
        for ancestor in _ancestors(synset, nouns):
            below.setdefault(ancestor, []).append(number)
    return {synset: tuple(classes) for synset, classes in below.items()}


def synsets_of(labels: Sequence[str], nouns: wordnet.Nouns) -> list[str]:
    """Find the synset of each class by the lemmas that its label lists."""
    animal = nouns.senses["animal"][0]
    found = []
    for number, label in enumerate(labels):
        own = set(label.split(", "))
        candidates = {s for lemma in own for s in nouns.senses.get(lemma.lower(), ())}

        def fits(synset: str, own=own, number=number) -> tuple[bool, int, int]:
            lemmas = set(nouns.lemmas[synset])
            is_animal = animal in _ancestors(synset, nouns)
            return is_animal == (number < ANIMALS), len(own & lemmas), -len(own ^ lemmas)

        best = max(sorted(candidates), key=fits, default=None)
        if best is None or not fits(best)[1]:
            raise SystemExit(f"WordNet has no synset for class {number}, {label!r}")
        found.append(best)
    return found


def _ancestors(synset: str, nouns: wordnet.Nouns) -> set[str]:
    found, left = set(), [synset]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += nouns.hypernyms[one]
    return found


def _parents(nouns: wordnet.Nouns) -> set[str]:
    return {parent for parents in nouns.hypernyms.values() for parent in parents}


def _name(lemma: str) -> str:
    return " ".join(mini_words.tokens(lemma))


# ---------------------------------------------------------------- directions


def observed(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of `mini` (n, 256) and features of the teacher (n, 1280) of the same views."""
    cache = options.cache / f"observed-{options.rounds}.npz"
    if not cache.is_file():
        photographs, count = pictures.read(options.photos), 10_000
        encoders = [
            load_encoder(name, device="cpu", precision="fp32").optimized_for(count)
            for name in ("mini", str(options.teacher))
        ]
        sides = [encoder.preprocessing.size[0] for encoder in encoders]
        pairs = zip(*(views(photographs, side, options.rounds) for side in sides), strict=True)
        found = [
            [encoder.features(batch) for encoder, batch in zip(encoders, pair, strict=True)]
            for pair in tqdm(pairs, "observed", unit="batch")
        ]
        vectors, features = (np.concatenate(part) for part in zip(*found, strict=True))
        with atomic(cache) as file:
            np.savez(file, vectors=vectors, features=features.astype(np.float16))
    with np.load(cache) as archive:
        vectors, features = archive["vectors"], archive["features"].astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), features


def views(photographs: list, side: int, rounds: int) -> Iterable[np.ndarray]:
    """Every photograph as an encoder sees it, and random crops: uint8 (n, side, side, 3)."""
    for start in range(0, len(photographs), 64):
        part = photographs[start : start + 64]
        yield np.stack([pictures.centre(picture, side) for picture in part])
    numbers = np.arange(len(photographs))
    for seed in range(rounds):
        for batch in pictures.batches(photographs, numbers, size=64, side=side, seed=seed):
            yield ((batch + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def fit(
    vectors: np.ndarray, logits: np.ndarray, members: Sequence[Sequence[int]], penalty: float
) -> np.ndarray:
    """Ridge regression of the probability of each set of classes on the vectors: (sets, dim)."""
    targets = np.stack([probability(logits, classes) ** 0.5 for classes in members], axis=1)
    x = vectors - vectors.mean(axis=0)
    gram = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ (targets - targets.mean(axis=0)) / len(x)).T


def probability(logits: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Probability that the teacher gives to a set of classes, (n,).

    Things compete with things only: a photograph of a dog on a sofa shows a sofa as well.
    """
    others = slice(ANIMALS, None) if min(classes) >= ANIMALS else slice(None)
    own, every = (torch.from_numpy(logits[:, some]).logsumexp(1) for some in (classes, others))
    return (own - every).exp().numpy()


def packed(names: dict[str, int], directions: np.ndarray, offers: dict[str, str]) -> bytes:
    """Give the content of the file: directions rounded to 8 bits, names, their rows, offers."""
    different = sorted(set(offers.values()))
    number = {offer: i for i, offer in enumerate(different)}
    scaled = directions / np.abs(directions).max(axis=1, keepdims=True)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        directions=np.rint(127 * scaled).astype(np.int8),
        names=_lines(names),
        rows=np.array(list(names.values()), np.int16),
        unknown=_lines(offers),
        offers=_lines(different),
        offered=np.array([number[offer] for offer in offers.values()], np.int16),
    )
    return buffer.getvalue()


def _lines(texts: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\n".join(texts).encode("ascii"), np.uint8)


if __name__ == "__main__":
    main()
