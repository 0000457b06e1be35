"""The nouns of a corpus in the making: a Pair of image and text, where its image lies, and what was refused.

Who a patient is leaves the source as a hash and in no other form (`Hide`). Knows no form of source.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mla_med.errors import ReportError
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style
from mla_med.types import Finding, Study

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_HAN = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Person:
    """Who a patient is, as far as a corpus has to know."""

    hash: str
    place: float
    """From 0 to 1, whatever the salt, so that everybody splits a public collection alike. Never written."""


@dataclass(frozen=True, slots=True)
class Hide:
    """Identifier -> the hash that takes its place: HMAC-SHA256 (RFC 2104) with the salt of the corpus:
    without it nobody can try all patient numbers of a hospital."""

    salt: bytes = field(repr=False)

    def __call__(self, kind: str, *parts: str) -> str:
        """`kind` is the letter in front: p of a patient, s of a study, e of an example."""
        digest = hmac.new(self.salt, "\0".join((kind, *parts)).encode(), hashlib.sha256).hexdigest()
        return f"{kind}-{digest[:20]}"

    def person(self, *parts: str) -> Person:
        digest = hashlib.sha256("\0".join(("split", *parts)).encode()).digest()
        return Person(self("p", *parts), int.from_bytes(digest[:8]) / 2**64)


@dataclass(frozen=True, slots=True)
class Rescale:
    """Of a volume whose file may hold stored values or HU: what its table says, and what is known."""

    slope: float
    intercept: float
    values: str = "detect"
    """hu, stored, or detect: by the values themselves."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the image of a pair lies, in whatever form."""

    paths: Mapping[str, Path] = field(default_factory=dict)
    """NIfTI files or pictures by MR sequence, or one under ""."""
    study: Study | None = None
    """Of DICOM: its headers, as read_study gives them."""
    rescale: Rescale | None = None
    spacing_mm: tuple[float, float, float] | None = None
    """What a table says of the voxels, to be compared with the file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file whose bytes make the image, each once."""
        if self.study is None:
            return tuple(self.paths[role] for role in sorted(self.paths))
        images = (i.path for s in self.study.series if s.modality in ("CT", "MR") for i in s.instances)
        return tuple(dict.fromkeys(images))


@dataclass(frozen=True, slots=True)
class Pair:
    """One study: an image, a text, or both."""

    key: str
    """Hash that names it within its corpus."""
    patient: Person
    study: str
    image: ImageSource | None = None
    context: str = ""
    report: str | None = None
    language: str = "en"
    findings: tuple[Finding, ...] | None = None
    """What is present, where somebody labelled it."""
    known: tuple[str, ...] | None = None
    """Of which codes `findings` tells whether they are present; None: of all."""
    split: str | None = None
    """As the source has it, if it has splits."""
    texts: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    """Where in the source it stands, without a name: "pairs.csv, line 4"."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What of a source did not become a pair."""

    key: str
    code: str
    words: str
    place: str = ""
    files: tuple[Path, ...] = ()


Imported = Iterable[Pair | Refused]
Say = Callable[[int], None]


def language_of(text: str) -> str:
    """zh where a tenth of the characters are Chinese, else en: there are rules for these two."""
    return "zh" if len(_HAN.findall(text)) > 0.1 * len(text) else "en"


def lay_out(findings: str, impression: str, language: str) -> str:
    """Both sections under the headings that reports of this project have, so that one model reads all."""
    head = load_style("prose", language if language in ("en", "zh") else "en").headings
    gap = "" if language == "zh" else " "
    parts = [(head["findings"], findings.strip()), (head["impression"], impression.strip())]
    return "\n".join(f"{name}{gap}{words}" for name, words in parts if words)


def check_code(code: str, examination: str, place: str) -> str:
    if code not in SCHEMAS.get(examination, {}):
        raise ReportError(
            f"{place}: no finding '{code}' in the schema of {examination or 'this examination'}. "
            "docs/corpus.md says how findings are named.",
            code="FINDING_UNKNOWN",
        )
    return code
