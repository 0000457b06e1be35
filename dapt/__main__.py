"""`python -m dapt --examination brain_mr`: phantoms -> corpus -> trained, calibrated checkpoint. The one
documented command; killed, it goes on where it was."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dapt.corpus import PREPROCESSING, prepare_corpus, settings_of
from dapt.finer import is_half
from dapt.finish import train_checkpoint
from dapt.growth import begun, grown
from dapt.train import check_fits
from dapt.train_config import TrainConfig
from mla_med.corpus import read_settings
from mla_med.errors import ConfigError, MlaMedError, OutputError
from mla_med.imaging.grid import Preprocessing
from mla_med.memory import keep_freed
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import BACKBONES, FUSION_TYPES
from mla_med.model.image_encoder import MonaiResNet, read_backbone
from mla_med.phantom.cohort import CohortConfig, make_cohort


def main() -> int:
    options = _parser().parse_args()
    keep_freed()
    began = time.perf_counter()
    work = options.work or Path("runs") / options.examination
    out = options.out or work / "checkpoint"
    usual = 0 if options.start else TrainConfig().rounds
    try:
        options.spacing = options.spacing or _spacing_of(options)
        fusion = _fusion_of(options)
        cohort = CohortConfig(
            n=options.n,
            seed=options.seed,
            examination=options.examination,
            form="truth",
            spacing_mm=options.spacing,
            workers=options.workers,
        )
        training = TrainConfig(
            text_epochs=0 if options.start else TrainConfig().text_epochs,
            rounds=usual if options.rounds is None else options.rounds,
            epochs=options.epochs,
            batch=options.batch,
            patches=options.patches,
            lr=options.lr,
            fusion_type=fusion,
            widths=tuple(options.widths),
            units=tuple(options.units),
            hessian=tuple(options.hessian),
            backbone=options.backbone,
            seed=options.training_seed,
            device=options.device,
        )
        _check_growth(options, training)
        _check_backbone(options)
        for each in (*options.unseen, *options.rich):  # what is wrong with one shall not be found after hours
            _check_read(each, options)
        patients = make_cohort(cohort, work / "cohort", _progress("patient"))
        corpus = prepare_corpus(
            patients, work / "corpus", workers=options.workers, progress=_progress("image")
        )
        train_checkpoint(
            corpus,
            work / "training",
            out,
            training,
            log=lambda row: print(json.dumps(row), flush=True),
            command=shlex.join(["python", "-m", "dapt", *sys.argv[1:]]),
            start=options.start,
            unseen=options.unseen,
            rich=options.rich,
            backbone_weights=options.backbone_weights,
        )
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{OutputError.code}: {error.strerror}; free some space and run it again.", file=sys.stderr)
        return 1
    print(f"{out} written after {(time.perf_counter() - began) / 60:.0f} minutes")
    return 0


def _spacing_of(options: argparse.Namespace) -> float:
    """Of the checkpoint to go on with; 0: the usual one."""
    if options.start is None:
        return 0.0
    there = load_checkpoint(options.start).model.config.preprocessing["spacing_mm"]
    return 0.0 if there == PREPROCESSING[options.examination].spacing_mm else there


def _fusion_of(options: argparse.Namespace) -> str:
    """Of the model that will be trained."""
    if options.start is None:
        return options.fusion or TrainConfig().fusion_type
    there = load_checkpoint(options.start).model.config.fusion_type
    if options.fusion not in (None, there):
        raise ConfigError(f"The model of {options.start} has the fusion {there}, not {options.fusion}.")
    return there


def _check_growth(options: argparse.Namespace, training: TrainConfig) -> None:
    """What is wrong with a checkpoint shall not be found after hours."""
    settings = settings_of(options.examination, options.spacing)
    if options.start is None:
        begun(settings, training)
        return
    model = load_checkpoint(options.start).model
    before = Preprocessing.from_dict(model.config.preprocessing)
    if not is_half(settings, before):
        check_fits(model, options.start, settings, options.examination)
    grown(model.config, before, settings, training)


def _check_backbone(options: argparse.Namespace) -> None:
    """What is wrong with a file shall not be found after hours."""
    if options.start is not None and options.backbone:
        raise ConfigError("The model of --start has its image encoder: --backbone is of a new model.")
    if options.backbone_weights is not None:
        if not options.backbone:
            raise ConfigError("--backbone says which network the weights of --backbone-weights are of.")
        channels = settings_of(options.examination, options.spacing).channels
        read_backbone(MonaiResNet(channels, options.backbone), options.backbone_weights)


def _check_read(corpus: Path, options: argparse.Namespace) -> None:
    if read_settings(corpus) != settings_of(options.examination, options.spacing):
        raise ConfigError(f"{corpus} holds other images than this training: another examination or spacing.")


def _parser() -> argparse.ArgumentParser:
    cohort, training = CohortConfig(), TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m dapt", description=__doc__)
    parser.add_argument("--examination", choices=tuple(PREPROCESSING), default="chest_ct")
    parser.add_argument("--work", type=Path, help="cohort, corpus and training state; runs/EXAMINATION")
    parser.add_argument("--out", type=Path, help="the checkpoint; WORK/checkpoint")
    parser.add_argument("--n", type=int, default=2000, help="phantoms; 8 of 10 are trained on")
    parser.add_argument("--epochs", type=int, default=training.epochs, help="passes over the images")
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"of patches with small lesions, before the images; {training.rounds}, with --start none",
    )
    parser.add_argument("--batch", type=int, default=training.batch, help="images in a step")
    parser.add_argument("--patches", type=int, default=training.patches, help="of lesions beside them")
    parser.add_argument("--seed", type=int, default=1, help="of the phantoms")
    parser.add_argument(
        "--spacing", type=float, default=0.0, help="mm of the voxels; 0: those of --start, or the usual ones"
    )
    parser.add_argument("--training-seed", type=int, default=training.seed, help="of weights and batches")
    parser.add_argument("--workers", type=int, default=cohort.workers)
    parser.add_argument("--lr", type=float, default=training.lr, help="largest learning rate")
    parser.add_argument(
        "--fusion", choices=FUSION_TYPES, help=f"of a new model; {training.fusion_type}, with --start its own"
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=training.widths,
        help="channels of the stages of the image encoder, finest first; with --start it is widened to them",
    )
    parser.add_argument(
        "--units",
        type=int,
        nargs="+",
        default=training.units,
        help="convolutions in each of those stages; with --start it gets them where it has none",
    )
    parser.add_argument(
        "--hessian",
        type=int,
        nargs="+",
        default=training.hessian,
        help="channels of the image (0: the first) of which the image encoder is told where blobs and lines "
        "are; with --start too",
    )
    parser.add_argument(
        "--backbone",
        choices=tuple(BACKBONES),
        default=training.backbone,
        help="MONAI's network as the image encoder of a new model, in place of such stages",
    )
    parser.add_argument(
        "--backbone-weights", type=Path, help="a file of published weights of it: .safetensors, .pt or .pth"
    )
    parser.add_argument("--start", type=Path, help="a checkpoint to go on with, instead of a new model")
    parser.add_argument(
        "--unseen",
        type=Path,
        nargs="+",
        default=(),
        help="corpora of whom no training saw anybody, to calibrate on as well",
    )
    parser.add_argument(
        "--rich",
        type=Path,
        nargs="+",
        default=(),
        help="corpora to learn from as well, of patients who have much: mla-med phantom cohort --odds",
    )
    parser.add_argument("--device", default=training.device, help="cpu or cuda")
    return parser


def _progress(noun: str) -> Callable[[int, int], None]:
    def say(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"{noun} {done}/{total}", flush=True)

    return say


if __name__ == "__main__":
    raise SystemExit(main())
