"""Corpus -> trained MLAModel: a short domain-adaptive stage on report text, then the report task.

One process on CPU or GPU; resumable: after a kill it goes on from the last saved epoch, with the
same batches in the same order. (Stages before and beside these: `mla-med adapt`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dapt.deepen import deepen
from dapt.finer import halve_voxels, is_half
from dapt.growth import stages_of
from dapt.state import digest_of
from dapt.tell import tell
from dapt.tokenizer import train_tokenizer
from dapt.train_config import TrainConfig
from dapt.trainer import Log, Trainer
from dapt.widen import widen
from mla_med.corpus import Example, load_channels, read_about, read_examples, read_settings
from mla_med.errors import CheckpointError
from mla_med.imaging.transforms import Preprocessing
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import ModalConfig, default, findings_of
from mla_med.model.image_encoder import read_backbone
from mla_med.model.mla import MLAModel
from mla_med.report.schema import schema_of

SHOWN = 4
"""Images that tell a new stage what its voxels look like."""
VOCABULARY = 2048
"""Words of reports and requests in both languages."""
POSITIONS = 1024
"""The longest report of 26 findings takes half of them."""


def pretrain(
    corpus: Path,
    out: Path,
    config: TrainConfig | None = None,
    model_config: ModalConfig | None = None,
    log: Log | None = None,
    validate: Callable[[MLAModel, tuple[Example, ...]], dict[str, float]] | None = None,
    start: Path | None = None,
    limit: int | None = None,
    image_encoder: Path | None = None,
    rich: Sequence[Path] = (),
    backbone_weights: Path | None = None,
) -> MLAModel:
    """Trains on `corpus` and returns the model with averaged weights, on the CPU, in eval mode.

    out: state to resume from and log.jsonl. `validate` scores the model on the validation
    split after each epoch; its numbers go to the log. `start`: a checkpoint whose weights and tokenizer
    are gone on with, instead of a new model. `image_encoder`: a checkpoint whose image encoder a
    new model begins with. `limit`: so many examples of the train split, its first. `rich`: corpora whose
    train splits are learnt from as well. `backbone_weights`: a file of weights that a new model's MONAI
    network begins with.
    """
    config = config or TrainConfig()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    train, held_out = read_examples(corpus, "train")[:limit], read_examples(corpus, "validation")
    train += tuple(example for each in rich for example in read_examples(each, "train"))
    settings, examination = read_settings(corpus), read_about(corpus)["examination"]
    if start is not None:
        begun = load_checkpoint(start).model
        model = _fitting(begun, start, settings, examination, train)
        model = widen(model, config.widths) if config.widths else model
        model = deepen(model, config.units) if config.units else model
        model = tell(model, config.hessian) if config.hessian else model
    else:
        model_config = model_config or default(
            findings=findings_of(schema_of(examination)),
            fusion_type=config.fusion_type,
            channels=settings.channels,
            image_dim=settings.shape,
            hessian=config.hessian,
            **stages_of(settings, config.widths, config.units, config.backbone),
            vocab_size=VOCABULARY,
            decoder={"n_positions": POSITIONS, "attn_pdrop": 0.0},
        )
        model_config.preprocessing = settings.to_dict()
        model = MLAModel(model_config)
        texts = [text for e in train for each in (e.reports, e.contexts) for text in each.values()]
        model.tokenizer = train_tokenizer(texts, model_config.vocab_size)
        if image_encoder is not None:
            seeing = load_checkpoint(image_encoder).model
            seeing = _fitting(seeing, image_encoder, settings, examination, train)
            model.image_encoder.load_state_dict(seeing.image_encoder.state_dict())
        if backbone_weights is not None:
            read_backbone(model.image_encoder, backbone_weights)
        begun = model
    begun_with = digest_of(begun, (f"{e.id} {e.image and e.image.name}" for e in train))
    trainer = Trainer(model, config, out, log or (lambda row: None), begun_with)
    trainer.adapt_text(train)
    trainer.find_lesions(train, held_out, settings)
    trainer.learn(train, held_out, settings, validate)
    model.load_state_dict(trainer.average)
    return model.cpu().eval()


def _fitting(
    model: MLAModel, folder: Path, settings: Preprocessing, examination: str, train: tuple[Example, ...]
) -> MLAModel:
    """The model of a folder, where it looks for the same findings and reads the same images, or those in
    voxels of twice the size: then with a stage more (finer.py)."""
    if is_half(settings, Preprocessing.from_dict(model.config.preprocessing)):
        images = [load_channels(example, settings)[0] for example in train[:SHOWN]]
        model = halve_voxels(model, torch.stack(images))
    check_fits(model, folder, settings, examination)
    return model


def check_fits(model: MLAModel, folder: Path, settings: Preprocessing, examination: str) -> None:
    """CheckpointError where the model of a folder cannot read a corpus."""
    reads = Preprocessing.from_dict(model.config.preprocessing)
    if reads != settings or model.config.finding_keys != tuple(schema_of(examination)):
        raise CheckpointError(
            f"The model of {folder} reads other images or looks for other findings than this corpus holds. "
            f"Make the corpus with its preprocessing (--spacing {reads.spacing_mm:g}), or start with a new "
            "model.",
            code="CHECKPOINT_DIFFERS",
        )
