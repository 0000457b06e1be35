"""site.toml -> a model adapted to a site, with a receipt after each stage and a control beside it.

    OUT/plan.json                       what was asked for
    OUT/seed-0/start/                   the model before anything was learnt
    OUT/seed-0/shared/1-s1-source/      stages on the source, those of chain and control
    OUT/seed-0/adapted/1-dapt-site/     the chain on the site
    OUT/seed-0/control/1-s3-site/       the same steps of s3 alone
    OUT/seed-0/checkpoint/              the end of the chain, calibrated, for `mla-med draft`
    OUT/receipts.json  receipts.html    every receipt, and chain beside control

A stage's folder holds log.jsonl, receipt.json, model/ and heads/ when it is done, and its state until then. A
stage that is done is not run again; one that was killed goes on from its last state. Several processes
(`accelerate launch`) train together, and the first of them measures and writes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from dapt.deliver import deliver_once
from dapt.extend import extend
from dapt.judge import Referee, compare, told_of
from dapt.loop import BEST, LOG, STATE, Loop, LoopConfig, Taught, losses_over
from dapt.objectives.objective import Objective, Together
from dapt.page import to_html
from dapt.report import receipt_of
from dapt.site import CorporaPlan, Measured, ModelPlan, SitePlan, Stage
from dapt.stages import Shelf, batches_of, held_out_of, objective_of, read_shelf
from dapt.tokenizer import train_tokenizer
from dapt.two_sites import make_site
from mla_med.errors import CheckpointError, ConfigError
from mla_med.files import write_text
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.checkpoint import read_model
from mla_med.model.config import base, default, findings_of, small, tiny
from mla_med.model.mla import MLAModel
from mla_med.report.schema import schema_of

Tell = Callable[[dict[str, Any]], None]
RECEIPT, MODEL, HEADS, CHECKPOINT = "receipt.json", "model", "heads", "checkpoint"
SIZES = {"tiny": tiny, "default": default, "small": small, "base": base}
QUICK = 30
"""Phantoms of each site."""


@dataclass(frozen=True, slots=True)
class Link:
    """A stage that is done, or the start."""

    folder: Path
    fingerprint: str
    """Of everything that it came from."""
    learnt: tuple[tuple[Stage, Path], ...] = ()
    """Every stage on the way here, with its folder."""


def adapt(plan: SitePlan, tell: Tell | None = None, referee: Referee | None = None) -> Path:
    """Runs what is missing of the plan; -> the folder with receipts.html."""
    out, say = Path(plan.out), tell or (lambda row: None)
    shelves = {
        name: read_shelf(name, Path(folder), plan.corpora)
        for name, folder in (("source", plan.corpora.source), ("site", plan.corpora.site))
        if folder
    }
    if plan.control and not told_of(shelves["site"], plan.measured):
        raise ConfigError(
            "No validation study of the site has both an image and a report, so nothing can be compared with "
            "a control. Leave control out, or make the corpus with such studies."
        )
    chain = _Chain(plan, shelves, say)
    if chain.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "plan.json", json.dumps(asdict(plan), indent=1) + "\n")
    ends: dict[str, list[Path]] = {"adapted": [], "control": []}
    for seed in plan.seeds:
        begun = chain.run(seed, "shared", plan.shared, chain.start(seed))
        begun = chain.extend(seed, begun)
        adapted = chain.run(seed, "adapted", plan.adapting, begun)
        ends["adapted"].append(adapted.folder / MODEL)
        chain.deliver(seed, adapted)
        if plan.control:
            control = chain.run(seed, "control", plan.controlling, begun)
            ends["control"].append(control.folder / MODEL)
    if chain.is_main:
        compared = []
        if plan.control:
            compared = _rounded(
                compare(ends["adapted"], ends["control"], shelves["site"], plan.measured, referee)
            )
        write_receipts(plan, compared)
    chain.wait()
    return out


class _Chain:
    def __init__(self, plan: SitePlan, shelves: Mapping[str, Shelf], tell: Tell):
        self.plan, self.shelves = plan, shelves
        self.out = Path(plan.out)
        cpu = all(stage.loop.device == "cpu" for stage in plan.stages)
        self.processes = PartialState(cpu=cpu)
        self.tell: Tell = tell if self.is_main else lambda row: None

    @property
    def is_main(self) -> bool:
        return self.processes.is_main_process

    def wait(self) -> None:
        self.processes.wait_for_everyone()

    def start(self, seed: int) -> Link:
        """The model of the plan, before anything is learnt."""
        plan, folder = self.plan.model, self.out / f"seed-{seed}" / "start"
        parts = [asdict(plan) | {"extend": 0}, seed, *(s.fingerprint for s in self.shelves.values())]
        if plan.start:
            parts.append(_digest_of(Path(plan.start)))
        link = Link(folder, _digest(parts))

        def make() -> MLAModel:
            if plan.start:
                model = read_model(Path(plan.start))
                _check_fits(model, self.shelves["site"], plan.start)
                return model
            return new_model(plan, self.shelves, seed)

        self._once(link, make, {"name": "start", "arm": "shared", "seed": seed, "steps": 0})
        return link

    def extend(self, seed: int, begun: Link) -> Link:
        """Tokens for the site's words, of chain and control alike, so that they are measured alike."""
        most = self.plan.model.extend
        if not most:
            return begun
        folder = self.out / f"seed-{seed}" / "extended"
        link = Link(folder, _digest([begun.fingerprint, most]), begun.learnt)

        def make() -> MLAModel:
            model = read_model(begun.folder / MODEL)
            site = self.shelves["site"]
            texts = [t for e in (*site.archive, *site.labelled) for t in e.reports.values()]
            made = extend(model, texts, most)
            self.tell({"stage": "tokens", "seed": seed, "added": len(made)})
            return model

        self._once(link, make, {"name": "tokens", "arm": "shared", "seed": seed, "steps": 0})
        return link

    def run(self, seed: int, arm: str, stages: Sequence[Stage], begun: Link) -> Link:
        link = begun
        for n, stage in enumerate(stages, 1):
            folder = self.out / f"seed-{seed}" / arm / f"{n}-{stage.name}"
            link = self._stage(seed, arm, stage, folder, link)
        return link

    def _stage(self, seed: int, arm: str, stage: Stage, folder: Path, before: Link) -> Link:
        shelf = self.shelves[stage.corpus]
        fingerprint = _digest([before.fingerprint, asdict(stage), seed, shelf.fingerprint])
        link = Link(folder, fingerprint, (*before.learnt, (stage, folder)))
        facts = {"name": stage.name, "arm": arm, "seed": seed, "kind": stage.kind, "corpus": stage.corpus}
        if _is_done(link):
            self.tell({"stage": stage.name, "arm": arm, "seed": seed, "skipped": True})
            return link

        def say(row: dict[str, Any]) -> None:
            self.tell({"stage": stage.name, "arm": arm, "seed": seed, **row})

        model = read_model(before.folder / MODEL)
        torch.manual_seed(int(fingerprint[:12], 16))
        objective = objective_of(stage, model)
        _take_heads(objective, [where for _, where in before.learnt])
        config = replace(stage.loop, seed=seed)
        loop = Loop(model, objective, config, folder, say)
        held_out = held_out_of(stage, shelf, model, self.plan.measured.examples)
        loop.run(batches_of(stage, shelf, model, seed), held_out)
        weights = loop.whole()
        if self.is_main:
            own = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
            write_model(model, folder / MODEL, own)
            _write_heads(objective, folder / HEADS, weights)
        progress, device = asdict(loop.progress), loop.accelerator.device
        del loop
        if self.is_main:
            facts |= {"steps": progress["step"], "progress": progress}
            self._write_receipt(link, read_model(folder / MODEL).to(device), facts)
            for name in (STATE, BEST):
                (folder / name).unlink(missing_ok=True)
        self.wait()
        return link

    def deliver(self, seed: int, link: Link) -> None:
        """The end of the chain as a checkpoint, or why there is none."""
        if self.is_main:
            out = self.out / f"seed-{seed}" / CHECKPOINT
            words = ", ".join(stage.name for stage, _ in link.learnt)
            model = read_model(link.folder / MODEL)
            why_not = deliver_once(model, self.shelves["site"], out, words, link.fingerprint)
            self.tell({"stage": CHECKPOINT, "seed": seed, "folder": str(out), "why_not": why_not})
        self.wait()

    def _once(self, link: Link, make: Callable[[], MLAModel], facts: dict[str, Any]) -> None:
        if not _is_done(link) and self.is_main:
            model = make()
            write_model(model, link.folder / MODEL)
            self._write_receipt(link, read_model(link.folder / MODEL), facts)
        self.wait()

    def _write_receipt(self, link: Link, model: MLAModel, facts: dict[str, Any]) -> None:
        began = time.perf_counter()
        measured = {
            name: receipt_of(model, shelf, self.plan.measured) for name, shelf in self.shelves.items()
        }
        receipt = {
            **facts,
            "fingerprint": link.fingerprint,
            "measured": measured,
            "learnt": self._learnt(link, model),
            "receipt_s": round(time.perf_counter() - began, 1),
        }
        write_text(link.folder / RECEIPT, json.dumps(_rounded(receipt), indent=1) + "\n")
        self.tell({"stage": facts["name"], "arm": facts["arm"], "seed": facts["seed"], "receipt": receipt})

    def _learnt(self, link: Link, model: MLAModel) -> dict[str, dict[str, float]]:
        """By stage on the way here, its validation loss now and when it ended: what was forgotten."""
        rows: dict[str, dict[str, float]] = {}
        for stage, folder in link.learnt:
            objective = objective_of(stage, model)
            _take_heads(objective, [folder], all_of=True)
            taught = Taught(model, objective.to(model.device)).eval()
            held_out = held_out_of(stage, self.shelves[stage.corpus], model, self.plan.measured.examples)
            with torch.no_grad():
                now = losses_over(taught, taught, held_out(), model.device)["loss"]
            name = f"{folder.parent.name}/{folder.name}"
            then = now
            if folder != link.folder:
                then = json.loads((folder / RECEIPT).read_text())["learnt"][name]["now"]
            rows[name] = {"then": then, "now": now, "forgotten": now - then}
        return rows


# Models and heads on disk


def new_model(plan: ModelPlan, shelves: Mapping[str, Shelf], seed: int) -> MLAModel:
    """Of the images and findings of the first corpus; its tokenizer has read that train split alone."""
    shelf = shelves.get("source", shelves["site"])
    torch.manual_seed(seed)
    texts = [t for e in shelf.train for part in (e.reports, e.contexts) for t in part.values()]
    tokenizer = train_tokenizer(texts, plan.vocabulary)
    settings = shelf.settings or Preprocessing()
    sizes: dict[str, Any] = {"n_positions": plan.positions, "attn_pdrop": 0.0}
    if plan.size != "default":
        like = SIZES[plan.size]().decoder
        sizes = {name: getattr(like, name) for name in ("n_layer", "n_embd", "n_head", "n_inner")} | sizes
    config = SIZES[plan.size](
        findings=findings_of(schema_of(shelf.examination)),
        fusion_type=plan.fusion_type,
        channels=settings.channels,
        image_dim=settings.shape,
        vocab_size=max(plan.vocabulary, len(tokenizer)),
        decoder=sizes,
    )
    config.preprocessing = settings.to_dict()
    model = MLAModel(config)
    model.tokenizer = tokenizer
    return model.eval()


def write_model(model: MLAModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """The directory, whole or not at all, in single precision: the next stage goes on with these numbers."""
    part = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    disable_progress_bar()
    model.save_pretrained(part, state_dict=weights or model.state_dict())
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def _check_fits(model: MLAModel, shelf: Shelf, start: str) -> None:
    reads = Preprocessing.from_dict(model.config.preprocessing)
    if shelf.settings not in (None, reads) or not set(model.config.finding_keys) & set(
        schema_of(shelf.examination)
    ):
        raise CheckpointError(
            f"The model of {start} reads other images, or looks for other findings, than the site's corpus "
            f"holds. Make it with the model's preprocessing (--spacing {reads.spacing_mm:g}), or start with "
            "a new model.",
            code="CHECKPOINT_DIFFERS",
        )


def _parts(objective: Objective) -> list[Objective]:
    if isinstance(objective, Together):
        return [part for part in objective.parts if isinstance(part, Objective)]
    return [objective]


def _write_heads(objective: Objective, folder: Path, weights: dict[str, Tensor]) -> None:
    """What belongs to the objective, a file for each part of it: another objective can go on with one."""
    folder.mkdir(exist_ok=True)
    for n, part in enumerate(_parts(objective)):
        prefix = f"objective.parts.{n}." if isinstance(objective, Together) else "objective."
        own = {k.removeprefix(prefix): v.contiguous() for k, v in weights.items() if k.startswith(prefix)}
        own = {k: v for k, v in own.items() if not k.startswith(part.passing)}
        if own:
            save_file(own, folder / f"{type(part).__name__}.safetensors")


def _take_heads(objective: Objective, folders: Sequence[Path], all_of: bool = False) -> None:
    """The newest head of its kind on the way here. `all_of`: the earlier pairs in its queue too."""
    for part in _parts(objective):
        for folder in reversed(folders):
            path = folder / HEADS / f"{type(part).__name__}.safetensors"
            if path.is_file():
                own = dict(part.named_parameters() if not all_of else part.state_dict())
                kept = {k: v for k, v in load_file(path).items() if k in own and v.shape == own[k].shape}
                part.load_state_dict(kept, strict=False)
                break


def _is_done(link: Link) -> bool:
    path = link.folder / RECEIPT
    if not path.is_file():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["fingerprint"] != link.fingerprint:
        raise ConfigError(
            f"{link.folder} was made from another plan or other data. Choose another `out`, or delete the "
            "folder and those after it.",
            code="STAGE_DIFFERS",
        )
    return True


def _digest(parts: Sequence[Any]) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest_of(folder: Path) -> str:
    weights = folder / "model.safetensors"
    return sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        # JSON has no NaN
        return float(f"{value:.8g}") if np.isfinite(value) else None
    return value


def write_receipts(plan: SitePlan, compared: list[dict[str, Any]]) -> None:
    """receipts.json and receipts.html, from what is on disk."""
    out = Path(plan.out)
    receipts = []
    arms = {"shared": plan.shared, "adapted": plan.adapting}
    if plan.control:
        arms["control"] = plan.controlling
    for seed in plan.seeds:
        top = out / f"seed-{seed}"
        of = {arm: [top / arm / f"{n}-{s.name}" for n, s in enumerate(some, 1)] for arm, some in arms.items()}
        site = [*of["adapted"], *of.get("control", [])]
        folders = [top / "start", *of["shared"], top / "extended", *site]
        for folder in folders:
            if (folder / RECEIPT).is_file():
                receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
                receipt["folder"] = str(folder.relative_to(out))
                receipts.append(receipt | {"log": _log_of(folder)})
    whole = {"plan": json.loads((out / "plan.json").read_text()), "control": compared, "receipts": receipts}
    write_text(out / "receipts.json", json.dumps(whole, indent=1) + "\n")
    write_text(out / "receipts.html", to_html(whole))


def _log_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# The whole chain in two minutes


def quick_plan(out: Path, control: bool = False, seeds: Sequence[int] = (0,), n: int = QUICK) -> SitePlan:
    """A tiny model on phantoms of two sites, made here: shows that everything runs, and proves nothing."""
    source = make_site(out / "corpora" / "source", "a", n)
    site = make_site(out / "corpora" / "site", "b", n)
    loop = LoopConfig(steps=12, lr=3e-3, log_every=2, validate_every=6, save_every=6, ema=0.9, device="cpu")
    stages = [
        Stage(kind, corpus, batch=4, accumulate=1, shift=1, loop=replace(loop, steps=steps))
        for kind, corpus, steps in (
            ("s1", "source", 12),
            ("s2", "source", 12),
            ("s3", "source", 24),
            ("dapt", "site", 12),
            ("tapt", "site", 12),
            ("s3", "site", 24),
        )
    ]
    return SitePlan(
        out=str(out),
        corpora=CorporaPlan(site=str(site), source=str(source), labelled=8),
        model=ModelPlan(size="tiny", vocabulary=768, positions=512, extend=128),
        stages=tuple(stages),
        seeds=tuple(seeds),
        control=control,
        measured=Measured(examples=20, drafts=8, tokens=64, batch=8),
    )
