"""Phantoms that no training saw -> the one table of an examination: what is found, where, how large, in which
words, with what evidence, and how well the model knows what it does not know.

    python -m evaluation.phantoms CORPUS --checkpoint A [--checkpoint B ...] --out DIR

Several checkpoints are seeds of one training, or its ablations: a row has their mean, its 95 % interval by
patient, the standard deviation over checkpoints and each of their values. `--split all` is for a corpus of
which no training saw anything; `--floors` then names the one whose training reports the floors come from.

What counts as found, placed and measured: evaluation/phantom_measures.py. `--out` gets phantoms.json,
phantoms.md and phantoms.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from evaluation.bar import bar_of
from evaluation.phantom_measures import Told, ceiling_texts, floor_texts
from evaluation.phantom_table import Bench, bench, draw, to_json, to_markdown
from evaluation.seen import look
from evaluation.statistics import RESAMPLES, SEED
from mla_med.corpus import LANGUAGES, SPLITS, Example, read_about, read_examples
from mla_med.errors import ConfigError, MlaMedError
from mla_med.files import write_text
from mla_med.memory import keep_freed
from mla_med.model.checkpoint import load_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    keep_freed()
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        found = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    words = to_markdown(found)
    print(words)
    given.out.mkdir(parents=True, exist_ok=True)
    write_text(given.out / "phantoms.md", words)
    write_text(given.out / "phantoms.json", to_json(found))
    draw(found, given.out / "phantoms.png")
    print(f"{given.out} written after {time.perf_counter() - began:.0f} s")
    return 0


def run(given: argparse.Namespace) -> Bench:
    about = read_about(given.corpus)
    examples = read_examples(given.corpus, given.split)[: given.n]
    if not examples:
        raise ConfigError(f"The split {given.split} of {given.corpus} is empty.", code="NO_EXAMPLES")
    examination, language = about["examination"], given.language
    tolds, facts, keys = [], [], set()
    for name, folder in zip(names_of(given.checkpoint), given.checkpoint, strict=True):
        checkpoint = load_checkpoint(folder)
        if checkpoint.scope.examination != examination:
            raise ConfigError(
                f"{folder} drafts {checkpoint.scope.examination}, and {given.corpus} holds {examination}.",
                code="OTHER_EXAMINATION",
            )
        if not checkpoint.calibration.answers:
            raise ConfigError(
                f"{folder} is not calibrated. Run python -m dapt.finish on it first.", code="NOT_CALIBRATED"
            )
        with bar_of(name, len(examples)) as say:
            cases, _ = look(checkpoint, examples, language, given.batch, not given.no_writing, say)
        tolds.append(Told(name, checkpoint.calibration, tuple(cases)))
        config = checkpoint.model.config
        keys.add(config.finding_keys)
        facts.append(
            {
                "name": checkpoint.name,
                "version": checkpoint.version,
                "fusion": config.fusion_type,
                "sha256": checkpoint.weights_sha256,
            }
        )
    if len(keys) > 1:
        raise ConfigError("The checkpoints know different findings.", code="OTHER_FINDINGS")
    others = {} if given.no_writing else _others(given, examples, examination, language)
    return bench(
        tolds,
        keys.pop(),
        examination,
        language,
        others,
        {
            "examination": examination,
            "patients": len(examples),
            "split": given.split,
            "cohort": about["cohort"],
            "language": language,
            "checkpoints": facts,
        },
        given.resamples,
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last names of folders that tell them apart: seed_0 and seed_1 of seed_0/checkpoint and
    seed_1/checkpoint."""
    for part in range(1, 1 + min(len(folder.resolve().parts) for folder in folders)):
        names = [folder.resolve().parts[-part] for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {folder.name}" for number, folder in enumerate(folders, 1)]


def _others(
    given: argparse.Namespace, examples: Sequence[Example], examination: str, language: str
) -> dict[str, list[str]]:
    references = [example.reports[language] for example in examples]
    source = None
    if given.floors is not None or given.split != "all":
        train = read_examples(given.floors or given.corpus, "train")
        source = [example.reports[language] for example in train] or None
    return ceiling_texts(references, [e.id for e in examples], examination, language) | floor_texts(
        references, source, examination, language
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation.phantoms", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--checkpoint", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    parser.add_argument("--n", type=int, help="so many patients at most")
    parser.add_argument("--language", choices=LANGUAGES, default=LANGUAGES[0])
    parser.add_argument("--floors", type=Path, help="another corpus, whose training reports are the floors")
    parser.add_argument("--no-writing", action="store_true", help="findings only, without their words")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap, seed {SEED}")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
