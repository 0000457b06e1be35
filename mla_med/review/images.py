"""A draft and the folder of its study -> what the browser draws: evidence by sentence, slices, volumes.

A slice is read by itself, so that the first one shows before the others are read. Nothing is kept, neither
on disk nor in memory: images belong to the PACS. No address, name or answer holds a word about the patient:
a series is a number, and a volume is voxels with their place. Knows no sign-in, no audit and no HTML.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from nibabel.nifti1 import Nifti1Header
from PIL import Image

from mla_med.dicom.header import MALFORMED, Header, NotDicomError, read_headers
from mla_med.dicom.volume import read_slices, read_volume
from mla_med.documents.html import LUNG_FINDINGS, WINDOWS_HU
from mla_med.documents.json import told_name
from mla_med.documents.text import sentence_findings
from mla_med.errors import MlaMedError, SeriesError, StudyError
from mla_med.report.schema import schema_of
from mla_med.review.words import compared_term, said, say, term
from mla_med.types import Certificate, Draft, Evidence, Finding, Instance, Modality, Presence, Series, Volume

BONE_HU = (500.0, 2000.0)
"""Level and width."""
AUTO_PERCENTILES = (1.0, 99.5)
"""Of an MR, whose units mean nothing by themselves: what becomes black and what becomes white."""
SAMPLED_SLICES = 5
"""For the window of an MR that has not been read yet."""
AT_ONCE = 16
"""Slices that are read together, in threads; one by one takes five times as long."""
INT16 = np.iinfo(np.int16)
VOXELS_AT = 352
"""Where voxels begin in a NIfTI-1 file without extensions: 348 bytes of header, and four that say so."""
NOT_KEPT = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One series that the page can show."""

    series: Series
    kind: str
    """current or prior."""
    role: str
    chosen: bool
    certificate: Certificate | None
    """None: it is measured when it is read."""
    ordered: bool
    """Whether instance k is slice k, so that a slice can be read without the others."""


def series_of(draft: Draft) -> tuple[Shown, ...]:
    """What was drafted from, then what could have been, then the prior: their numbers in every address."""
    read = draft.report is not None
    verdicts = sorted((v for v in draft.verdicts if v.accepted), key=lambda v: not v.chosen)
    current = [
        Shown(v.series, "current", v.role, v.chosen, v.certificate, ordered=read and v.chosen)
        for v in verdicts
    ]
    earlier = draft.prior.series if draft.prior else ()
    return (*current, *(Shown(s, "prior", "", True, None, ordered=False) for s in earlier))


def evidence_of(draft: Draft, lang: str = "en", base: str = "") -> dict[str, Any]:
    """What the viewer asks for first; needs no image. `base`: the address of the draft, without a slash at
    the end. `lang`: of the page, for the names of windows and findings."""
    shown = series_of(draft)
    report = draft.report
    findings = report.findings if report else ()
    return {
        "series": [_series(k, one, lang, base) for k, one in enumerate(shown)],
        "findings": [_finding(n, f, draft, shown, lang) for n, f in enumerate(findings, start=1)],
        "sentences": _sentences(draft),
        "prior": _prior(draft, lang),
        "gate": {
            "accepted": draft.gate.accepted,
            "reasons": [{"code": r.code, "words": said(r.code, r.words, lang)} for r in draft.gate.reasons],
            "scores": dict(draft.gate.scores),
        },
        "modal_weights": dict(draft.modal_weights),
        "region_mm": draft.region_mm,
    }


def _series(k: int, one: Shown, lang: str, base: str) -> dict[str, Any]:
    certificate = one.certificate
    return {
        "k": k,
        "uid": one.series.series_uid,
        "description": one.series.description,
        "modality": one.series.modality,
        "kind": one.kind,
        "role": one.role,
        "chosen": one.chosen,
        "volume": f"{base}/volume/{k}.nii",
        "slices": f"{base}/slice/{k}/" if one.ordered else None,
        "shape": certificate.shape if certificate else None,
        "affine": certificate.affine if certificate else None,
        "windows": windows_of(one.series.modality, lang),
    }


def windows_of(modality: str, lang: str = "en") -> list[dict[str, Any]]:
    """Of a CT by name, in HU; an MR has one, which follows from its voxels: low and high are None."""
    if modality != Modality.CT:
        return [{"key": "auto", "name": "自动" if lang == "zh" else "Auto", "low": None, "high": None}]
    chinese = {"lung": "肺窗", "soft tissue": "纵隔窗", "bone": "骨窗"}
    english = {"lung": "Lung", "soft tissue": "Mediastinum", "bone": "Bone"}
    names = chinese if lang == "zh" else english
    return [
        {"key": key, "name": names[key], "low": level - width / 2, "high": level + width / 2}
        for key, (level, width) in {**WINDOWS_HU, "bone": BONE_HU}.items()
    ]


def _finding(n: int, finding: Finding, draft: Draft, shown: Sequence[Shown], lang: str) -> dict[str, Any]:
    assert draft.report is not None
    kind = schema_of(draft.report.examination).get(finding.code)
    measured = [c for c in (draft.prior.comparisons if draft.prior else ()) if c.is_of(finding)]
    compared = "; ".join(said("COMPARED", c.words, lang) for c in measured)
    return {
        "n": n,
        "code": finding.code,
        "term": term(draft.report.examination, finding.code, lang),
        "presence": finding.presence.value,
        "critical": bool(kind and kind.critical and finding.presence is Presence.PRESENT),
        "confidence": finding.confidence,
        "size_mm": finding.size_mm,
        "change": finding.change,
        "compared": compared or None,
        "window": "lung" if finding.code in LUNG_FINDINGS else "soft tissue",
        "evidence": None if finding.evidence is None else _evidence(finding.evidence, shown),
    }


def _evidence(evidence: Evidence, shown: Sequence[Shown]) -> dict[str, Any] | None:
    """Where it is to be seen; None where no series that can be shown is cited."""
    place = key_slice(evidence, shown)
    if place is None:
        return None
    return {
        "series": place[0],
        "slice": place[1],
        "sop_instance_uid": next(iter(evidence.sop_instance_uids), None),
        "box_mm": evidence.box_mm,
        "heat": [(*cell.box_mm, cell.weight) for cell in evidence.heat],
        "faithfulness": evidence.faithfulness,
        "faithfulness_rank": evidence.faithfulness_rank,
    }


def key_slice(evidence: Evidence, shown: Sequence[Shown]) -> tuple[int, int] | None:
    """Number of the series, and of the slice that is cited first, both from 0. The slices of a mosaic share
    one UID: of those the one in the middle of the box."""
    for k, one in enumerate(shown):
        if one.certificate is None or not one.ordered:
            continue
        places = [i for i, instance in enumerate(one.series.instances) if evidence.is_first(instance)]
        if places or not evidence.sop_instance_uids:
            middle = [*np.mean(evidence.box_mm, axis=0), 1.0]
            near = float((np.linalg.inv(np.array(one.certificate.affine)) @ middle)[2])
            places = places or list(range(one.certificate.shape[2]))
            return k, min(places, key=lambda i: abs(i - near))
    return None


def _sentences(draft: Draft) -> list[dict[str, Any]]:
    """Of the findings section, then of the impression, numbered on from 1."""
    report = draft.report
    if report is None:
        return []
    numbers = {id(f): n for n, f in enumerate(report.findings, start=1)}
    lines: list[dict[str, Any]] = []
    for section, sentences in (("findings", report.sentences), ("impression", report.impression)):
        for sentence, stated in zip(sentences, sentence_findings(sentences, report), strict=True):
            lines.append(
                {
                    "n": len(lines) + 1,
                    "section": section,
                    "text": sentence.text,
                    "codes": sentence.codes,
                    "findings": sorted({numbers[id(f)] for f in stated}),
                }
            )
    return lines


def _prior(draft: Draft, lang: str) -> dict[str, Any] | None:
    if draft.prior is None or draft.report is None:
        return None
    return {
        "study_uid": draft.prior.study_uid,
        "study_date": draft.prior.study_date,
        "comparisons": [
            {
                "code": c.code,
                "term": compared_term(draft.report.examination, c, lang),
                "change": c.change and say(c.change, lang),
                "words": said("COMPARED", c.words, lang),
            }
            for c in draft.prior.comparisons
        ],
    }


class StudyImages:
    """The images of one draft, where they lie now. Made for one request: it keeps open nothing."""

    def __init__(self, draft: Draft, folders: Sequence[Path]):
        self._shown = series_of(draft)
        self._folders = folders
        self._near = Path()  # where the last one lay: several series often hold the same file names

    def has_prior(self) -> bool:
        """Whether an image of the prior is at hand; by its UIDs, not by the name of a file."""
        earlier = [one.series for one in self._shown if one.kind == "prior" and one.series.instances]
        try:
            return any(self._find(series, series.instances[0]) for series in earlier)
        except SeriesError:
            return False

    def slice_png(self, k: int, i: int, low: float | None = None, high: float | None = None) -> bytes:
        """Slice i of series k in a window, as the radiological convention has it: 8 bits, for the eye."""
        one, certificate = self._certified(k)
        if not 0 <= i < certificate.shape[2]:
            raise SeriesError(
                f"Series {k} has slices 0 to {certificate.shape[2] - 1}, not {i}.", code="NO_SUCH_SLICE"
            )
        if low is None or high is None:
            low, high = self._auto_window(one, certificate)
        plane = turned(self._slices(one, certificate, [i])[:, :, 0], np.array(certificate.affine))
        grey = np.clip((plane - low) / max(high - low, 1e-6), 0, 1)
        file = io.BytesIO()
        Image.fromarray((grey * 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def volume(self, k: int) -> Iterator[bytes]:
        """Series k as an uncompressed int16 NIfTI, slice by slice. A CT is sent as it is read; an MR has to
        be read whole before it is known how its values fit."""
        if not 0 <= k < len(self._shown):
            raise SeriesError(
                f"This draft has {len(self._shown)} series, none of number {k}.", code="NO_SUCH_SERIES"
            )
        one = self._shown[k]
        if one.ordered and one.certificate is not None and one.series.modality == Modality.CT:
            return self._streamed(one, one.certificate)
        located = tuple(replace(i, path=self._find(one.series, i).path) for i in one.series.instances)
        return whole(read_volume(replace(one.series, instances=located)))

    def _streamed(self, one: Shown, certificate: Certificate) -> Iterator[bytes]:
        count = certificate.shape[2]
        # what is not at hand is said before an answer begins
        headers = [self._find(one.series, instance) for instance in one.series.instances]

        def parts() -> Iterator[bytes]:
            yield nifti_header(certificate.shape, np.array(certificate.affine), (0.0, 0.0))
            for start in range(0, count, AT_ONCE):
                yield _stored(read_slices(headers[start : start + AT_ONCE], certificate))

        return parts()

    def _certified(self, k: int) -> tuple[Shown, Certificate]:
        one = self._shown[k] if 0 <= k < len(self._shown) else None
        if one is None or one.certificate is None or not one.ordered:
            raise SeriesError(
                f"No slice of series {k} can be read by itself; ask for its volume.", code="NO_SUCH_SERIES"
            )
        return one, one.certificate

    def _slices(self, one: Shown, certificate: Certificate, which: Sequence[int]) -> np.ndarray:
        headers = [self._find(one.series, one.series.instances[i]) for i in which]
        return read_slices(headers, certificate)

    def _auto_window(self, one: Shown, certificate: Certificate) -> tuple[float, float]:
        if one.series.modality == Modality.CT:
            level, width = WINDOWS_HU["soft tissue"]
            return level - width / 2, level + width / 2
        count = certificate.shape[2]
        some = np.unique(np.linspace(0, count - 1, SAMPLED_SLICES + 2).astype(int)[1:-1])
        return auto_window(self._slices(one, certificate, some.tolist()))

    def _find(self, series: Series, instance: Instance) -> Header:
        """A draft keeps the name of a file, or its digest, and no folder; its UIDs tell the image."""
        paths = sorted(self._by_name.get(instance.path.name, ()), key=lambda path: path.parent != self._near)
        for path in paths:
            try:
                headers = read_headers(path)
            except (NotDicomError, OSError, *MALFORMED):
                continue
            for header in headers:
                same = header.sop_instance_uid == instance.sop_instance_uid and header.frame == instance.frame
                if same and header.series_uid == series.series_uid:
                    self._near = path.parent
                    return header
        raise SeriesError(
            f"An image that this draft was made from is not at hand any more ({instance.sop_instance_uid}). "
            "Read it in the PACS, or have the study pulled again.",
            code="IMAGES_NOT_AT_HAND",
        )

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for folder in self._folders:
            for at, _, names in os.walk(folder):
                for name in names:
                    for told in {name, told_name(name)}:
                        found.setdefault(told, []).append(Path(at, name))
        return found


def turned(slice_IJ: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Rows and columns of the picture: patient right or anterior at the left, anterior or head at the top."""
    across, up, flipped = plane_of(affine)
    plane = slice_IJ if across < up else slice_IJ.T
    plane = plane[:: -1 if flipped[0] else 1, :: -1 if flipped[1] else 1]
    return plane[::-1, ::-1].T


def plane_of(affine: np.ndarray) -> tuple[int, int, tuple[bool, bool]]:
    """Along which patient axis (x right, y anterior, z superior) the columns I and the rows J run nearest;
    and whether, of the two axes in the order of x, y, z, each is run against."""
    from nibabel.orientations import io_orientation

    orientation = io_orientation(affine)
    across, up = int(orientation[0, 0]), int(orientation[1, 0])
    flips = {across: orientation[0, 1] < 0, up: orientation[1, 1] < 0}
    first, second = sorted(flips)
    return across, up, (bool(flips[first]), bool(flips[second]))


def auto_window(voxels: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(voxels, AUTO_PERCENTILES)
    return float(low), float(high)


def whole(volume: Volume) -> Iterator[bytes]:
    """The NIfTI of a volume that is in memory; int16, scaled where whole numbers do not hold its values."""
    voxels = volume.voxels
    low, high = float(voxels.min()), float(voxels.max())
    fits = low >= INT16.min and high <= INT16.max and np.array_equal(voxels, np.rint(voxels))
    slope = 1.0 if fits or high == low else (high - low) / (INT16.max - INT16.min)
    intercept = 0.0 if fits else low - INT16.min * slope
    window = (0.0, 0.0) if volume.series.modality == Modality.CT else auto_window(voxels[::2, ::2])
    yield nifti_header(volume.certificate.shape, volume.affine, window, slope, intercept)
    for k in range(0, voxels.shape[2], AT_ONCE):
        yield _stored((voxels[:, :, k : k + AT_ONCE] - np.float32(intercept)) / np.float32(slope))


def _stored(slices_IJK: np.ndarray) -> bytes:
    """Columns run fastest (NIfTI-1). Overwrites what it is given."""
    np.rint(slices_IJK, out=slices_IJK)
    np.clip(slices_IJK, INT16.min, INT16.max, out=slices_IJK)
    return slices_IJK.astype("<i2").tobytes(order="F")


def nifti_header(
    shape: tuple[int, int, int],
    affine: np.ndarray,
    window: tuple[float, float],
    slope: float = 1.0,
    intercept: float = 0.0,
) -> bytes:
    """Place and scale, and no word. `window`: cal_min and cal_max, both 0 where the viewer knows better."""
    header = Nifti1Header()
    header.set_data_dtype(np.dtype("<i2"))
    header.set_data_shape(shape)
    header.set_zooms(tuple(float(z) for z in np.linalg.norm(affine[:3, :3], axis=0)))
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_data_offset(VOXELS_AT)
    header.set_slope_inter(slope, intercept)
    header["cal_min"], header["cal_max"] = window
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(VOXELS_AT - len(header.binaryblock))


def make_router(
    require_reader: Callable[..., Any],
    find_folders: Callable[[str], Sequence[Path]],
    find_draft: Callable[[str], Draft],
) -> APIRouter:
    """The routes of slices and volumes. `require_reader` lets nobody in who has not signed in; `find_draft`
    raises where there is none; `find_folders` is empty where its images are not kept here. Like the page's
    other refusals, those for the viewer are JSON with a code and words."""
    router = APIRouter(dependencies=[Depends(require_reader)])

    def images(draft_id: str) -> StudyImages:
        draft, folders = find_draft(draft_id), find_folders(draft_id)
        if not folders:
            raise SeriesError(
                "The images of this draft are not kept here. Read them in the PACS, or have the study pulled "
                "again.",
                code="IMAGES_NOT_AT_HAND",
            )
        return StudyImages(draft, folders)

    # not async: pixels are read in a thread, and the worklist goes on answering
    @router.get("/drafts/{draft_id}/slice/{k}/{i}.png")
    def slice_png(
        draft_id: str,
        k: int,
        i: int,
        low: float | None = Query(None, allow_inf_nan=False),
        high: float | None = Query(None, allow_inf_nan=False),
    ) -> Response:
        try:
            png = images(draft_id).slice_png(k, i, low, high)
        except (SeriesError, StudyError) as error:
            return _refused(error)
        return Response(png, media_type="image/png", headers=NOT_KEPT)

    @router.get("/drafts/{draft_id}/volume/{k}.nii")
    def volume(draft_id: str, k: int) -> Response:
        try:
            parts = images(draft_id).volume(k)
        except (SeriesError, StudyError) as error:
            return _refused(error)
        return StreamingResponse(parts, media_type="application/octet-stream", headers=NOT_KEPT)

    return router


def _refused(error: MlaMedError) -> Response:
    return JSONResponse({"code": error.code, "words": str(error)}, 404, headers=NOT_KEPT)
