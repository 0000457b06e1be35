"""A checkpoint at several shares of kept tokens -> how long the encoder takes, and what is still found.

    python -m evaluation.selection CORPUS --checkpoint A --out DIR

The same weights with 1.0, 0.7, 0.5 and 0.3 of the stride-8 tokens kept (`keep_ratio`; later stages in
proportion) and no budget on top, and once as the model drafts, with its own share and budget. Times: every
share in turn on one image after the other, in another order each round, so that a busy machine is busy for
all; medians of the fusion alone (what works on tokens) and of the whole encode, and the median over rounds of
how many times faster than with every token kept. Findings: the images are encoded once, and only the fusion
is run again; F1 of the likelier answer at the thresholds that were calibrated for the model as it drafts, and
the share of lesions found by their size, of findings that have one. `--out` gets selection.json, selection.md
and selection.png.
"""

# R patients, B resamples, F findings

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.bar import bar_of
from evaluation.phantom_measures import LEAST_MM, Counts
from evaluation.seen import Progress
from evaluation.statistics import RESAMPLES, Resamples, draw_resamples, estimate
from evaluation.telling import tell
from mla_med.corpus import SPLITS, Example, load_channels, read_about, read_examples
from mla_med.errors import ConfigError, MlaMedError
from mla_med.imaging.transforms import Preprocessing
from mla_med.memory import keep_freed
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.config import ModalConfig
from mla_med.model.image_encoder import frame_of
from mla_med.model.mla import MLAModel

KEEP = (1.0, 0.7, 0.5, 0.3)
UNBOUND = 1 << 30
SHIPPED = 0.0
"""In place of a share: the model as it is, with its own share and its own budget of tokens."""
SIZES_MM = ((0.0, 6.0), (6.0, 10.0), (10.0, 20.0), (20.0, math.inf))
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Timed:
    """Of one share, in order of the rounds."""

    fusion_s: tuple[float, ...]
    encode_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One share of kept tokens."""

    keep: float
    """SHIPPED: as the model is."""
    tokens: int
    """Kept of the stride-8 grid."""
    of_tokens: int
    fusion_ms: float
    encode_ms: float
    fusion_faster: float
    """Than with every token kept: median of the ratios of the rounds."""
    encode_faster: float
    macro_f1: float
    ci95: tuple[float, float]
    lost: float
    """Of the F1 with every token kept, in points of 100."""
    lost_ci95: tuple[float, float]
    recall: tuple[float, ...]
    """By the bins of SIZES_MM; NaN where there is no such lesion."""


@contextmanager
def keeping(model: MLAModel, keep: float) -> Iterator[None]:
    """The model with another share of kept tokens and no budget, and as it was again; SHIPPED: as it is."""
    if keep == SHIPPED:
        yield
        return
    config: ModalConfig = model.fusion.config  # type: ignore[assignment]
    before = config.keep_ratio, config.keep_stages, config.token_budget
    stages = tuple(keep * stage / config.keep_ratio for stage in config.keep_stages)
    config.keep_ratio, config.keep_stages, config.token_budget = keep, stages, UNBOUND
    try:
        yield
    finally:
        config.keep_ratio, config.keep_stages, config.token_budget = before


@torch.no_grad()
def time_shares(
    model: MLAModel,
    inputs: Sequence[tuple[Any, ...]],
    shares: Sequence[float] = KEEP,
    rounds: int = ROUNDS,
    progress: Progress = lambda done: None,
) -> dict[float, Timed]:
    """`inputs`: image (1, C, I, J, K), text, present (1, C) and affine (1, 4, 4) of each round in turn."""
    spent: dict[float, tuple[list[float], list[float]]] = {share: ([], []) for share in shares}
    rng = np.random.default_rng(0)
    for number in range(-1, rounds):
        image, text, present, affine = inputs[number % len(inputs)]
        levels, frame, words, mask = _before_fusion(model, image, text, present, affine)
        for share in rng.permutation(np.array(shares)).tolist():
            with keeping(model, share):
                began = time.perf_counter()
                model.fusion(levels, frame, words, mask, present.any(1))
                fused = time.perf_counter()
                model.encode(image, text, present, affine)
                ended = time.perf_counter()
            if number >= 0:  # the first round only warms up
                spent[share][0].append(fused - began)
                spent[share][1].append(ended - fused)
        progress(number + 1)
    return {share: Timed(tuple(fusion), tuple(encode)) for share, (fusion, encode) in spent.items()}


def faster(times: Sequence[float], than: Sequence[float]) -> float:
    """Median over the rounds of how many times less was needed."""
    return float(np.median(np.array(than) / np.array(times)))


@torch.no_grad()
def probabilities(
    model: MLAModel,
    examples: Sequence[Example],
    shares: Sequence[float] = KEEP,
    progress: Progress = lambda done: None,
) -> tuple[dict[float, np.ndarray], dict[float, int], int]:
    """By share: probabilities (R, F) and kept tokens of an image; and how many tokens there are."""
    settings = Preprocessing.from_dict(model.config.preprocessing)
    found: dict[float, list[np.ndarray]] = {share: [] for share in shares}
    tokens, of_tokens = dict.fromkeys(shares, 0), 0
    for done, example in enumerate(examples, 1):
        image, text, present, affine = input_of(example, settings)
        levels, frame, words, mask = _before_fusion(model, image, text, present, affine)
        for share in shares:
            with keeping(model, share):
                fused = model.fusion(levels, frame, words, mask, present.any(1))
            found[share].append(model.find(fused).probability_BF()[0])
            selection = fused.selection
            tokens[share], of_tokens = int(selection.keep_BN.sum()), selection.keep_BN.shape[1]
        progress(done)
    return {share: np.array(rows) for share, rows in found.items()}, tokens, of_tokens


def input_of(example: Example, settings: Preprocessing) -> tuple[Any, ...]:
    image, present, affine = load_channels(example, settings)
    return image[None], [example.contexts["en"]], present[None], affine[None]


def _before_fusion(model: MLAModel, image: Any, text: Any, present: Any, affine: Any) -> tuple[Any, ...]:
    """What the fusion takes: levels of the image, its frame, text tokens and their mask."""
    ids, mask = model.text_ids(text, None, len(image))
    return model.image_encoder(image, present), frame_of(image, affine), model.text_encoder(ids, mask), mask


def counts_at(
    probability_RF: np.ndarray, cuts_F: np.ndarray, examples: Sequence[Example], codes: Sequence[str]
) -> Counts:
    """Of lesions of 6 mm or more, by the likelier answer."""
    largest = [{f.code: f.size_mm for f in reversed(example.findings)} for example in examples]
    present = np.array([[code in there for code in codes] for there in largest])
    sizes = [[there.get(code) for code in codes] for there in largest]
    counted = np.array([[size is None or size >= LEAST_MM for size in row] for row in sizes])
    return Counts(tuple(codes), present, probability_RF >= cuts_F, counted)


def recall_by_size(
    said_RF: np.ndarray, examples: Sequence[Example], codes: Sequence[str]
) -> list[tuple[int, int]]:
    """For each bin of sizes: how many findings whose largest lesion lies in it are stated, of how many."""
    rows = [
        (finding.size_mm, bool(said_RF[r, codes.index(code)]))
        for r, example in enumerate(examples)
        for code, finding in {f.code: f for f in reversed(example.findings)}.items()
        if finding.size_mm is not None
    ]
    counted = []
    for low, high in SIZES_MM:
        said = [found for size, found in rows if low <= size < high]
        counted.append((sum(said), len(said)))
    return counted


def rows_of(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    found: dict[float, np.ndarray],
    tokens: dict[float, int],
    of_tokens: int,
    timed: dict[float, Timed],
    drawn: Resamples,
) -> list[Row]:
    codes, calibration = checkpoint.model.config.finding_keys, checkpoint.calibration
    cuts = np.array([calibration.thresholds[code] for code in codes])
    every = max(found)
    whole = counts_at(found[every], cuts, examples, codes)
    rows = []
    for keep in sorted(found, reverse=True):
        counts, time_of = counts_at(found[keep], cuts, examples, codes), timed[keep]
        f1 = estimate(counts.macro_f1, drawn)

        def lost(counts_BR: np.ndarray, counts: Counts = counts) -> np.ndarray:
            return 100 * (whole.macro_f1(counts_BR) - counts.macro_f1(counts_BR))

        fallen = estimate(lost, drawn)
        recall = recall_by_size(counts.said_RF, examples, codes)
        rows.append(
            Row(
                keep,
                tokens[keep],
                of_tokens,
                1000 * float(np.median(time_of.fusion_s)),
                1000 * float(np.median(time_of.encode_s)),
                faster(time_of.fusion_s, timed[every].fusion_s),
                faster(time_of.encode_s, timed[every].encode_s),
                f1.value,
                f1.ci95,
                fallen.value,
                fallen.ci95,
                tuple(hits / of if of else math.nan for hits, of in recall),
            )
        )
    return rows


def named(keep: float) -> str:
    return "as it drafts" if keep == SHIPPED else f"{keep:.1f}"


def to_markdown(rows: Sequence[Row], numbers: Sequence[int], facts: dict[str, Any]) -> str:
    bins = [
        f"{low:.0f} to {high:.0f} mm" if high < math.inf else f"{low:.0f} mm or more"
        for low, high in SIZES_MM
    ]
    sized = " | ".join(f"found, {words} ({n})" for words, n in zip(bins, numbers, strict=True))
    lines = [
        f"# Token selection of {facts['name']} ({facts['sha256'][:12]})",
        "",
        f"{facts['patients']} phantoms of the {facts['split']} split; images of {facts['shape']} voxels, one "
        f"at a time, {facts['rounds']} rounds, {facts['threads']} thread(s) of {facts['processor']}, torch "
        f"{facts['torch']}; trained with {facts['trained_keep']} kept, {facts['trained_budget']} at most.",
        "",
        "| keep | tokens | fusion ms | x faster | encode ms | x faster | macro F1 | 95 % CI | points lost | "
        f"95 % CI | {sized} |",
        "|" + "---|" * (10 + len(SIZES_MM)),
    ]
    for row in rows:
        recall = " | ".join("–" if math.isnan(r) else f"{r:.3f}" for r in row.recall)
        lines.append(
            f"| {named(row.keep)} | {row.tokens} of {row.of_tokens} | {row.fusion_ms:.1f} "
            f"| {row.fusion_faster:.2f} | {row.encode_ms:.0f} | {row.encode_faster:.2f} | {row.macro_f1:.3f} "
            f"| {row.ci95[0]:.3f} to {row.ci95[1]:.3f} | {row.lost:+.2f} "
            f"| {row.lost_ci95[0]:+.2f} to {row.lost_ci95[1]:+.2f} | {recall} |"
        )
    return "\n".join(lines) + "\n"


def _bin(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f} mm" if high < math.inf else f"{low:.0f} mm or more"


def draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = sorted(rows, key=lambda row: row.tokens, reverse=True)
    keep = [row.tokens / row.of_tokens for row in rows]
    figure, (speed, found) = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=120)
    speed.plot(keep, [row.fusion_faster for row in rows], "o-", label="fusion of tokens")
    speed.plot(keep, [row.encode_faster for row in rows], "s-", label="whole encode")
    speed.axhline(2, color="#bbbbbb", linewidth=1)
    for row, share in zip(rows, keep, strict=True):
        if row.keep == SHIPPED:
            for axes in (speed, found):
                axes.axvline(share, color="#bbbbbb", linewidth=1, linestyle=":")
            speed.annotate("as it drafts", (share, 0.1), rotation=90, ha="right", fontsize=7)
    speed.set(xlabel="share of tokens kept", ylabel="times faster than with all", ylim=(0, None))
    speed.legend(frameon=False)
    gap = [[row.macro_f1 - row.ci95[0] for row in rows], [row.ci95[1] - row.macro_f1 for row in rows]]
    found.errorbar(keep, [row.macro_f1 for row in rows], gap, fmt="ko-", capsize=3, label="macro F1")
    for number, ends in enumerate(SIZES_MM):
        found.plot(keep, [row.recall[number] for row in rows], ".--", label=f"found, {_bin(*ends)}")
    found.set(xlabel="share of tokens kept", ylim=(0, 1))
    found.legend(frameon=False, fontsize=7, loc=(0.02, 0.47))
    for axes in (speed, found):
        axes.invert_xaxis()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def run(given: argparse.Namespace) -> tuple[list[Row], list[int], dict[str, Any]]:
    checkpoint = load_checkpoint(given.checkpoint)
    model = checkpoint.model
    if model.config.fusion_type not in ("hffn", "full"):
        raise ConfigError(
            f"The fusion {model.config.fusion_type} of {given.checkpoint} selects no tokens; give one of "
            "hffn or full.",
            code="NO_SELECTION",
        )
    about, examples = read_about(given.corpus), read_examples(given.corpus, given.split)[: given.n]
    if about["examination"] != checkpoint.scope.examination:
        raise ConfigError(
            f"{given.checkpoint} drafts {checkpoint.scope.examination}, and {given.corpus} holds "
            f"{about['examination']}.",
            code="OTHER_EXAMINATION",
        )
    settings = Preprocessing.from_dict(model.config.preprocessing)
    inputs = [input_of(example, settings) for example in examples[: min(given.rounds, 8)]]
    shares = (*KEEP, SHIPPED)
    with bar_of("timing", given.rounds) as say:
        timed = time_shares(model, inputs, shares, given.rounds, say)
    with bar_of("looking", len(examples)) as say:
        found, tokens, of_tokens = probabilities(model, examples, shares, say)
    drawn = draw_resamples([example.id for example in examples], "patient", given.resamples)
    rows = rows_of(checkpoint, examples, found, tokens, of_tokens, timed, drawn)
    codes = model.config.finding_keys
    numbers = [n for _, n in recall_by_size(np.zeros((len(examples), len(codes))), examples, codes)]
    facts = {
        "name": checkpoint.name,
        "sha256": checkpoint.weights_sha256,
        "patients": len(examples),
        "split": given.split,
        "cohort": about["cohort"],
        "shape": " x ".join(map(str, settings.shape)),
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "trained_keep": model.config.keep_ratio,
        "trained_budget": model.config.token_budget,
        "ci": drawn.signature,
    }
    return rows, numbers, facts


def processor() -> str:
    """As Linux names it."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.selection", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="test")
    parser.add_argument("--n", type=int, default=200, help="phantoms at most")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    keep_freed()
    torch.set_num_threads(given.threads)
    try:
        rows, numbers, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    listed = [asdict(row) | {"keep": named(row.keep)} for row in rows]
    values = {"facts": facts, "sizes_mm": [low for low, _ in SIZES_MM], "rows": listed}
    tell("selection", to_markdown(rows, numbers, facts), values, given.out)
    draw(rows, given.out / "selection.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
