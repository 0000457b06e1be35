"""Phantoms' truths -> every document of them, both languages and examinations, refusals and revisions.

    DOCUMENT_DRAFTS=100 python -m pytest tests/test_documents_phantom.py -s

The bar: dciodvfy finds no error in any of 100 drafts, and no check of ours does either.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter

import pytest
from phantom_drafts import phantom_draft
from pydicom import dcmread

from mla_med.documents.check import cross_check, has_validator, validator_errors
from mla_med.documents.envelope import libraries_silent, read_header
from mla_med.documents.fhir import problems_in
from mla_med.documents.write import DICOM, FORMATS, revision_of, write_documents

pytest.importorskip("reportlab")
pytest.importorskip("fhir.resources")

DRAFTS = int(os.environ.get("DOCUMENT_DRAFTS", "5"))
SEEDS = [*range(DRAFTS - 1), 9] if DRAFTS < 10 else [*range(DRAFTS)]
REVISED_UTC = "2026-11-05T10:00:00+00:00"


@pytest.mark.skipif(not has_validator(), reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("seed", SEEDS)
def test_every_document_of_a_phantom_draft_is_sound(seed, tmp_path):
    draft = phantom_draft(seed, tmp_path)
    first = write_documents(draft, formats=FORMATS)
    revision = revision_of(first, "Reviewer^Rolf", REVISED_UTC)
    revised = write_documents(draft, formats=FORMATS, revision=revision)
    with libraries_silent():
        header = read_header(draft.verdicts[0].series.instances[0].path, draft.provenance)
        for document in (*first, *revised):
            assert not faults(document, draft, header), document.format
    uids = [d.reference.sop_instance_uid for d in (*first, *revised) if d.reference]
    assert len(set(uids)) == len(uids)
    if draft.report is None:
        assert {d.format for d in first} == set(FORMATS) - {"seg", "pm"}
    COUNTED.update(d.format for d in (*first, *revised))


COUNTED: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def figures():
    yield
    words = ", ".join(f"{form} {n}" for form, n in sorted(COUNTED.items()))
    print(
        f"\n{len(SEEDS)} drafts, {sum(COUNTED.values())} documents without an error: {words}", file=sys.stderr
    )


def faults(document, draft, header) -> list[str]:
    if document.media_type == DICOM:
        found = [f"{p.code}: {p.words}" for p in cross_check(document.content, draft, header)]
        return [*found, *validator_errors(document.content), *_flags(dcmread(io.BytesIO(document.content)))]
    if document.format == "fhir":
        return problems_in(json.loads(document.content))
    if document.format == "hl7":
        return hl7_faults(document.content)
    return []


def _flags(dataset) -> list[str]:
    """The document walked to its leaves."""
    values = [str(element.value) for element in dataset.iterall() if element.VR == "CS"]
    return [value for value in values if value in ("VERIFIED", "FINAL")]


def hl7_faults(content: bytes) -> list[str]:
    """Shape by hl7apy where it is installed; statuses always."""
    rows = [line.split("|") for line in content.decode().split("\r") if line]
    statuses = {r[25] for r in rows if r[0] == "OBR"} | {r[11] for r in rows if r[0] == "OBX"}
    found = [] if statuses == {"P"} else [f"statuses {statuses}"]
    try:
        from hl7apy.parser import parse_message
    except ImportError:
        return found
    return found if parse_message(content.decode()).validate() else [*found, "shape"]
