"""Reader, folder -> Run: one child process, what it read, what it said, what it cost.

A reader that is missing, hangs or dies becomes a Run that says so; nothing a child does ends this
process. Knows the worker's files; knows nothing of DICOM or of what the volumes should hold.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

OURS = "ours"
TIMEOUT_S = 120.0
MAX_WORDS = 160


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that is called with FOLDER OUT [WARM_UP] and leaves OUT/result.json."""

    name: str
    command: tuple[str, ...]
    how_to_get: str = ""


class State(StrEnum):
    READ = "read"
    MISSING = "not installed"
    TIMED_OUT = "timed out"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Found:
    """A volume as the reader stored it; voxels stay on disk until they are looked at."""

    file: Path
    affine: np.ndarray
    series_uid: str
    label: str
    notes: tuple[str, ...]

    def voxels(self) -> np.ndarray:
        return np.asarray(np.load(self.file, mmap_mode="r"))


@dataclass(frozen=True, slots=True)
class Refusal:
    words: str
    code: str
    series_uid: str


@dataclass(frozen=True, slots=True)
class Cost:
    wall_s: float
    cpu_s: float
    start_s: float
    """Imports and the reading of a tiny series, before the clock of the others starts."""
    peak_mib: float
    above_start_mib: float
    """The peak while reading, over what the process held before."""


@dataclass(frozen=True, slots=True)
class Run:
    reader: str
    state: State
    words: str = ""
    """Why there is nothing, where there is nothing."""
    version: str = ""
    found: tuple[Found, ...] = ()
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    cost: Cost | None = None


def default_readers() -> tuple[Reader, ...]:
    """Ours first, then the peers, each in the worker of this package."""
    packages = {
        OURS: "",
        "dcm2niix": "pip install dcm2niix",
        "SimpleITK": "pip install SimpleITK",
        "MONAI ITKReader": "pip install monai itk",
        "MONAI PydicomReader": "pip install monai",
        "dicom2nifti": "pip install dicom2nifti",
        "highdicom": "pip install highdicom",
    }
    worker = (sys.executable, "-m", "evaluation.peers.worker")
    return tuple(Reader(name, (*worker, name), how) for name, how in packages.items())


def run_reader(
    reader: Reader, folder: Path, out: Path, warm_up: Path | None = None, timeout_s: float = TIMEOUT_S
) -> Run:
    """One run in a fresh process; its volumes lie in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    command = [*reader.command, str(folder.resolve()), str(out), *([str(warm_up)] if warm_up else [])]
    status, said = _call(command, timeout_s)
    if status is None:
        return Run(reader.name, State.TIMED_OUT, f"after {timeout_s:g} s")
    result = _result(out / "result.json")
    if result is None:
        return Run(reader.name, State.CRASHED, shorten(_last_words(status, said), folder))
    if "missing" in result:
        return Run(reader.name, State.MISSING, reader.how_to_get)
    return _to_run(reader.name, result, said, folder, out)


def _call(command: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Exit status, None if it took too long, and what it wrote to stderr."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=log, cwd=_root(), start_new_session=True
        )
        try:
            status: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # The whole session, as a reader may have started programs of its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return status, log.read().decode(errors="replace")


def _root() -> Path:
    """The folder from which `-m evaluation.peers.worker` finds its package, installed or not."""
    return Path(__file__).parents[2]


def _result(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _last_words(status: int, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}" + (f" ({lines[-1]})" if lines else "")
    return lines[-1] if lines else f"exit status {status} without a word"


def shorten(words: str, folder: Path | None = None) -> str:
    """One line without paths, addresses in memory and UIDs, as they may name a patient."""
    text = words.replace(str(folder.resolve()), "") if folder else words
    text = re.sub(r"\(0x[0-9a-f]+\)", "", text)
    text = re.sub(r"\d+(?:\.\d+){4,}", "UID", text)
    text = re.sub(r"(?<![^\s'\"(:=])/\S+", "...", text)
    text = re.sub(r"(?<!\.)\.$", "", " ".join(text.split()).removeprefix("Warning: "))
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 3] + "..."


def _to_run(name: str, result: dict[str, Any], said: str, folder: Path, out: Path) -> Run:
    return Run(
        name,
        State.READ,
        version=result["version"],
        found=tuple(
            Found(
                out / volume["file"],
                np.array(volume["affine"]),
                volume["series_uid"],
                volume["label"],
                _unique(volume["notes"], folder),
            )
            for volume in result["volumes"]
        ),
        refused=tuple(
            Refusal(shorten(refusal["words"], folder), refusal["code"], refusal["series_uid"])
            for refusal in result["refused"]
        ),
        warnings=_unique([*result["warnings"], *_itk_warnings(said)], folder),
        cost=Cost(*(result[key] for key in ("wall_s", "cpu_s", "start_s", "peak_mib", "above_start_mib"))),
    )


def _unique(words: Iterable[str], folder: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(shorten(text, folder) for text in words))


def _itk_warnings(said: str) -> list[str]:
    """ITK prints a line that says where in its code, then one that says what."""
    lines = said.splitlines()
    return [b.split("): ", 1)[-1] for a, b in itertools.pairwise(lines) if a.startswith("WARNING: In")]
