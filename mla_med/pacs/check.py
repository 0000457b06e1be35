"""A PACS -> what of it works, step by step, with a phantom that is nobody: what a hospital runs on day one.

Stores four slices and a draft of a study of its own, counts, reads back, compares, and deletes where
the PACS allows it. Knows no patient and touches no other study.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from mla_med.documents.sr import draft_to_sr
from mla_med.errors import PacsError
from mla_med.ledger.nouns import Kind, Outcome
from mla_med.pacs.letter import Letter, difference, read_letter
from mla_med.pacs.peer import Peer
from mla_med.pacs.web import WebPeer
from mla_med.types import Draft, Gate, Instance, Provenance, Reason, Series, SeriesVerdict

DATE = "20000101"
"""Of the phantom: so old that no pull of the last days takes it for a patient, where it cannot be removed."""
PATIENT = "MLA_MED^SELFTEST"
SLICES = 4
WORDS = "Self-test, no patient: ≥ 3 mm ± 0.5 µm, 肺结节, “شريحة”"
"""What a PACS that is not clean in UTF-8 changes."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    passed: bool
    code: str = ""
    words: str = ""


def check_pacs(peer: Peer) -> Iterator[Step]:
    """One step after the other; stops where the next ones would only repeat the failure."""
    steps: tuple[tuple[str, Callable[[], str]], ...]
    phantom = _Phantom()
    steps = (
        ("connect", lambda: _answers(peer)),
        ("query", lambda: f"{len(peer.find_studies(phantom.made.date(), ('CT',)))} studies of today"),
        ("store images", lambda: _stored(peer, phantom.images)),
        ("count images", lambda: _counted(peer, phantom)),
        ("read images back", lambda: _equal(peer, phantom.images)),
        ("store a draft", lambda: _stored(peer, [phantom.draft])),
        ("read the draft back", lambda: _equal(peer, [phantom.draft])),
        ("store it again", lambda: _once(peer, phantom)),
    )
    if peer.commits:
        steps = (*steps, ("commit the draft", lambda: _committed(peer, phantom)))
    stored = False
    for name, step in steps:
        try:
            words = step()
        except PacsError as error:
            yield Step(name, False, error.code, str(error))
            break
        stored = stored or name == "store images"
        yield Step(name, True, words=words)
    if stored:
        yield _removed(peer, phantom)


def _answers(peer: Peer) -> str:
    peer.echo()
    return ""


def _stored(peer: Peer, letters: list[Letter]) -> str:
    outcomes = peer.store(letters)
    bad = [outcome for outcome in outcomes if outcome.kind is not Kind.DELIVERED]
    if bad:
        raise PacsError("The PACS does not store it, or does not say that it did.", code=bad[0].reason)
    return f"{len(letters)} stored"


def _counted(peer: Peer, phantom: _Phantom) -> str:
    counts = [c for c in peer.count(phantom.study_uid) if c.modality == "CT"]
    number = sum(c.instances for c in counts)
    if number != SLICES:
        raise PacsError(
            f"The PACS counts {number} of {SLICES} images: completeness could not be told by its counts.",
            code="COUNT_DIFFERS",
        )
    return f"{number} counted"


def _equal(peer: Peer, letters: list[Letter]) -> str:
    for letter, answer in zip(letters, peer.fetch(letters), strict=True):
        if answer is None or isinstance(answer, Outcome):
            raise PacsError(
                "What was stored cannot be read back, so nothing would count as delivered.",
                code="NOT_FOUND" if answer is None else answer.reason,
            )
        if why := difference(letter.content, answer):
            raise PacsError("What comes back is not what was sent.", code=why)
    return f"{len(letters)} equal"


def _once(peer: Peer, phantom: _Phantom) -> str:
    _stored(peer, [phantom.draft])
    number = sum(c.instances for c in peer.count(phantom.study_uid) if c.modality == "SR")
    if number != 1:
        raise PacsError(f"The same document stored twice is there {number} times.", code="DUPLICATE")
    return "still one"


def _committed(peer: Peer, phantom: _Phantom) -> str:
    (outcome,) = peer.confirm([phantom.draft])
    if outcome.kind is not Kind.DELIVERED:
        raise PacsError(
            "The PACS does not commit to what it stores, or reports on an association of its own, which "
            "nobody here takes: nothing would count as delivered. Set commitment to false.",
            code=outcome.reason,
        )
    return "committed"


def _removed(peer: Peer, phantom: _Phantom) -> Step:
    if isinstance(peer, WebPeer) and peer.delete([phantom.draft, *phantom.images]):
        return Step("remove the phantom", True, words="nothing is left")
    words = (
        f"The PACS does not delete for us: patient {PATIENT}, one study of {DATE}, stays. Delete it there."
    )
    return Step("remove the phantom", True, "LEFT_BEHIND", words)


class _Phantom:
    """A ball in air, four slices, and the refusal to draft it."""

    def __init__(self) -> None:
        self.study_uid = _new_uid()
        self._series_uid = _new_uid()
        self.made = datetime.now(UTC)
        images = [self._image(k) for k in range(SLICES)]
        self.images = [read_letter(_bytes(image)) for image in images]
        with TemporaryDirectory(prefix="mla_med-") as folder:
            path = Path(folder) / "1.dcm"
            path.write_bytes(self.images[0].content)
            self.draft = read_letter(_bytes(draft_to_sr(self._draft(path), path)))

    def _image(self, k: int) -> Dataset:
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SpecificCharacterSet = "ISO_IR 192"
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = _new_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = self.study_uid, self._series_uid
        image.StudyDate = image.SeriesDate = image.ContentDate = DATE
        image.StudyTime = image.SeriesTime = image.ContentTime = self.made.strftime("%H%M%S")
        image.Modality, image.Manufacturer = "CT", "mla_med"
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        image.PatientName, image.PatientID = PATIENT, "MLA_MED_SELFTEST"
        image.PatientBirthDate = image.PatientSex = image.AccessionNumber = image.StudyID = ""
        image.ReferringPhysicianName = ""
        image.StudyDescription = "Self-test, no patient"
        image.SeriesNumber, image.InstanceNumber = 1, k + 1
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [-32, -32, 5 * k]
        image.PixelSpacing, image.SliceThickness = [1, 1], 5
        image.FrameOfReferenceUID = self._series_uid
        image.Rows = image.Columns = 64
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.RescaleIntercept, image.RescaleSlope = -1024, 1
        y, x = np.mgrid[-32:32, -32:32]
        image.PixelData = np.where(x * x + y * y < 400, 1064, 24).astype("<u2").tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.preamble = bytes(128)
        return image

    def _draft(self, path: Path) -> Draft:
        instances = tuple(Instance(i.uid, i.sop_class_uid, path) for i in self.images)
        series = Series(self._series_uid, "CT", "", "", ("DERIVED", "SECONDARY", "AXIAL"), instances)
        reason = Reason("SELF_TEST", WORDS)
        return Draft(
            report=None,
            gate=Gate(False, (reason,)),
            verdicts=(SeriesVerdict(series, None, reason),),
            modal_weights={},
            provenance=Provenance(
                "self-test", "1", "0" * 64, self.study_uid, (self._series_uid,), self.made.isoformat()
            ),
        )


def _new_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def _bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
