"""A chest CT of 300 slices as DICOM on disk -> how long its draft takes, stage by stage, and how much memory.

    python -m evaluation.speed [--checkpoint A] [--runs 5] [--threads 2]

A phantom of 512 x 512 pixels and as many slices as asked for is written once, in a process of its own; then
this process, with the model loaded, drafts it from the files to the documents (`draft_one`): the first draft
alone, and the median of those after it. A stage lasts from its `progress` message to the next. Memory is the
largest resident set of this process (getrusage), which is why one that drew the phantom would not do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from evaluation.bar import bar_of
from evaluation.selection import processor
from evaluation.telling import tell
from mla_med.dicom.study import read_studies
from mla_med.drafting import draft_one
from mla_med.errors import ConfigError, MlaMedError
from mla_med.memory import keep_freed
from mla_med.model.checkpoint import Checkpoint, load_checkpoint

SEED = 3_998_000_001
"""Of a cohort that nobody trains on."""
Stages = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Run:
    wall_s: float
    stages_s: dict[str, float]
    """In order; a stage that comes several times once."""


class Watch:
    """Called at the start of each stage; `read` ends the last."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.marks: Stages = []

    def __call__(self, step: str) -> None:
        self.marks.append((step, self.clock()))

    def read(self) -> Run:
        marks = [*self.marks, ("", self.clock())]
        spent: dict[str, float] = {}
        for (step, began), (_, ended) in pairwise(marks):
            spent[step] = spent.get(step, 0.0) + ended - began
        return Run(marks[-1][1] - marks[0][1], spent)


def write_phantom(folder: Path, slices: int, seed: int = SEED) -> int:
    """A chest of site a as DICOM; -> how many slices its volume has, about those asked for."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:  # what drawing takes is not the memory of a draft
        return pool.apply(_write, (folder, slices, seed))


def _write(folder: Path, slices: int, seed: int) -> int:
    from mla_med.phantom.examine import examine
    from mla_med.phantom.scanning import ABOVE_MM, BELOW_MM, write_dicom
    from mla_med.phantom.sites import site_of

    site = site_of("a")
    examined = examine(seed, "chest_ct", site)
    low, high = examined.anatomy.z_range_mm
    length = high - low + sum(BELOW_MM) / 2 + sum(ABOVE_MM) / 2
    distance = round(length / (slices - 1), 3)
    ct = replace(site.ct, slices_mm=((distance, distance, 1.0),), tilt_odds=0.0)
    write_dicom(replace(examined, site=replace(site, ct=ct)), folder)
    return max(len(list(series.glob("*.dcm"))) for series in folder.rglob("*") if series.is_dir())


def time_draft(folder: Path, out: Path, checkpoint: Checkpoint) -> tuple[Run, tuple[str, ...]]:
    """-> the times, and why it was refused: then they are no times of a draft."""
    watch = Watch()
    watch("reading the headers")
    draft, _ = draft_one(read_studies(folder), out, checkpoint, watch)
    return watch.read(), tuple(reason.code for reason in draft.gate.reasons)


def peak_mib() -> float:
    """The largest resident set of this process so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def to_markdown(runs: Sequence[Run], facts: dict[str, Any]) -> str:
    first, later = runs[0], runs[1:] or runs
    lines = [
        f"# Draft of a chest CT of {facts['slices']} slices, 512 x 512, DICOM to documents",
        "",
        f"{facts['name']} ({facts['sha256'][:12]}), {facts['threads']} thread(s) of {facts['processor']}, "
        f"torch {facts['torch']}; model loaded in {facts['load_s']:.1f} s before. Peak memory of the process "
        f"{facts['peak_mib']:.0f} MiB, of which {facts['loaded_mib']:.0f} MiB before the first draft.",
        "",
        f"| stage | first, s | median of {len(later)} more, s |",
        "|---|---|---|",
    ]
    for step in first.stages_s:
        more = median(run.stages_s.get(step, 0.0) for run in later)
        lines.append(f"| {step} | {first.stages_s[step]:.2f} | {more:.2f} |")
    lines.append(f"| wall | {first.wall_s:.2f} | {median(run.wall_s for run in later):.2f} |")
    if facts["reasons"]:
        lines += ["", f"REFUSED ({', '.join(facts['reasons'])}): these are no times of a draft."]
    return "\n".join(lines) + "\n"


def run(given: argparse.Namespace) -> tuple[list[Run], dict[str, Any]]:
    if given.runs < 1:
        raise ConfigError("Give at least one run.")
    with tempfile.TemporaryDirectory(prefix="mla_med-") as name:
        folder = Path(name)
        slices = write_phantom(folder / "phantom", given.slices)
        began = time.perf_counter()
        checkpoint = load_checkpoint(given.checkpoint)
        loaded, before = time.perf_counter() - began, peak_mib()
        runs: list[Run] = []
        reasons: tuple[str, ...] = ()
        with bar_of("drafting", given.runs + 1) as say:
            for number in range(given.runs + 1):
                one, reasons = time_draft(folder / "phantom", folder / f"draft{number}", checkpoint)
                runs.append(one)
                say(number + 1)
    return runs, {
        "name": checkpoint.name,
        "sha256": checkpoint.weights_sha256,
        "slices": slices,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "torch": torch.__version__,
        "load_s": loaded,
        "loaded_mib": before,
        "peak_mib": peak_mib(),
        "reasons": reasons,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.speed", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="the packaged chest CT model by default")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5, help="after the first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="for speed.json and speed.md")
    given = parser.parse_args(arguments)
    keep_freed()  # as mla-med draft does
    torch.set_num_threads(given.threads)
    try:
        runs, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    values = {"facts": facts, "runs": [asdict(one) for one in runs]}
    tell("speed", to_markdown(runs, facts), values, given.out)
    return 1 if facts["reasons"] else 0


if __name__ == "__main__":
    sys.exit(main())
