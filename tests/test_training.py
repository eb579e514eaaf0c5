"""The recipe of the bundled encoder runs, resumes, and gives a file that loads."""

from __future__ import annotations

import csv
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from imgsearch.encoders import mini, mini_words
from training import distil, pictures, students, teacher, wordnet, words


class TinyTeacher(nn.Module):
    """Colours and edges of a picture of any size."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))

    def forward(self, x):
        return self.body(x).flatten(1)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(1)
    for i in range(40):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((50, 40)).save(folder / "photos" / f"{i:02}.jpg")
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(
        TinyTeacher().eval(), (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, folder / "teacher.pt2")
    return folder


def arguments(material, folder, *more):
    return [
        *("--photos", str(material / "photos"), "--teacher", str(material / "teacher.pt2")),
        *("--output", str(folder / "out.safetensors"), "--log", str(folder / "log.csv")),
        *("--cache", str(folder / "cache"), "--student", "squeeze", "--side", "32"),
        *("--dim", "8", "--batch", "12", "--epochs", "3", "--rounds", "2", *more),
    ]


def test_learns_resumes_and_comes_out_the_same(material, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    distil.main(arguments(material, whole))
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((whole / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[3]["loss"]) < float(rows[1]["loss"])

    judge, calls = distil.Run.judge, []

    def killed(run):
        calls.append(run)
        if len(calls) == 4:  # at the end of the third epoch, after two were kept
            raise KeyboardInterrupt
        return judge(run)

    with monkeypatch.context() as patch:
        patch.setattr(distil.Run, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            distil.main(arguments(material, broken))
    assert not (broken / "out.safetensors").exists()
    distil.main(arguments(material, broken))
    resumed = list(csv.DictReader((broken / "log.csv").open()))
    assert [row["epoch"] for row in resumed] == ["0", "1", "2", "3"]
    assert resumed[:3] == rows[:3]
    one, other = (load_file(folder / "out.safetensors") for folder in (whole, broken))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-2, atol=1e-3)

    network = students.build("squeeze", 8).eval()
    network.load_state_dict({k: v.float() for k, v in one.items()}, strict=False)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
    digest = hashlib.sha256((whole / "out.safetensors").read_bytes()).hexdigest()
    assert f'SHA256 = "{digest}"' in printed


def test_refuses_to_resume_another_recipe(material, tmp_path):
    distil.main(arguments(material, tmp_path, "--epochs", "1"))
    with pytest.raises(SystemExit, match="other options"):
        distil.main(arguments(material, tmp_path, "--epochs", "1", "--rate", "1e-5"))


def test_names_an_empty_folder(tmp_path):
    with pytest.raises(SystemExit, match="holds 0 photographs"):
        pictures.read(tmp_path)


def test_same_crops_whatever_their_side():
    rng = np.random.default_rng(0)
    photographs = [
        Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((256, 192))
        for _ in range(16)
    ]
    large, small = (
        torch.cat(list(pictures.batches(photographs, np.arange(16), size=4, side=side, seed=3)))
        for side in (128, 64)
    )
    shrunk = nn.functional.avg_pool2d(large, 2)
    assert (shrunk - small).abs().mean() < 0.02
    assert (shrunk - small.roll(1, 0)).abs().mean() > 0.1


def test_held_out_photographs_are_not_trained_on():
    training, held = pictures.split(3553)
    assert len(held) == 355
    assert sorted([*training, *held]) == list(range(3553))


def conv(inside, outside, kernel, stride=1, groups=1, act=True):
    """MobileNetV2's unit as TensorFlow pads it, with a batch norm."""
    pad = (0, 1, 0, 1) if stride == 2 else (kernel // 2,) * 4
    return nn.Sequential(
        nn.ZeroPad2d(pad),
        nn.Conv2d(inside, outside, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU6() if act else nn.Identity(),
    )


class Block(nn.Module):
    def __init__(self, inside, outside, expansion, stride):
        super().__init__()
        hidden = inside * expansion
        units = [conv(inside, hidden, 1)] if expansion > 1 else []
        units += [conv(hidden, hidden, 3, stride, hidden), conv(hidden, outside, 1, act=False)]
        self.body, self.skip = nn.Sequential(*units), stride == 1 and inside == outside

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


def test_inherits_tensorflow_weights_exactly():
    torch.manual_seed(0)
    layers, channels = [conv(3, 32, 3, 2)], 32
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    for expansion, outside, blocks, stride in [*table, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for block in range(blocks):
            layers.append(Block(channels, outside, expansion, stride if block == 0 else 1))
            channels = outside
    original = nn.Sequential(*layers, conv(channels, 1280, 1))
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.normal_(module.bias, 0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.3, 0.6)
    original.eval()
    student = mini.build()
    teacher.inherit(student, original.state_dict())
    with torch.no_grad():
        x = torch.randn(2, 3, 96, 96)
        wanted = original(x).mean((2, 3))
        assert wanted.std() > 1e-3
        torch.testing.assert_close(student.pooled(x), wanted, rtol=1e-4, atol=1e-5)


def test_agreement_of_neighbours():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert distil.agreement(vectors, vectors) == pytest.approx((1, 1))
    shared, correlation = distil.agreement(vectors, rng.permutation(vectors))
    assert shared < 0.35
    assert abs(correlation) < 0.1


NOUN_FILES = {
    "data.noun": """  1 This line is a part of the licence.
00000001 03 n 01 entity 0 000 | everything
00000002 05 n 02 animal 0 beast 0 001 @ 00000001 n 0000 | lives
00000003 05 n 01 dog 0 001 @ 00000002 n 0000 | barks
00000004 05 n 01 beagle 0 001 @ 00000003 n 0000 | a dog
00000005 05 n 02 pug 0 pug-dog 0 001 @ 00000003 n 0000 | a dog
00000006 06 n 01 crane 0 001 @ 00000001 n 0000 | lifts
00000007 05 n 01 crane 1 001 @ 00000002 n 0000 | flies
00000008 18 n 01 person 0 001 @ 00000001 n 0000 | thinks
00000009 18 n 01 diver 0 001 @ 00000008 n 0000 | dives
00000010 18 n 01 scuba_diver 0 001 @ 00000009 n 0000 | dives with air
""",
    "index.noun": """  1 This line is a part of the licence.
animal n 1 1 @ 1 1 00000002
beagle n 1 1 @ 1 0 00000004
beast n 1 1 @ 1 0 00000002
crane n 2 1 @ 2 0 00000006 00000007
diver n 1 1 @ 1 0 00000009
dog n 1 1 @ 1 1 00000003
entity n 1 0 1 0 00000001
person n 1 1 @ 1 1 00000008
pug n 1 1 @ 1 0 00000005
pug-dog n 1 1 @ 1 0 00000005
scuba_diver n 1 1 @ 1 0 00000010
""",
}


def test_words_are_classes_and_their_kinds_but_not_people(tmp_path, monkeypatch):
    for name, text in NOUN_FILES.items():
        (tmp_path / name).write_text(text)
    nouns = wordnet.read(tmp_path)
    monkeypatch.setattr(words, "ANIMALS", 3)
    monkeypatch.setattr(words, "ALIASES", {"hound": ["beagle", "pug"]})
    labels = ["beagle", "pug, pug-dog", "crane", "crane", "scuba diver"]
    names, members = words.vocabulary(labels, nouns, coverage=0.01)
    assert {name: members[row] for name, row in names.items()} == {
        "beagle": (0,), "pug": (1,), "pug dog": (1,), "crane": (3,), "scuba diver": (4,),
        "dog": (0, 1), "hound": (0, 1),
    }  # fmt: skip
    few, _ = words.vocabulary(labels, nouns, coverage=1.1)
    assert "dog" not in few
    with pytest.raises(SystemExit, match="no synset for class 0, 'unicorn'"):
        words.vocabulary(["unicorn"], nouns, coverage=0.01)


def test_nouns_that_are_not_known_are_given_known_ones(tmp_path, monkeypatch):
    more = {
        "data.noun": """00000011 05 n 01 puppy 0 001 @ 00000003 n 0000 | a young dog
00000012 05 n 01 kitten 0 001 @ 00000002 n 0000 | young beagle; not a pug
00000013 06 n 01 spur 0 001 @ 00000001 n 0000 | hurts a beagle
00000014 05 n 01 Rex 0 001 @ 00000003 n 0000 | a king
""",
        "index.noun": """kitten n 1 1 @ 1 0 00000012
puppy n 2 1 @ 2 0 00000011 00000008
rex n 1 1 @ 1 0 00000014
spur n 1 1 @ 1 0 00000013
""",
    }
    for name, text in NOUN_FILES.items():
        (tmp_path / name).write_text(text + more[name])
    nouns = wordnet.read(tmp_path)
    monkeypatch.setattr(words, "ANIMALS", 3)
    monkeypatch.setattr(words, "BROAD", 2)
    monkeypatch.setattr(words, "ALIASES", {})
    labels = ["beagle", "pug, pug-dog", "crane", "crane", "scuba diver"]
    names, members = words.vocabulary(labels, nouns, coverage=0.01)
    assert words.related(names, members, labels, nouns) == {
        "puppy": "dog, scuba diver", "kitten": "beagle",
        "person": "scuba diver", "diver": "scuba diver",
    }  # fmt: skip


def test_directions_rank_by_the_teacher_s_probability_among_things():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    logits = np.zeros((400, words.ANIMALS + 4))
    logits[:, 0] = 50  # an animal that hides every thing
    logits[:, words.ANIMALS] = 4 * vectors[:, 3]
    (direction,) = words.fit(vectors, logits, [(words.ANIMALS,)], 1e-4)
    assert direction.argmax() == 3
    assert direction[3] / np.linalg.norm(direction) > 0.95


def test_packed_words_are_read_as_they_were(tmp_path, monkeypatch):
    directions = np.random.default_rng(0).standard_normal((2, 8))
    offers = {"kitten": "cat", "puppy": "dog, cat"}
    content = words.packed({"cat": 1, "tom cat": 1, "dog": 0}, directions, offers)
    (tmp_path / "words.npz").write_bytes(content)
    monkeypatch.setattr(mini_words, "SHA256", hashlib.sha256(content).hexdigest())
    read = mini_words.Words.load(tmp_path / "words.npz")
    expected = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(read.encode(["dogs", "tom cat"]), expected, atol=0.01)
    assert read.offers == offers
