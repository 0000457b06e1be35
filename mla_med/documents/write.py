"""Draft -> its documents, in the formats that are asked for; in a folder all of them, or none.

`write_documents` makes every byte; the checks that no validator makes are made on each before anybody has
it. `write_draft` puts them into a folder beside the destination, where they appear under their names only
when all are on the disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from pydicom.dataset import Dataset

from mla_med.archive import is_file
from mla_med.documents.check import refuse_problems
from mla_med.documents.envelope import (
    Reference,
    Revision,
    file_bytes,
    libraries_silent,
    read_header,
    reference_of,
    utf8,
)
from mla_med.documents.html import draft_to_html
from mla_med.documents.json import draft_to_json
from mla_med.documents.sr import text_sr
from mla_med.documents.text import draft_to_text
from mla_med.errors import ConfigError, OutputError
from mla_med.types import Draft, Volume

DEFAULT_FORMATS = ("sr", "txt", "html", "json")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a draft, as it leaves."""

    format: str
    """A key of FORMATS."""
    file_name: str
    media_type: str
    content: bytes = field(repr=False)
    reference: Reference | None = None
    """What names it in DICOM; None where it is not DICOM."""


@dataclass(frozen=True)
class Material:
    """What the writers work from; the parts that several of them need are made once."""

    draft: Draft
    volume: Volume | Sequence[Volume] | None
    source: Path | None
    revision: Revision | None
    formats: frozenset[str]
    language: str = "en"

    @cached_property
    def header(self) -> Dataset:
        return read_header(self.source or _source(self.draft), self.draft.provenance)

    @property
    def reviewer(self) -> str:
        return (self.revision.reviewer if self.revision else None) or ""

    @cached_property
    def sr(self) -> Dataset:
        return text_sr(self.draft, self.header, self.revision)

    @cached_property
    def pages(self) -> bytes:
        from mla_med.documents.pdf import draft_to_pdf

        return draft_to_pdf(self.draft, self.header, self.revision, self.language)


@dataclass(frozen=True, slots=True)
class Format:
    file_name: str
    media_type: str
    write: Callable[[Material], Dataset | bytes | None]
    """None where there is nothing to write: no heat map, no cited image."""
    needs_dicom: bool = True
    library: str = ""
    """What it needs beside the package itself."""


def _txt(m: Material) -> bytes:
    return utf8(draft_to_text(m.draft, m.reviewer), "the draft")


def _html(m: Material) -> bytes:
    return utf8(draft_to_html(m.draft, m.volume, m.reviewer, m.language), "the draft")


def _json(m: Material) -> bytes:
    data = draft_to_json(m.draft, m.revision)
    return utf8(json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False), "the draft")


def _sr3d(m: Material) -> Dataset:
    from mla_med.documents.sr3d import measurement_sr

    return measurement_sr(m.draft, m.header, m.revision)


def _pdf(m: Material) -> Dataset:
    from mla_med.documents.pdf import encapsulated_pdf

    return encapsulated_pdf(m.draft, m.header, m.revision, m.pages)


def _kos(m: Material) -> Dataset | None:
    from mla_med.documents.kos import key_objects

    return key_objects(m.draft, m.header, m.revision)


def _seg(m: Material) -> Dataset | None:
    from mla_med.documents.heat import segmentation

    return segmentation(m.draft, m.header, m.revision)


def _pm(m: Material) -> Dataset | None:
    from mla_med.documents.heat import parametric_map

    return parametric_map(m.draft, m.header, m.revision)


def _fhir(m: Material) -> bytes:
    from mla_med.documents.fhir import draft_to_fhir, fhir_bytes

    pages = m.pages if "pdf" in m.formats else None  # its fonts are not everywhere
    return fhir_bytes(draft_to_fhir(m.draft, m.header, m.sr.SOPInstanceUID, m.revision, pages))


def _hl7(m: Material) -> bytes:
    from mla_med.documents.hl7 import draft_to_hl7

    return draft_to_hl7(m.draft, m.header, m.sr.SOPInstanceUID, m.revision)


DICOM = "application/dicom"

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "sr": Format("draft.dcm", DICOM, lambda m: m.sr),
        "sr3d": Format("draft.sr3d.dcm", DICOM, _sr3d),
        "pdf": Format("draft.pdf.dcm", DICOM, _pdf, library="reportlab"),
        "kos": Format("draft.kos.dcm", DICOM, _kos),
        "seg": Format("draft.seg.dcm", DICOM, _seg),
        "pm": Format("draft.pm.dcm", DICOM, _pm),
        "fhir": Format("draft.fhir.json", "application/fhir+json", _fhir, library="fhir.resources"),
        "hl7": Format("draft.hl7", "x-application/hl7-v2+er7", _hl7),
        "txt": Format("draft.txt", "text/plain; charset=utf-8", _txt, False),
        "html": Format("draft.html", "text/html; charset=utf-8", _html, False),
        # The last one to appear: who sees draft.json sees the whole set.
        "json": Format("draft.json", "application/json", _json, False),
    }
)

NAMES = {form.file_name for form in FORMATS.values()}


def parse_formats(words: str) -> tuple[str, ...]:
    """ "sr,pdf" -> the formats, each once; ConfigError names those that exist."""
    asked = tuple(dict.fromkeys(word.strip().lower() for word in words.split(",") if word.strip()))
    unknown = [word for word in asked if word not in FORMATS]
    if unknown or not asked:
        raise ConfigError(
            f"No format '{unknown[0] if unknown else words}'; there are: {', '.join(FORMATS)}.",
            code="FORMAT_UNKNOWN",
        )
    return asked


def write_documents(
    draft: Draft,
    *,
    formats: Iterable[str] = DEFAULT_FORMATS,
    volume: Volume | Sequence[Volume] | None = None,
    source: Path | None = None,
    revision: Revision | None = None,
    language: str = "en",
) -> tuple[Document, ...]:
    """The documents, in the order of FORMATS. From NIfTI only text, page and JSON: nothing says whose images
    they are. `source`: an image of the drafted series, which lends patient and study; None: the first one
    that is still where it was read from. `volume`: for the pictures on the page. `revision`: the draft was
    changed by a reviewer; see `revision_of`. `language`: of the pages of a refusal; a report brings its
    own."""
    wanted, has_images = frozenset(parse_formats(",".join(formats))), _is_dicom(draft)
    material = Material(draft, volume, source, revision, wanted, language)
    documents = []
    with libraries_silent():
        for name, form in FORMATS.items():
            if name not in wanted or (form.needs_dicom and not has_images):
                continue
            _check_library(name, form)
            written = form.write(material)
            if written is not None:
                documents.append(_document(name, form, written, material))
    return tuple(documents)


def _check_library(name: str, form: Format) -> None:
    try:
        if form.library:
            import_module(form.library)
    except ImportError as error:
        raise ConfigError(
            f"The format '{name}' needs {form.library}; pip install 'mla_med[documents]', or leave it out.",
            code="LIBRARY_MISSING",
        ) from error


def _document(name: str, form: Format, written: Dataset | bytes, material: Material) -> Document:
    if isinstance(written, bytes):
        return Document(name, form.file_name, form.media_type, written)
    content = file_bytes(written)
    refuse_problems(content, material.draft, material.header)
    return Document(name, form.file_name, form.media_type, content, reference_of(written))


def revision_of(
    documents: Iterable[Document], reviewer: str, made_utc: str | None = None, number: int = 2
) -> Revision:
    """The revision that takes the place of these documents. `reviewer`: Family^Given. `made_utc`: ISO 8601;
    None: now."""
    references = tuple(d.reference for d in documents if d.reference is not None)
    if not references:
        raise OutputError(
            "A revision takes the place of DICOM documents, and none of these is one; write 'sr' too.",
            code="NO_PREDECESSOR",
        )
    return Revision(reviewer, made_utc or datetime.now(UTC).isoformat(timespec="seconds"), references, number)


def write_draft(
    draft: Draft,
    volume: Volume | Sequence[Volume] | None,
    out: Path,
    formats: Iterable[str] = DEFAULT_FORMATS,
    revision: Revision | None = None,
    language: str = "en",
) -> list[Path]:
    """The files that were written; see `write_documents`. draft.json is always among them."""
    asked = [*formats, "json"]
    documents = write_documents(draft, formats=asked, volume=volume, revision=revision, language=language)
    contents = {document.file_name: document.content for document in documents}
    is_new = not out.exists()
    try:
        return _write_all(contents, out)
    except OSError as error:
        if is_new:
            _remove_empty(out)
        raise OutputError(
            f"Cannot write the draft to {out}: {error.strerror or error}. "
            "Free some space there or choose a folder that can be written to; nothing was left behind."
        ) from error


def _is_dicom(draft: Draft) -> bool:
    return any(i.sop_class_uid for v in draft.verdicts for i in v.series.instances)


def _source(draft: Draft) -> Path:
    """The first file that is still there, of the chosen series if possible."""
    verdicts = sorted(draft.verdicts, key=lambda v: not v.chosen)
    for instance in (i for v in verdicts for i in v.series.instances):
        if is_file(instance.path):
            return instance.path
    raise OutputError(
        f"No image file of study {draft.provenance.study_uid} is there any more, and the SR takes the "
        "patient from one. Put the study back where it was read from, then write again."
    )


def _write_all(contents: dict[str, bytes], out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as folder:
        for name, content in contents.items():
            _write_durably(Path(folder) / name, content)
        # Whoever sees draft.json sees the whole set: the one of an earlier draft must not vouch for this.
        for name in ("draft.json", *(NAMES - contents.keys())):
            (out / name).unlink(missing_ok=True)
        return [(Path(folder) / name).replace(out / name) for name in contents]


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # some file systems tell of a full disk only here


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
