"""Draft -> PDF pages, and those encapsulated in DICOM: for viewers that show no structured report.

A4, the notice and the patient on every page, fonts embedded. A character that no font here can draw is
an error, never a box. The words are those of the Basic Text SR, which machines should read instead; what
stands around them is in the language of the report.
Knows no volume and no pictures: those are in draft.html.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from mla_med.documents.envelope import (
    MANUFACTURER,
    Kind,
    Revision,
    cited,
    class_of,
    envelope,
    finish,
    made_at,
    predecessors,
)
from mla_med.documents.text import HASH_DIGITS, HEADINGS, NOTICE, as_said, comparison_lines, complaint_lines
from mla_med.documents.words import TAGS, day, page_language, say
from mla_med.errors import OutputError
from mla_med.report.reasons import value_in_language
from mla_med.types import Draft

ENCAPSULATED_PDF = Kind("pdf", EncapsulatedPDFStorage, "DOC", 9002, "pages")
REPORT = CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")

FONTS = (
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/usr/share/fonts/truetype/droid/DroidSansFallback.ttf",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
)
"""Where Debian puts TrueType fonts that may be embedded, Chinese first; the Latin one comes with ReportLab.
(Noto CJK has PostScript outlines, which ReportLab cannot embed.)"""
LATIN = "Vera"

RIGHT_TO_LEFT = ("R", "AL")
"""Bidirectional classes of scripts that need shaping, which ReportLab does not do."""

PATIENT_LINES = (
    ("Patient", "PatientName"),
    ("ID", "PatientID"),
    ("Born", "PatientBirthDate"),
    ("Sex", "PatientSex"),
    ("Study", "StudyDate"),
    ("Accession", "AccessionNumber"),
)


@dataclass(frozen=True, slots=True)
class Paper:
    """The words of the pages, before any layout."""

    running: str
    """On top of every page, below the notice."""
    sections: tuple[tuple[str, tuple[str, ...]], ...]
    origin: str
    language: str


def encapsulated_pdf(draft: Draft, header: Dataset, revision: Revision | None, pages: bytes) -> Dataset:
    """PS3.3 A.45.1; modality DOC, which viewers open (OT they do not). `pages`: draft_to_pdf."""
    document = envelope(draft, header, ENCAPSULATED_PDF, revision)
    document.ConversionType = "WSD"
    document.AcquisitionDateTime = ""
    document.BurnedInAnnotation = "YES"  # the patient's name is on the pages
    document.VerificationFlag = "UNVERIFIED"
    document.DocumentTitle = NOTICE
    document.ConceptNameCodeSequence = [REPORT]
    document.SourceInstanceSequence = _sources(draft)
    if revision is not None:
        document.PredecessorDocumentsSequence = predecessors(draft, ENCAPSULATED_PDF, revision)
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocumentLength = len(pages)
    document.EncapsulatedDocument = pages + b"\0" * (len(pages) % 2)
    return finish(document, draft.provenance)


def _sources(draft: Draft) -> list[Dataset]:
    """What the draft cites; where it cites nothing, the first image of each series that it is about."""
    classes = class_of(draft)
    uids = list(cited(draft.report.findings)) if draft.report else []
    used = [v.series.instances for v in draft.verdicts if v.chosen or draft.report is None]
    uids = uids or [instances[0].sop_instance_uid for instances in used if instances]
    items = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = classes[uid], uid
        items.append(item)
    return items


def draft_to_pdf(
    draft: Draft, header: Dataset, revision: Revision | None = None, language: str = "en"
) -> bytes:
    """The pages alone; the same draft gives the same bytes. `language`: of a refusal; a report brings its
    own."""
    paper = _paper(draft, header, revision, page_language(draft, language))
    pages = _lay_out(paper, total=0)
    return _lay_out(paper, total=pages.count(b"/Type /Page\n"))


def _paper(draft: Draft, header: Dataset, revision: Revision | None, language: str) -> Paper:
    report = draft.report
    if report is None:
        reasons = [f"{r.code}: {as_said(r.code, r.words, language)}" for r in draft.gate.reasons]
        sections = [("No draft", reasons)]
    else:
        lines = (
            [report.technique],
            [s.text for s in report.sentences],
            [s.text for s in report.impression],
            comparison_lines(draft),
            complaint_lines(draft),
        )
        sections = list(zip(HEADINGS, lines, strict=True))
    patient = {name: _shown(header.get(keyword)) for name, keyword in PATIENT_LINES}
    patient["Sex"] = value_in_language(patient["Sex"], language)
    return Paper(
        running=" · ".join(f"{say(name, language)}: {value}" for name, value in patient.items()),
        sections=tuple((say(heading, language), tuple(lines)) for heading, lines in sections if any(lines)),
        origin=_origin(draft, header, revision, language),
        language=language,
    )


def _shown(value: Any) -> str:
    text = day(str(value or "").strip())
    return " / ".join(part.replace("^", " ").strip() for part in text.split("=") if part) or "-"


def _origin(draft: Draft, header: Dataset, revision: Revision | None, language: str) -> str:
    provenance = draft.provenance
    written = say(
        "Written by {model} (weights {weights}). Unverified and preliminary, {made}. Study {uid}.", language
    ).format(
        model=f"{provenance.model_name} {provenance.model_version}",
        weights=provenance.weights_sha256[:HASH_DIGITS],
        made=made_at(draft, header, revision).isoformat(sep=" ", timespec="minutes"),
        uid=provenance.study_uid,
    )
    if revision is None:
        return written
    replaced = ", ".join(one.sop_instance_uid for one in revision.of_class(EncapsulatedPDFStorage))
    if revision.reviewer is None:
        changed = say("Drafted anew from all images of the study; takes the place of {uids}.", language)
    else:
        changed = say("Reviewed by {name}, who has not verified it; takes the place of {uids}.", language)
    return f"{written} {changed.format(name=_shown(revision.reviewer), uids=replaced)}"


def _lay_out(paper: Paper, total: int) -> bytes:
    from reportlab.lib.colors import HexColor
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.lib.units import mm
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph

    wrap = "CJK" if paper.language == "zh" else None
    body = ParagraphStyle("body", fontName=LATIN, fontSize=10, leading=14.5, spaceAfter=3, wordWrap=wrap)
    heading = ParagraphStyle(
        "heading", body, fontSize=11.5, leading=16, spaceBefore=9, textColor=HexColor("#1d3557")
    )
    small = ParagraphStyle(
        "small", body, fontSize=7.5, leading=10, textColor=HexColor("#555555"), wordWrap="CJK"
    )
    notice = ParagraphStyle(
        "notice", body, fontSize=12, leading=15, alignment=1, textColor=HexColor("#ffffff")
    )
    width, height = A4
    notice_words = say(NOTICE, paper.language)

    def on_page(canvas: Any, page: Any) -> None:
        canvas.setFillColor(HexColor("#b00020"))
        canvas.rect(0, height - 11 * mm, width, 11 * mm, stroke=0, fill=1)
        _draw(canvas, Paragraph(_markup(notice_words), notice), 18 * mm, height - 3 * mm, width - 36 * mm)
        _draw(canvas, Paragraph(_markup(paper.running), small), 18 * mm, height - 14 * mm, width - 36 * mm)
        canvas.line(18 * mm, height - 24 * mm, width - 18 * mm, height - 24 * mm)
        page_of = say("Page {n} of {pages}", paper.language).format(n=page.page, pages=total)
        foot = f"{notice_words}   {page_of}"
        _draw(canvas, Paragraph(_markup(foot), small), 18 * mm, 13 * mm, width - 36 * mm)

    file = io.BytesIO()
    document = BaseDocTemplate(
        file,
        pagesize=A4,
        title=NOTICE,
        author=MANUFACTURER,
        creator=MANUFACTURER,
        lang=TAGS[paper.language],
        pageCompression=1,
        invariant=1,  # no time of printing: the same draft gives the same bytes
    )
    frame = Frame(18 * mm, 18 * mm, width - 36 * mm, height - 44 * mm, 0, 0, 0, 0)
    document.addPageTemplates(PageTemplate(frames=[frame], onPage=on_page))
    story: list[Any] = []
    for title, lines in paper.sections:
        story += [Paragraph(_markup(title), heading), *(Paragraph(_markup(line), body) for line in lines)]
    document.build(
        [*story, Paragraph(_markup(paper.origin), ParagraphStyle("origin", small, spaceBefore=14))]
    )
    return file.getvalue()


def _draw(canvas: Any, paragraph: Any, left: float, top: float, width: float) -> None:
    _, height = paragraph.wrap(width, 1000)
    paragraph.drawOn(canvas, left, top - height)


def _markup(text: str) -> str:
    """Runs of characters, each in the first font that can draw them."""
    runs: list[tuple[str, str]] = []
    for character in text:
        font = runs[-1][0] if character in " \n\t" and runs else _font_of(character)
        if runs and runs[-1][0] == font:
            runs[-1] = (font, runs[-1][1] + character)
        else:
            runs.append((font, character))
    return "".join(f'<font name="{font}">{_escaped(words)}</font>' for font, words in runs)


def _escaped(words: str) -> str:
    return escape(words).replace("\t", " ").replace("\n", "<br/>")


def _font_of(character: str) -> str:
    if character in "\n\t":
        return LATIN
    if unicodedata.bidirectional(character) not in RIGHT_TO_LEFT:
        for name, glyphs in _fonts():
            if ord(character) in glyphs:
                return name
    raise OutputError(
        f"No font on this machine draws {character!r} (U+{ord(character):04X}) on a PDF page. Install one "
        "(Debian: fonts-droid-fallback for Chinese, fonts-dejavu-core for Greek and Cyrillic), or leave out "
        "the PDF; the other documents keep every character.",
        code="FONT_MISSING",
    )


@cache
def _fonts() -> Sequence[tuple[str, Iterable[int]]]:
    """Name and code points of every font that is here, registered with ReportLab."""
    import reportlab
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    own = Path(reportlab.__file__).parent / "fonts" / "Vera.ttf"
    found = []
    for path in (own, *(Path(font) for font in FONTS)):
        if path.is_file():
            font = TTFont(path.stem, str(path))
            pdfmetrics.registerFont(font)
            found.append((path.stem, frozenset(font.face.charToGlyph)))
    return tuple(found)
