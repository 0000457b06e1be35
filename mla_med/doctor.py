"""This machine -> what mla_med needs, whether it is there, and how to get it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from mla_med.model import DEFAULT_CHECKPOINT

_PACKAGES = (
    # package, required, what it is for, how to get it
    ("torch", True, "the model", "pip install -c constraints.txt -e ."),
    ("monai", True, "image transforms and network blocks", "pip install -c constraints.txt -e ."),
    ("transformers", True, "the decoder", "pip install -c constraints.txt -e ."),
    ("pydicom", True, "reading DICOM", "pip install -c constraints.txt -e ."),
    ("highdicom", True, "writing SR", "pip install -c constraints.txt -e ."),
    ("pylibjpeg", True, "JPEG and JPEG 2000 pixels", "pip install -c constraints.txt -e ."),
    ("pyjpegls", True, "JPEG-LS pixels", "pip install -c constraints.txt -e ."),
    ("sacrebleu", False, "evaluate, demo", "pip install -c constraints.txt -e '.[evaluation]'"),
    ("prefect", False, "flows, demo --train", "pip install -c constraints.txt -e '.[flows]'"),
)
_PROGRAMS = (("dciodvfy", "checks every SR that is written", "apt-get install dicom3tools"),)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    found: str
    words: str
    required: bool

    @property
    def missing(self) -> bool:
        return not self.found

    @property
    def mark(self) -> str:
        return "ok" if self.found else "MISSING" if self.required else "absent"


def examine() -> tuple[Row, ...]:
    """One row for each thing; nothing heavy is imported."""
    python = ".".join(map(str, sys.version_info[:3]))
    rows = [Row("python", python if sys.version_info >= (3, 11) else "", "3.11 or later", True)]
    for name, required, purpose, remedy in _PACKAGES:
        found = _version(name)
        rows.append(Row(name, found, purpose if found else f"for {purpose}: {remedy}", required))
    for name, purpose, remedy in _PROGRAMS:
        found = shutil.which(name) or ""
        rows.append(Row(name, found and "yes", purpose if found else f"{purpose}: {remedy}", False))
    weights = DEFAULT_CHECKPOINT / "model.safetensors"
    size = f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else ""
    words = "the packaged model" if size else "python -m dapt --out mla_med/checkpoints/chest_ct"
    rows.append(Row("checkpoint", size, words, True))
    return tuple(rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
