"""Many phantom studies in a row -> studies an hour, and whether the memory stays flat.

    python -m evaluation.many [--studies 100] [--slices 300] [--checkpoint A] [--backend torch] [--out DIR]

Some different chests are written once as DICOM, in a process of their own. Then this process, which stays
warm, drafts all of them from disk to documents, again and again, as `mla-med draft` does with a folder of
many studies: another process reads, and reads the next study while the model works. Studies an hour are those
of each pass; memory is the resident set of this process after each study (/proc/self/statm), the median of
the last quarter of all studies by that of the second: the first fills caches.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from evaluation.bar import bar_of
from evaluation.selection import processor
from evaluation.speed import SEED, write_phantom
from evaluation.targets import Spread, Target, targets_table
from evaluation.telling import tell
from mla_med.dicom.apart import ReaderProcess
from mla_med.dicom.study import read_studies
from mla_med.drafting import draft_studies
from mla_med.errors import ConfigError, MlaMedError
from mla_med.memory import keep_freed

FLAT = 1.05
"""At most, the memory at the end by that at a quarter."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Every different study once."""

    seconds: float
    resident_mib: tuple[float, ...]
    """After each study."""
    refused: int

    @property
    def per_hour(self) -> float:
        return 3600 * len(self.resident_mib) / self.seconds


def draft_all(folder: Path, out: Path, model: Any) -> Pass:
    resident, refused = [], 0
    with ReaderProcess() as reader:
        began = time.perf_counter()
        studies = reader.call(read_studies, folder)
        for outcome in draft_studies(studies, out, model, call=reader.call):
            if outcome.draft is None:
                assert outcome.reason is not None
                raise ConfigError(f"A phantom was not drafted: {outcome.reason.words}")
            refused += bool(outcome.draft.gate.reasons)
            resident.append(resident_mib())
        return Pass(time.perf_counter() - began, tuple(resident), refused)


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def flatness(resident_mib: Sequence[float]) -> float:
    quarter = max(1, len(resident_mib) // 4)
    return median(resident_mib[-quarter:]) / median(resident_mib[quarter : 2 * quarter] or resident_mib)


def run(given: argparse.Namespace) -> tuple[list[Pass], dict[str, Any]]:
    if given.backend == "torch":
        from mla_med.model.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(given.checkpoint)
    else:
        from mla_med.model.exported import load_exported

        if given.checkpoint is None:
            raise ConfigError("Give --checkpoint: the folder that mla-med export wrote.", code="NOT_EXPORTED")
        checkpoint = load_exported(given.checkpoint, given.backend)
    passes: list[Pass] = []
    with tempfile.TemporaryDirectory(prefix="mla_med-") as name:
        home = Path(name)
        for number in range(given.different):
            write_phantom(home / "phantoms" / str(number), given.slices, SEED + number)
        wanted = -(-given.studies // given.different)
        with bar_of("passes", wanted) as say:
            for number in range(wanted):
                passes.append(draft_all(home / "phantoms", home / "drafts", checkpoint))
                shutil.rmtree(home / "drafts")
                say(number + 1)
    return passes, {
        "name": checkpoint.name,
        "sha256": checkpoint.weights_sha256,
        "backend": given.backend,
        "slices": given.slices,
        "studies": sum(len(one.resident_mib) for one in passes),
        "different": given.different,
        "refused": sum(one.refused for one in passes),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def to_markdown(passes: Sequence[Pass], facts: dict[str, Any]) -> str:
    resident = [mib for one in passes for mib in one.resident_mib]
    flat = Spread.of([flatness(resident)])
    lines = [
        f"# {facts['studies']} chest CTs of about {facts['slices']} slices in a row",
        "",
        f"{facts['name']} ({facts['sha256'][:12]}), {facts['backend']}, {facts['cores']} core(s) of "
        f"{facts['processor']}; {facts['different']} different phantoms, {facts['refused']} of all refused.",
        "",
        f"Studies an hour, over passes: {Spread.of(one.per_hour for one in passes).to_text()}.",
        f"Resident memory after a study, MiB: first {resident[0]:.0f}, largest {max(resident):.0f}, last "
        f"{resident[-1]:.0f}.",
        "",
        *targets_table([Target("memory, last quarter by second", flat, FLAT, at_most=True)]),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.many", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="the packaged chest CT model by default")
    parser.add_argument("--backend", default="torch", help="torch; onnx or openvino of an exported folder")
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--different", type=int, default=10, help="phantoms, of 160 MB each at 300 slices")
    parser.add_argument("--out", type=Path, help="for many.json and many.md")
    given = parser.parse_args(arguments)
    keep_freed()  # as mla-med draft does
    try:
        passes, facts = run(given)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    values = {"facts": facts, "passes": [asdict(one) for one in passes]}
    tell("many", to_markdown(passes, facts), values, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
