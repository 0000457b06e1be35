"""A stage of the plan -> its objective, the examples it may see, and what it is validated on.

s1     hidden voxels, report text           every example of the corpus, labels unread
s2     image and report alike, findings     every example
s3     findings, report, matching           the labelled examples
dapt   s1 and s2 without findings           the site's archive
tapt   report text                          the reports of the labelled examples
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from dapt.augment import Augment
from dapt.batches import Batch, Batches, Wanted, once
from dapt.objectives.align import Align
from dapt.objectives.fuse import Fuse
from dapt.objectives.objective import Objective, Together
from dapt.objectives.text import ReportText
from dapt.objectives.volume import MaskedVolume
from dapt.site import CorporaPlan, Stage
from mla_med.corpus import Example, read_about, read_examples, read_settings
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.mla import MLAModel


@dataclass(frozen=True, slots=True)
class Shelf:
    """A corpus, sorted by who may see what."""

    name: str
    settings: Preprocessing | None
    """None: it holds text alone."""
    examination: str
    train: tuple[Example, ...]
    labelled: tuple[Example, ...]
    archive: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def fingerprint(self) -> str:
        digest = sha256()
        for part in (self.train, self.labelled, self.archive, self.held_out):
            lines = (f"{e.id} {e.image is None} {sorted(e.reports.items())}" for e in part)
            digest.update("\n".join(lines).encode())
        return digest.hexdigest()


def read_shelf(name: str, folder: Path, plan: CorporaPlan) -> Shelf:
    """`labelled` and `archive` of the plan hold for the site; of a source everything is labelled."""
    about = read_about(folder)
    train = read_examples(folder, "train")
    labelled, archive = train, train
    if name == "site":
        chosen = sorted(train, key=lambda e: sha256(e.id.encode()).digest())[: plan.labelled or None]
        ids = {e.id for e in chosen}
        labelled = tuple(e for e in train if e.id in ids)
        archive = archive_of(train, plan.archive)
    return Shelf(
        name,
        None if about["preprocessing"] is None else read_settings(folder),
        about["examination"],
        train,
        labelled,
        archive,
        read_examples(folder, "validation"),
    )


def archive_of(train: Sequence[Example], kind: str) -> tuple[Example, ...]:
    images = tuple(replace(e, reports={}) for e in train if e.image is not None)
    texts = tuple(_text_of(e) for e in train if any(e.reports.values()))
    return {"all": tuple(train), "images": images, "texts": texts, "unpaired": images + texts}[kind]


def _text_of(example: Example) -> Example:
    """The report as if nobody knew of whom it is."""
    text = replace(example, id=f"{example.id} text", image=None, present=(), patient="")
    return replace(text, findings=(), boxes_mm={}, parts_mm={})


def objective_of(stage: Stage, model: MLAModel) -> Objective:
    config = model.config
    match stage.kind:
        case "s1":
            return Together(MaskedVolume(config), ReportText())
        case "s2":
            return Align(model, stage.queue)
        case "s3":
            return Fuse(config, stage.match)
        case "dapt":
            align = Align(model, stage.queue, findings=False)
            return Together(MaskedVolume(config, settle=False), ReportText(), align)
    return ReportText()


def wanted_of(stage: Stage) -> Wanted:
    return Wanted(
        images=stage.kind != "tapt",
        texts=True,
        findings=stage.kind in ("s2", "s3"),
        hidden=stage.hidden if stage.kind in ("s1", "dapt") else 0.0,
        augment=Augment(shift=stage.shift),
    )


def examples_of(stage: Stage, shelf: Shelf) -> tuple[Example, ...]:
    if stage.kind == "dapt":
        return shelf.archive
    return shelf.labelled if stage.kind in ("s3", "tapt") else shelf.train


def batches_of(stage: Stage, shelf: Shelf, model: MLAModel, seed: int) -> Batches:
    return Batches(
        examples_of(stage, shelf),
        model.config,
        model.tokenizer,
        shelf.settings,
        wanted_of(stage),
        stage.batch,
        stage.accumulate,
        seed,
    )


def held_out_of(stage: Stage, shelf: Shelf, model: MLAModel, most: int) -> Callable[[], Iterable[Batch]]:
    """The validation split, in batches as large as those of the training: contrast depends on it."""

    def batches() -> Iterable[Batch]:
        examples, wanted = shelf.held_out[:most], wanted_of(stage)
        return once(examples, model.config, model.tokenizer, shelf.settings, wanted, stage.batch)

    return batches
