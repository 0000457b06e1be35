"""A checkpoint, a corpus and a wished latency -> a smaller checkpoint, calibrated, whose card says what was
lost.

Channels are weighed by training studies; which share of them goes is found by measuring; what is left is
taught by the whole model on training studies, and calibrated on held-out ones (compress.py, recovery.py,
finish.py).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dapt.augment import Augment
from dapt.card import calibration_card
from dapt.collate import collate, collate_patches
from dapt.finish import calibrate_on
from dapt.patches import PatchSampler
from dapt.receipts import score_findings
from dapt.recovery import Course, imitate, recover, settle
from mla_med.corpus import Example, read_examples, read_settings
from mla_med.errors import ConfigError
from mla_med.files import write_json
from mla_med.model.checkpoint import Checkpoint, as_stored, load_checkpoint, save_checkpoint
from mla_med.model.compress import Group, Plan, coupled, masked, remove, weigh
from mla_med.model.mla import MLAModel
from mla_med.model.pruning_plan import Point, curve, encode_s, measure, plan_for, ratio, share_of

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the time of all groups, on the curve."""
JUDGED = 64
"""So many held-out studies judge every point of the curve, before recovery."""
FIRST_LESSON = 2
"""After the batches that weigh channels (0) and those that settle the norms (1)."""
PATCH, PATCHES = 10, 12
"""Cells of the finest level along an edge, and how many in a step."""
SETTLED = 12
"""So many batches of training studies tell the norms what is left."""
KEPT = "macro F1"


@dataclass(frozen=True, slots=True)
class Wish:
    latency: float = 0.58
    """Of the encoder, by what it takes now."""
    studies: int = 64
    cubes: int = 1200
    """Steps of hints by cubes, before the steps of whole images."""
    steps: int = 2000
    batch: int = 4
    seed: int = 0
    threads: int = 2
    precision: str = "bf16"
    """Of convolutions and matrix products while teaching: bf16 (half the time where the processor has it) or
    fp32."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What goes, and why as much."""

    share: float
    """Of the time of all groups."""
    plan: Plan
    points: list[Point]
    """The curve that it was chosen from."""


class Lessons:
    """Batches of training studies, the same whenever a number is asked."""

    def __init__(self, corpus: Path, train: tuple[Example, ...], model: MLAModel, wish: Wish):
        self.train, self.model, self.wish = train, model, wish
        self.settings = read_settings(corpus)
        edge = min(PATCH * model.config.cell, *self.settings.shape)
        self.sampler = PatchSampler(train, self.settings, model.config.finding_keys, edge)

    def inputs(self, batch: tuple[Example, ...]) -> dict[str, Any]:
        return collate(batch, self.model, self.settings)

    def draw(self, count: int, part: int) -> Iterator[dict[str, Any]]:
        """Images as they are."""
        rng = self._rng(part)
        for _ in range(max(1, count)):
            yield self.inputs(self._chosen(rng))

    def moved(self, number: int) -> dict[str, Any]:
        """Images moved and changed as in training."""
        rng = self._rng(FIRST_LESSON + number)
        return collate(self._chosen(rng), self.model, self.settings, Augment(self.model.config.cell), rng)

    def patches(self, number: int) -> dict[str, Any]:
        """Around small lesions."""
        rng = self._rng(FIRST_LESSON + number, PATCH)
        return collate_patches(self.sampler, self.settings, Augment(self.model.config.cell), rng, PATCHES)

    def _chosen(self, rng: np.random.Generator) -> tuple[Example, ...]:
        size = min(self.wish.batch, len(self.train))
        return tuple(self.train[int(n)] for n in rng.choice(len(self.train), size, replace=False))

    def _rng(self, *part: int) -> np.random.Generator:
        return np.random.default_rng([self.wish.seed, *part])


def prune_checkpoint(
    source: Path, corpus: Path, out: Path, wish: Wish, progress: Callable[[str], None] = lambda step: None
) -> str:
    """Writes the checkpoint; -> what was lost, in words. Killed and asked again, it goes on: what was chosen
    and learnt lies beside `out` until it is done."""
    torch.set_num_threads(wish.threads)
    torch.manual_seed(wish.seed)
    whole = load_checkpoint(source)
    if whole.model.config.pruned:
        raise ConfigError(f"{source} was pruned before. Prune the whole checkpoint.", code="PRUNED_TWICE")
    train, held_out = read_examples(corpus, "train"), read_examples(corpus, "validation")
    if not train or not held_out:
        raise ConfigError(f"{corpus} has no training or no validation part.", code="NO_EXAMPLES")
    model: MLAModel = whole.model
    lessons = Lessons(corpus, train, model, wish)
    image = lessons.inputs((held_out[0],))["image_BCIJK"]
    groups = coupled(model, image)

    def quality(some: MLAModel) -> dict[str, float]:
        return _quality(some, held_out[:JUDGED])

    def settled(some: MLAModel) -> MLAModel:
        return settle(some, lessons.draw(SETTLED, 1))

    def chosen() -> Choice:
        weigh(groups, model, lessons.draw(wish.studies // wish.batch, 0))
        progress("timing what a channel costs")
        measure(groups, model, image)
        progress("measuring the curve")
        points = curve(model, groups, SHARES, image, lambda some: quality(settled(some)))
        plan = plan_for(model, groups, wish.latency, image)
        return Choice(share_of(groups, plan), plan, points)

    work = out.with_name(f".{out.name}.unfinished")
    choice = _kept(work, _digest_of(wish, whole.weights_sha256, train), chosen)
    smaller = settled(remove(model, groups, choice.plan))
    unrecovered = quality(smaller)

    def course(what: str, steps: int, lr: float) -> Course:
        progress(f"teaching by {what}, {steps} steps")
        return Course(
            lessons.moved,
            steps,
            lr,
            lessons.patches if lessons.sampler.lesions else None,
            wish.precision,
            lambda step, loss: progress(f"{what}: step {step + 1} of {steps}, loss {loss:.2f}"),
            work / f"{what}.safetensors",
        )

    imitate(smaller, model, course("cubes", wish.cubes, 2e-3))
    settled(smaller)
    recover(smaller, model, course("images", wish.steps, 1e-3))
    progress("calibrating")
    smaller = as_stored(smaller)
    calibration, _, examples = calibrate_on(smaller, corpus)
    control = masked(model, groups, choice.plan)
    whole_s, smaller_s, control_s = encode_s([model, smaller, control], image)
    facts = {
        "wish": asdict(wish),
        "share": choice.share,
        "latency": ratio(smaller_s, whole_s),
        "masked_latency": ratio(control_s, whole_s),
        "parameters": [sum(p.numel() for p in one.parameters()) for one in (model, smaller)],
        "whole": quality(model),
        "unrecovered": unrecovered,
        "recovered": quality(smaller),
        "curve": [asdict(point) for point in choice.points],
        "kept": {group.name: group.channels - len(choice.plan.get(group.name, ())) for group in groups},
        "of": {group.name: group.channels for group in groups},
    }
    lost = to_markdown(facts, choice.points, groups, choice.plan)
    card = _card(source, whole, lost) + calibration_card(calibration, examples)
    save_checkpoint(out, smaller, calibration, whole.scope, f"{whole.name}, pruned", whole.version, card)
    write_json(out / "pruned.json", facts)
    shutil.rmtree(work)
    return lost


def _digest_of(wish: Wish, weights_sha256: str, train: tuple[Example, ...]) -> str:
    known = [asdict(wish), weights_sha256, [example.id for example in train]]
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _kept(work: Path, digest: str, chosen: Callable[[], Choice]) -> Choice:
    """What an earlier run chose, if it was asked for the same."""
    path = work / "choice.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("digest") == digest:
        points = [Point(**point | {"quality": _numbers(point["quality"])}) for point in kept["points"]]
        return Choice(kept["share"], {k: tuple(v) for k, v in kept["plan"].items()}, points)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    choice = chosen()
    write_json(path, {"digest": digest, **asdict(choice)})
    return choice


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    """JSON has no NaN."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _quality(model: MLAModel, examples: tuple[Example, ...]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        scores = score_findings(model, examples)
    return {name: value for name, value in scores.items() if not name.startswith("F1 ")}


def _card(source: Path, whole: Checkpoint, lost: str) -> str:
    """That of the whole model, with what was lost in front of its calibration."""
    path = source / "README.md"
    known = path.read_text(encoding="utf-8") if path.is_file() else f"# {whole.name} {whole.version}\n"
    return known.split("\n## Calibration\n")[0].rstrip("\n") + "\n\n" + lost


def to_markdown(facts: dict[str, Any], points: list[Point], groups: list[Group], plan: Plan) -> str:
    names = list(facts["whole"])
    before, after = facts["parameters"]
    wish = facts["wish"]
    lines = [
        "## Pruned",
        "Channels, heads and feed-forward pairs were removed until the encoder took "
        f"{100 * facts['latency']:.0f} % of its time (wished: {100 * wish['latency']:.0f} %); the same "
        f"channels at zero, not removed: {100 * facts['masked_latency']:.0f} %. Parameters: "
        f"{before / 1e6:.2f} M -> {after / 1e6:.2f} M. Recovery: {wish['cubes']} steps of cubes and "
        f"{wish['steps']} of images, {wish['batch']} studies each.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(
            f"| {words} | " + " | ".join(f"{facts[key][name]:.3f}" for name in names) + " |"
            for key, words in (
                ("whole", "whole"),
                ("unrecovered", "pruned, before recovery"),
                ("recovered", "pruned"),
            )
        ),
        "",
        "Curve, with the norms' statistics anew and before recovery:",
        "",
        "| share of time to go | latency | parameters, M | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
        *(
            f"| {p.share:.2f} | {p.latency:.2f} | {p.parameters / 1e6:.2f} | "
            + " | ".join(f"{p.quality[name]:.3f}" for name in names)
            + " |"
            for p in points
        ),
        "",
        "| group | of | kept |",
        "|---|---|---|",
        *(f"| {g.name} | {g.channels} | {g.channels - len(plan.get(g.name, ()))} |" for g in groups),
        "",
    ]
    return "\n".join(lines)
