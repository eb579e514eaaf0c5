"""Makes ``imgsearch/encoders/mini.safetensors``: ``python -m training.distil``.

The student learns to give, for a small picture, the teacher's features of the same picture
at 224 pixels, centred and reduced to their principal axes. ``training/README.md`` says more.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from imgsearch.encoders import mini
from training import pictures, students, teacher

ROOT = Path(__file__).resolve().parent.parent
NOTICE = (
    "imgsearch mini: MobileNetV2 1.0, inherited and distilled from tf2_mobilenet_v2_1.0_224_ptq "
    "(google-coral/test_data, Apache-2.0). See docs/mini-encoder.md."
)


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says, going on where an earlier run was stopped."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    names = sorted(path.name for path in options.photos.iterdir())
    content = options.teacher.read_bytes() + repr(names).encode()
    options.cache /= hashlib.sha256(content).hexdigest()[:12]
    photographs = pictures.read(options.photos)
    training, held = pictures.split(len(photographs))
    program = torch.export.load(options.teacher)
    run = Run(options, photographs, training, held, program)
    run.train()
    run.write()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; the defaults are what made the bundled file."""
    parser = argparse.ArgumentParser(prog="python -m training.distil", description=__doc__)
    shared = ROOT.parent / "shared"
    add = parser.add_argument
    add("--photos", type=Path, default=shared / "photos-unlabelled", help="folder of JPEG files")
    add("--teacher", type=Path, default=shared / "weights" / "mobilenet_v2.pt2",
        help="exported program: (n, 3, 224, 224) to (n, features)")  # fmt: skip
    add("--output", type=Path, default=ROOT / "imgsearch" / "encoders" / mini.FILE.name)
    add("--log", type=Path, default=ROOT / "training" / "log.csv", help="the curve")
    add("--cache", type=Path, default=ROOT / "build" / "distil",
        help="the teacher's features and the state to resume from")  # fmt: skip
    add("--student", choices=["mini", *students.OTHERS], default="mini")
    add("--from-scratch", action="store_true", help="random weights instead of inherited ones")
    add("--side", type=int, default=mini.PREPROCESSING.crop, help="side of the student's input")
    add("--dim", type=int, default=mini.DIM)
    add("--epochs", type=int, default=4)
    add("--rounds", type=int, default=4,
        help="different crops of each photograph; epochs go through them in turn")  # fmt: skip
    add("--batch", type=int, default=64)
    add("--rate", type=float, default=2e-4, help="highest learning rate")
    add("--likeness", type=float, default=10.0, help="weight of the similarity-matrix loss")
    add("--frozen", type=int, default=5,
        help="layers of an inherited network, from the input on, that stay")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    options.inherits = options.student == "mini" and not options.from_scratch
    return options


class Run:
    """One training, from targets to file."""

    def __init__(self, options, photographs, training, held, program):
        self.options, self.photographs = options, photographs
        self.training, self.held = training, held
        torch.manual_seed(options.seed)
        self.student = students.build(options.student, options.dim)
        self.guide = self.teacher(program)
        mean, axes = self.target_space()
        self.mean, self.axes = mean, axes
        if options.inherits:
            with torch.no_grad():
                self.student.head.weight.copy_(axes.T)
                self.student.head.bias.copy_(-mean @ axes)
            # edges and colours are the same at any size; the first layers cost half the time
            self.student.features[: options.frozen].requires_grad_(False)
        self.student.to(memory_format=torch.channels_last)

    def teacher(self, program: torch.export.ExportedProgram):
        """Give the teacher as a function; where the student inherits, a faster copy of it."""
        original = program.module()
        if not self.options.inherits:
            return original
        teacher.inherit(self.student, program.state_dict)
        network = copy.deepcopy(self.student).to(memory_format=torch.channels_last)
        sample = self.views(self.held[:4], teacher.SIDE)
        with torch.no_grad():
            error = (network.pooled(sample) - original(sample)).abs().max().item()
        if error > 1e-3:
            raise SystemExit(f"the inherited network differs from its teacher by {error:.2g}")
        return network.pooled

    def views(self, numbers, side: int) -> torch.Tensor:
        """Give photographs as an encoder sees them."""
        return pictures.tensor([pictures.centre(self.photographs[i], side) for i in numbers])

    def crops(self, turn: int, side: int):
        """Give the random crops of one round."""
        return pictures.batches(
            self.photographs, self.training, size=self.options.batch, side=side,
            seed=self.options.seed * 1000 + turn,
        )  # fmt: skip

    def target_space(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Find mean and principal axes of the teacher's features of the training photographs."""
        everything = np.concatenate([self.training, self.held])
        chunks = [everything[i : i + 32] for i in range(0, len(everything), 32)]
        views = (self.views(chunk, teacher.SIDE) for chunk in chunks)
        found = self.remember("views", views, len(chunks))
        self.reference = found[len(self.training) :]
        return teacher.principal_axes(found[: len(self.training)], self.options.dim)

    def remember(self, name: str, batches, count: int) -> torch.Tensor:
        """Give the teacher's features of `batches`, from the cache if they lie there."""
        file = self.options.cache / f"{name}.pt"
        if file.is_file():
            return torch.load(file, weights_only=True).float()
        with torch.no_grad():
            parts = [self.guide(x) for x in tqdm(batches, f"teacher: {name}", count, unit="batch")]
        found = torch.cat(parts).half()
        replace(file, lambda path: torch.save(found, path))
        return found.float()

    def targets(self, turn: int) -> torch.Tensor:
        """Give what the student is to say about the crops of one round: (photographs, dim)."""
        options = self.options
        name = f"round-{options.seed}-{options.batch}-{turn}"
        steps = len(self.training) // options.batch
        found = self.remember(name, self.crops(turn, teacher.SIDE), steps)
        return functional.normalize((found - self.mean) @ self.axes)

    def train(self) -> None:
        """Do all epochs that are still to do."""
        options = self.options
        steps = len(self.training) // options.batch
        learnt = [p for p in self.student.parameters() if p.requires_grad]
        decayed, others = ([p for p in learnt if (p.ndim > 1) == yes] for yes in (True, False))
        optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
            lr=options.rate,
        )
        total, warm = max(1, options.epochs * steps), max(1, steps // 2)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / total)),
        )
        state, log = options.cache / f"{options.output.stem}.state.pt", []
        kept = ("student", "inherits", "side", "dim", "epochs", "rounds", "batch", "rate")
        recipe = {name: getattr(options, name) for name in (*kept, "likeness", "frozen", "seed")}
        if state.is_file():
            saved = torch.load(state, weights_only=True)
            if saved["recipe"] != recipe:
                raise SystemExit(f"{state} is of a run with other options; move it away")
            self.student.load_state_dict(saved["student"])
            optimiser.load_state_dict(saved["optimiser"])
            schedule.load_state_dict(saved["schedule"])
            log = saved["log"]
        else:
            log.append({"epoch": 0, "loss": "", **self.judge()})
        for epoch in range(len(log), options.epochs + 1):
            turn = (epoch - 1) % options.rounds
            self.student.train()
            targets, losses = self.targets(turn), []
            bar = tqdm(self.crops(turn, options.side), f"epoch {epoch}/{options.epochs}", steps)
            for step, x in enumerate(bar):
                target = targets[step * len(x) : (step + 1) * len(x)]
                loss = self.loss(self.student(x), target)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(learnt, 1.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.item())
                bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}")
            log.append({"epoch": epoch, "loss": round(float(np.mean(losses)), 5), **self.judge()})
            print(json.dumps(log[-1]), flush=True)
            saved = {
                "student": self.student.state_dict(), "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(), "log": log, "recipe": recipe,
            }  # fmt: skip
            replace(state, lambda path, saved=saved: torch.save(saved, path))
        with options.log.open("w", newline="") as file:
            table = csv.DictWriter(file, log[0].keys(), lineterminator="\n")
            table.writeheader()
            table.writerows(log)

    def loss(self, said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Add cosine distance to the target and difference of the similarity matrices."""
        said = functional.normalize(said)
        cosine = (1 - (said * wanted).sum(1)).mean()
        likeness = (said @ said.T - wanted @ wanted.T).square().mean()
        return cosine + self.options.likeness * likeness

    def judge(self) -> dict[str, float]:
        """Measure agreement with the teacher on photographs that were held out."""
        self.student.eval()
        with torch.no_grad():
            parts = [
                self.student(self.views(self.held[i : i + 32], self.options.side))
                for i in range(0, len(self.held), 32)
            ]
        said = functional.normalize(torch.cat(parts))
        wanted = functional.normalize((self.reference - self.mean) @ self.axes)
        shared, correlation = agreement(wanted.numpy(), said.numpy())
        cosine = float((said * wanted).sum(1).mean())
        return {
            "cosine": round(cosine, 4), "recall_at_10": round(shared, 4),
            "rank_correlation": round(correlation, 4),
        }  # fmt: skip

    def write(self) -> None:
        """Write the weights in fp16, and print their digest for `imgsearch.encoders.mini`."""
        state = {
            name: value.detach().half().contiguous()
            for name, value in self.student.state_dict().items()
            if value.is_floating_point()
        }
        content = save(state, {"notice": NOTICE})
        replace(self.options.output, lambda path: path.write_bytes(content))
        print(f'{self.options.output}\nSHA256 = "{hashlib.sha256(content).hexdigest()}"')


def agreement(a: np.ndarray, b: np.ndarray, k: int = 10) -> tuple[float, float]:
    """How far two encoders agree about who is near whom.

    Parameters
    ----------
    a, b : numpy.ndarray
        L2-normalised (n, any) vectors of the same n photographs; `a` is the reference.
    k : int
        Neighbours that count.

    Returns
    -------
    (float, float)
        The share of each photograph's `k` nearest in `a` that are among its `k` nearest in
        `b`, and the rank correlation (Spearman) of its similarities to the others; both
        averaged over photographs.
    """
    others = ~np.eye(len(a), dtype=bool)
    ranks = []
    for vectors in (a, b):
        similarity = (vectors @ vectors.T)[others].reshape(len(a), -1)
        ranks.append((-similarity).argsort(1, kind="stable").argsort(1))
    x, y = ranks
    shared = ((x < k) & (y < k)).sum(1) / k
    correlation = [np.corrcoef(p, q)[0, 1] for p, q in zip(x, y, strict=True)]
    return float(shared.mean()), float(np.mean(correlation))


def replace(file: Path, write) -> None:
    """Write a file so that a kill leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    write(part)
    part.replace(file)


if __name__ == "__main__":
    main()
