"""A second site of phantoms: pre-training on its archive before few labels, beside equal steps without it.

One experiment for the rows dapt, ppt and annotation. A small model learns the first site (the start of both
arms). Then, on the second site, whose scanner, prevalence, language and style are others:

    with       dapt and tapt on the archive, unlabelled; then s3 on 64 labelled studies
    without    s3 on the same 64 studies, for as many steps as all of these
    fewer      as `with`, on a part of the 64

F1 is macro over the findings that anybody has, at cuts that say each as often as it is there among the
labelled studies (the same rule for all). BLEU-4 is of greedy drafts. Every training is on disk and is not
repeated; a row asks for what it needs.
"""

# N examples, F findings

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evaluation.claims.row import Job
from evaluation.claims.training import macro_f1
from evaluation.claims.world import two_sites
from mla_med.corpus import Example
from mla_med.files import write_text

if TYPE_CHECKING:
    from dapt.site import Stage
    from dapt.stages import Shelf
    from mla_med.model.mla import MLAModel

DRAWN = 100
"""Times that chance is tried."""


class SecondSite:
    """One seed of the experiment."""

    kept = "second_site"
    """Where trainings lie, of all rows that need them."""

    def __init__(self, job: Job):
        self.job, self.sizes = job, job.sizes
        self.shelves = self.read_shelves()
        self.folder = job.work.parent / self.kept / job.folder.name
        self.language = min(self.shelves["site"].held_out[0].reports)

    def read_shelves(self) -> dict[str, Shelf]:
        from dapt.site import CorporaPlan
        from dapt.stages import read_shelf

        source, site = two_sites(self.job)
        plan = CorporaPlan(site=str(site), source=str(source), labelled=self.sizes["labelled"])
        return {"source": read_shelf("source", source, plan), "site": read_shelf("site", site, plan)}

    def first_site(self) -> MLAModel:
        """What knows the first site, and nothing of the second."""
        from dapt.adapt import new_model
        from dapt.site import ModelPlan
        from mla_med.model.checkpoint import read_model

        folder = self.folder / "source"
        if not (folder / "done.json").is_file():
            sizes = self.sizes
            plan = ModelPlan(size="tiny", vocabulary=sizes["vocabulary"], positions=sizes["positions"])
            model = new_model(plan, self.shelves, self.job.seed)
            self._train(model, "s3", "source", sizes["steps_source"], folder, self.shelves["source"].train)
        return read_model(folder / "model")

    @property
    def steps_with(self) -> int:
        return self.sizes["steps_archive"] + self.sizes["steps_labelled"]

    def start(self) -> Path:
        """The first site is known; what the labelled studies of the second write often has tokens."""
        folder = self.folder / "start"
        if not (folder / "done.json").is_file():
            from dapt.adapt import write_model
            from dapt.extend import extend

            model = self.first_site()
            labelled = self.shelves["site"].labelled
            texts = [text for e in labelled for text in (*e.reports.values(), *e.contexts.values())]
            made = extend(model, texts, self.sizes["extend"])
            write_model(model, folder / "model")
            write_text(folder / "done.json", json.dumps({"tokens added": len(made)}) + "\n")
        return folder

    def adapted(self) -> Path:
        """And the archive of the second has been seen."""
        folder = self.folder / "archive"
        if not (folder / "done.json").is_file():
            from mla_med.model.checkpoint import read_model

            steps = self.sizes["steps_archive"]
            texts = self.sizes.get("steps_texts", steps // 4)
            shelf = self.shelves["site"]
            first = self.folder / "archive-1"
            if not (first / "done.json").is_file():
                model = read_model(self.start() / "model")
                self._train(model, "dapt", "site", steps - texts, first, shelf.archive)
            model = read_model(first / "model")
            self._train(model, "tapt", "site", texts, folder, shelf.archive)
        return folder

    def labelled(self, name: str, start: Path, steps: int, examples: Sequence[Example]) -> dict[str, Any]:
        """s3 from a start; -> its curve of F1 over the steps."""
        folder = self.folder / name
        if not (folder / "done.json").is_file():
            from mla_med.model.checkpoint import read_model

            self._train(read_model(start / "model"), "s3", "site", steps, folder, examples)
        return json.loads((folder / "done.json").read_text(encoding="utf-8"))

    def _train(
        self, model: Any, kind: str, corpus: str, steps: int, folder: Path, examples: Sequence[Example]
    ) -> None:
        from dapt.adapt import write_model
        from dapt.batches import Batches
        from dapt.loop import LOG, STATE, Loop
        from dapt.stages import objective_of, wanted_of

        stage = self._stage(kind, corpus, steps)
        shelf = self.shelves[corpus]
        torch.manual_seed(self.job.seed)
        objective = objective_of(stage, model)

        def validate(model: Any) -> dict[str, float]:
            return {"F1": self.f1(model, examples)} if kind == "s3" and corpus == "site" else {}

        def tell(row: dict[str, Any]) -> None:
            if "validation F1" in row:
                self.job.say(f"{folder.name}: step {row['step']}/{steps}, F1 {row['validation F1']:.1f} %")

        batches = Batches(
            examples,
            model.config,
            model.tokenizer,
            shelf.settings,
            wanted_of(stage),
            stage.batch,
            stage.accumulate,
            self.job.seed,
        )
        loop = Loop(model, objective, stage.loop, folder, tell)
        model = loop.run(batches, None, validate)
        write_model(model, folder / "model")
        # from its log, which has the steps before a kill too
        rows = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
        curve = [[row["step"], row["validation F1"]] for row in rows if "validation F1" in row]
        whole = {"steps": steps, "curve": curve, "seconds": loop.progress.seconds, "examples": len(examples)}
        write_text(folder / "done.json", json.dumps(whole) + "\n")
        (folder / STATE).unlink(missing_ok=True)

    def _stage(self, kind: str, corpus: str, steps: int) -> Stage:
        from dapt.loop import LoopConfig
        from dapt.site import Stage

        every = self.sizes["every"]
        config = LoopConfig(
            steps=steps,
            lr=self.sizes["lr"],
            ema=self.sizes["ema"],
            seed=self.job.seed,
            log_every=every,
            validate_every=every,
            save_every=every,
            precision=self.sizes.get("precision", "no"),
            device="cpu",
        )
        return Stage(
            kind,
            corpus,
            batch=self.sizes["batch"],
            accumulate=1,
            queue=self.sizes["queue"],
            match=0.0,
            shift=1,
            loop=config,
        )

    def f1(self, model: Any, known: Sequence[Example]) -> float:
        """On the validation studies, in per cent."""
        from dapt.receipts import predict

        with torch.no_grad():
            said = predict(model, self.shelves["site"].held_out[: self.sizes["tested"]])
        return _f1(said.probability_NF, said.present_NF, _prevalence(known, model.config.finding_keys))

    def chance(self) -> float:
        """The F1 of numbers that were drawn, in per cent: the floor of every arm."""
        from mla_med.model.checkpoint import read_model

        shelf, rng = self.shelves["site"], np.random.default_rng(self.job.seed)
        keys = read_model(self.start() / "model").config.finding_keys
        tested = shelf.held_out[: self.sizes["tested"]]
        truth = np.array([[any(f.code == key for f in e.findings) for key in keys] for e in tested])
        share = _prevalence(shelf.labelled, keys)
        return float(np.mean([_f1(rng.random(truth.shape), truth, share) for _ in range(DRAWN)]))

    def bleu(self, name: str) -> float:
        """BLEU-4 of the drafts of a model, 0 to 1."""
        from dapt.judge import judge
        from dapt.site import Measured as Receipts
        from mla_med.model.checkpoint import read_model

        path = self.folder / name / "bleu.json"
        if not path.is_file():
            model = read_model(self.folder / name / "model")
            tokens = min(self.sizes["positions"] - 1, self.sizes["draft_tokens"])
            measured = Receipts(self.sizes["drafts"], self.sizes["drafts"], tokens, 8)
            sums, _ = judge(model, self.shelves["site"], measured, _Bleu())
            one = sums["BLEU-4"]
            write_text(path, json.dumps({"BLEU-4": _value(one), "signature": one.signature}) + "\n")
        return float(json.loads(path.read_text(encoding="utf-8"))["BLEU-4"])

    def floors(self) -> dict[str, float]:
        """BLEU-4 of what looks at no image: reports of the labelled studies, by how they are drawn."""
        from dapt.judge import told_of
        from dapt.site import Measured as Receipts
        from evaluation.floors import floor_texts

        told = told_of(self.shelves["site"], Receipts(self.sizes["drafts"], self.sizes["drafts"], 1, 1))
        references = [e.reports[self.language] for e in told]
        source = [text for e in self.shelves["site"].labelled if (text := e.reports.get(self.language))]
        texts = floor_texts(references, source, lambda text: (), is_train=True)
        scores = {name: _Bleu().texts(references, drafts, self.language) for name, drafts in texts.items()}
        return {name: _value(score["BLEU-4"]) for name, score in scores.items()}

    # The arms

    def with_archive(self) -> dict[str, Any]:
        labelled = self.shelves["site"].labelled
        return self.labelled("with", self.adapted(), self.sizes["steps_labelled"], labelled)

    def without(self) -> dict[str, Any]:
        return self.labelled("without", self.start(), self.steps_with, self.shelves["site"].labelled)

    def written(self, words: str, name: str, done: Mapping[str, Any]) -> dict[str, float]:
        """What an arm's model drafts and finds after its last step."""
        arm = {
            "BLEU-4": self.bleu(name),
            "F1": done["curve"][-1][1],
            "steps on the site": float(self.steps_with),
            "seconds of the labelled steps": done["seconds"],
        }
        self.job.say(f"{words}: BLEU-4 {arm['BLEU-4']:.3f}, F1 {arm['F1']:.1f} %")
        return arm


class _Bleu:
    """The scorer of `dapt.judge`."""

    def texts(self, references: Sequence[str], drafts: Sequence[str], language: str) -> dict[str, Any]:
        from dapt.judge import Sums
        from evaluation.text import text_scores

        protocol = {"zh": "zh"}.get(language, "coco")
        score = text_scores(references, drafts, protocol, only=("BLEU-4",))["BLEU-4"]
        return {"BLEU-4": Sums(score.sums.each_RT, score.sums.value_of, True, score.signature)}


def _value(sums: Any) -> float:
    return float(sums.value_of(sums.each_RT.sum(0, keepdims=True))[0])


def _f1(probability_NF: np.ndarray, truth_NF: np.ndarray, share_F: np.ndarray) -> float:
    """Macro, in per cent, at cuts that say each finding of a share of the studies."""
    cuts = [np.quantile(probability_NF[:, f], 1 - share) for f, share in enumerate(share_F)]
    return macro_f1(probability_NF > np.array(cuts), truth_NF)


def _prevalence(examples: Sequence[Example], keys: Sequence[str]) -> np.ndarray:
    there = np.array([[any(f.code == key for f in e.findings) for key in keys] for e in examples])
    return there.mean(0)


def best_of(curve: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(the best F1, the first step that has it)."""
    best = max(f1 for _, f1 in curve)
    return best, next(step for step, f1 in curve if f1 >= best)


def steps_to(curve: Sequence[Sequence[float]], f1: float) -> float:
    """The first step with at least this F1; NaN where none is."""
    return next((float(step) for step, value in curve if value >= f1), math.nan)


def facts_of(site: SecondSite) -> dict[str, Any]:
    shelf = site.shelves["site"]
    return {
        "archive": len(shelf.archive),
        "labelled": len(shelf.labelled),
        "tested": min(len(shelf.held_out), site.sizes["tested"]),
        "language": site.language,
        "steps": {k.removeprefix("steps_"): n for k, n in site.sizes.items() if k.startswith("steps_")},
    }


def sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {
            **{"labelled": 8, "vocabulary": 300, "extend": 8, "positions": 64, "draft_tokens": 24},
            **{"lr": 3e-3, "ema": 0.8, "batch": 4, "queue": 0, "every": 2, "tested": 12},
            **{"drafts": 4, "shares": [0.42]},
            **{"steps_source": 4, "steps_archive": 4, "steps_labelled": 4},
        }
    return {
        **{"phantoms_a": 240, "phantoms_b": 480, "labelled": 64},
        **{"vocabulary": 1024, "extend": 1024, "positions": 512, "draft_tokens": 480},
        **{"lr": 3e-3, "ema": 0.98, "batch": 8, "queue": 0, "every": 40, "tested": 160, "drafts": 60},
        **{"steps_source": 600, "steps_archive": 800, "steps_labelled": 400, "shares": [0.42, 0.2]},
    }
