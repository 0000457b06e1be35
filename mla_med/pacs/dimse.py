"""DIMSE (PS3.7) -> outcomes, files and counts: C-STORE, C-GET, C-FIND, C-MOVE and C-ECHO as a client.

No listener of our own: what comes back comes by C-GET on the association that asked for it, or by
C-MOVE to a store beside us. pynetdicom gives an empty status for a time-out, an abort and a lost
answer alike, and no exception.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial

import pynetdicom._config
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    MRSpectroscopyStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from mla_med.dicom.header import MALFORMED
from mla_med.errors import PacsError
from mla_med.ledger.nouns import Kind, Outcome
from mla_med.pacs.find import Found, Told, find_since
from mla_med.pacs.letter import Letter, check_uid, only_uids, parse
from mla_med.pacs.peer import Answer, SeriesCount
from mla_med.pacs.settings import Credentials, PacsSettings, tls_context
from mla_med.pacs.status import SUCCESS, of_dimse
from mla_med.pacs.web import WebPeer

# what is asked for holds patients, and pynetdicom logs it at INFO (pynetdicom#911)
pynetdicom._config.LOG_REQUEST_IDENTIFIERS = False
pynetdicom._config.LOG_RESPONSE_IDENTIFIERS = False

IMAGE_CLASSES = (
    *(CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage),
    *(MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage),
    *(EnhancedMRColorImageStorage, MRSpectroscopyStorage, RawDataStorage, SecondaryCaptureImageStorage),
    *(MultiFrameGrayscaleByteSecondaryCaptureImageStorage, MultiFrameTrueColorSecondaryCaptureImageStorage),
    *(MultiFrameGrayscaleWordSecondaryCaptureImageStorage, MultiFrameSingleBitSecondaryCaptureImageStorage),
)
"""What series of CT and MR hold: a dose sheet that is not taken would keep the whole study from coming."""
_PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_ANY = [
    *_PLAIN,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    RLELossless,
]
_FIND = StudyRootQueryRetrieveInformationModelFind
_GET = StudyRootQueryRetrieveInformationModelGet
_MOVE = StudyRootQueryRetrieveInformationModelMove
_PENDING = (0xFF00, 0xFF01)
_ENDED_EARLY = (0xA700, 0xFE00)
"""Out of resources, and ended by a cancel that nobody sent: what came before is true (PS3.4 C.4.1.1.4)."""


class _RefusedError(Exception):
    """No association; nothing was sent."""

    def __init__(self, code: str):
        self.code = code


class DimsePeer:
    def __init__(self, settings: PacsSettings, credentials: Credentials | None = None):
        self._settings = settings
        self._tls = (tls_context(settings), settings.host) if settings.tls else None
        # a PACS with both is read back over DICOMweb: not every one offers C-GET
        self._web = WebPeer(settings, credentials or Credentials()) if settings.dicomweb_url else None
        self._beside = WebPeer(settings, Credentials(), settings.beside_url) if settings.move_to else None

    @property
    def commits(self) -> bool:
        return self._settings.commitment

    # Out

    def store(self, letters: Sequence[Letter]) -> list[Outcome]:
        classes = dict.fromkeys(letter.sop_class_uid for letter in letters)
        try:
            # with Verification, which everybody accepts, a class that is not accepted is not an abort
            contexts = [(Verification, _PLAIN), *((uid, _PLAIN) for uid in classes)]
            with self._associate(contexts) as association:
                return [self._store(association, letter) for letter in letters]
        except _RefusedError as error:
            return [Outcome(Kind.TRANSIENT, error.code)] * len(letters)

    def _store(self, association: Association, letter: Letter) -> Outcome:
        accepted = {str(c.abstract_syntax) for c in association.accepted_contexts}
        if letter.sop_class_uid not in accepted:
            if association.is_established:
                # the association's way to say 0122, SOP class not supported
                return Outcome(Kind.PERMANENT, "CLASS_NOT_ACCEPTED")
            return Outcome(Kind.TRANSIENT, "ASSOCIATION_LOST")
        if not association.is_established:
            return Outcome(Kind.TRANSIENT, "ASSOCIATION_LOST")
        try:
            answer = association.send_c_store(parse(letter.content))
        except (ValueError, RuntimeError):
            # no context with this transfer syntax, or the association went away in this moment
            return Outcome(Kind.UNKNOWN, "NOT_SENT")
        return of_dimse(answer.Status if "Status" in answer else None)

    def fetch(self, letters: Sequence[Letter]) -> list[Answer]:
        if not letters:
            return []
        if self._web is not None:
            return self._web.fetch(letters)
        got: dict[str, bytes] = {}
        classes = dict.fromkeys(letter.sop_class_uid for letter in letters)
        try:
            with self._associate_to_get(classes, lambda uid, file: got.update({uid: file})) as association:
                return [self._fetch(association, letter, got) for letter in letters]
        except _RefusedError as error:
            return [Outcome(Kind.UNKNOWN, f"READ_{error.code}")] * len(letters)

    def _fetch(self, association: Association, letter: Letter, got: dict[str, bytes]) -> Answer:
        query = _query(
            "IMAGE",
            StudyInstanceUID=letter.study_uid,
            SeriesInstanceUID=letter.series_uid,
            SOPInstanceUID=letter.uid,
        )
        try:
            code = _last_status(association.send_c_get(query, _GET))
        except (ValueError, RuntimeError):
            return Outcome(Kind.UNKNOWN, "READ_NOT_ACCEPTED")
        if letter.uid in got:
            return got[letter.uid]
        # Orthanc says 0xC000 or A701 of what it does not have, others a success with nothing in it
        if code == 0x0000:
            return None
        return (
            self._is_there(association, letter)
            if code is not None
            else Outcome(Kind.UNKNOWN, "READ_NO_STATUS")
        )

    def _is_there(self, association: Association, letter: Letter) -> Answer:
        query = _query(
            "IMAGE",
            StudyInstanceUID=letter.study_uid,
            SeriesInstanceUID=letter.series_uid,
            SOPInstanceUID=letter.uid,
        )
        try:
            found = list(association.send_c_find(query, _FIND))
        except (ValueError, RuntimeError):
            return Outcome(Kind.UNKNOWN, "READ_NOT_ACCEPTED")
        if any("Status" not in status for status, _ in found):
            return Outcome(Kind.UNKNOWN, "READ_NO_STATUS")
        there = any(item is not None and item.get("SOPInstanceUID") == letter.uid for _, item in found)
        # there, and not to be read
        return Outcome(Kind.UNKNOWN, "READ_REFUSED") if there else None

    def confirm(self, letters: Sequence[Letter]) -> list[Outcome]:
        """Storage commitment, where the site wants it: UNKNOWN of everything that is not committed in time,
        which is then looked for and asked about again."""
        if not self._settings.commitment:
            return [SUCCESS] * len(letters)
        transaction = f"2.25.{uuid.uuid4().int}"
        committed: set[str] = set()
        reported = threading.Event()

        def on_report(event: Event) -> tuple[int, None]:
            report = event.event_information
            if report.get("TransactionUID") != transaction:
                return 0x0115, None  # an argument that is none of ours (PS3.7 C.5.2)
            committed.update(
                str(i.ReferencedSOPInstanceUID) for i in report.get("ReferencedSOPSequence") or ()
            )
            return 0x0000, None

        def on_sent(event: Event) -> None:
            if isinstance(event.message, N_EVENT_REPORT_RSP):
                reported.set()  # not before: a release would overtake our answer

        try:
            with self._associate(
                [(StorageCommitmentPushModel, _PLAIN)],
                handlers=[(evt.EVT_N_EVENT_REPORT, on_report), (evt.EVT_DIMSE_SENT, on_sent)],
            ) as association:
                status, _ = association.send_n_action(
                    _commitment_of(letters, transaction),
                    1,
                    StorageCommitmentPushModel,
                    StorageCommitmentPushModelInstance,
                )
                if status.get("Status") != 0x0000:
                    return [Outcome(Kind.UNKNOWN, "COMMITMENT_REFUSED")] * len(letters)
                if not reported.wait(self._settings.timeout_s):
                    return [Outcome(Kind.UNKNOWN, "COMMITMENT_TIMEOUT")] * len(letters)
        except _RefusedError as error:
            return [Outcome(Kind.UNKNOWN, f"COMMITMENT_{error.code}")] * len(letters)
        except (ValueError, RuntimeError):
            return [Outcome(Kind.UNKNOWN, "COMMITMENT_REFUSED")] * len(letters)
        missing = Outcome(Kind.UNKNOWN, "NOT_COMMITTED")
        return [SUCCESS if letter.uid in committed else missing for letter in letters]

    # In

    def find_studies(self, first: date, modalities: Sequence[str]) -> list[str]:
        found: Found = {}
        for modality in modalities:
            found |= find_since(first, date.today(), partial(self._studies, modality))
        return list(found)

    def _studies(self, modality: str, when: dict[str, str]) -> Told:
        answers, status = self._ask(_query("STUDY", **when, ModalitiesInStudy=modality, StudyInstanceUID=""))
        if status not in (0x0000, *_ENDED_EARLY):
            raise _unanswered(_code_of(status))
        uids = only_uids(str(item.get("StudyInstanceUID", "")) for item in answers)
        return Told(dict.fromkeys(uids), status in _ENDED_EARLY)

    def count(self, study_uid: str) -> list[SeriesCount]:
        query = _query(
            "SERIES",
            StudyInstanceUID=check_uid(study_uid),
            SeriesInstanceUID="",
            Modality="",
            NumberOfSeriesRelatedInstances=None,
        )
        counts = []
        for item in self._find(query):
            try:  # a value is read when it is asked for
                number = item.get("NumberOfSeriesRelatedInstances")
                modality, uid = str(item.get("Modality", "")), str(item.get("SeriesInstanceUID", ""))
            except MALFORMED:
                raise _unanswered("ANSWER_UNREADABLE") from None
            check_uid(uid)
            # an optional key (PS3.4 C.6.1.1.4): who does not count is asked for the instances
            instances = int(number) if number is not None else self._count_instances(study_uid, uid)
            counts.append(SeriesCount(uid, modality, instances))
        return counts

    def _count_instances(self, study_uid: str, series_uid: str) -> int:
        query = _query("IMAGE", StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid, SOPInstanceUID="")
        return len(self._find(query))

    def retrieve(self, study_uid: str, series_uid: str, write: Callable[[bytes], None]) -> None:
        query = _query(
            "SERIES", StudyInstanceUID=check_uid(study_uid), SeriesInstanceUID=check_uid(series_uid)
        )
        if self._beside is not None:
            self._move(query)
            self._beside.retrieve(study_uid, series_uid, write)
            return
        try:
            with self._associate_to_get(IMAGE_CLASSES, lambda uid, file: write(file)) as association:
                code = _last_status(association.send_c_get(query, _GET))
        except _RefusedError as error:
            raise _unanswered(error.code) from None
        except (ValueError, RuntimeError):
            raise _unanswered("GET_NOT_ACCEPTED") from None
        if code != 0x0000:
            raise _unanswered(_code_of(code))

    def _move(self, query: Dataset) -> None:
        try:
            with self._associate([(_MOVE, _PLAIN)]) as association:
                code = _last_status(association.send_c_move(query, self._settings.move_to, _MOVE))
        except _RefusedError as error:
            raise _unanswered(error.code) from None
        except (ValueError, RuntimeError):
            raise _unanswered("MOVE_NOT_ACCEPTED") from None
        if code != 0x0000:
            raise _unanswered(_code_of(code))

    def echo(self) -> None:
        try:
            with self._associate([(Verification, _PLAIN)]) as association:
                answer = association.send_c_echo()
        except _RefusedError as error:
            raise _unanswered(error.code) from None
        if answer.get("Status") != 0x0000:
            raise _unanswered("NO_STATUS")

    # Associations

    def _find(self, query: Dataset) -> list[Dataset]:
        items, status = self._ask(query)
        if status != 0x0000:
            # half an answer looks like a small PACS
            raise _unanswered(_code_of(status))
        return items

    def _ask(self, query: Dataset) -> tuple[list[Dataset], int | None]:
        """-> what was told, and the last status; None where none came."""
        try:
            with self._associate([(_FIND, _PLAIN)]) as association:
                answers = list(association.send_c_find(query, _FIND))
        except _RefusedError as error:
            raise _unanswered(error.code) from None
        except (ValueError, RuntimeError):
            raise _unanswered("FIND_NOT_ACCEPTED") from None
        last = answers[-1][0] if answers else Dataset()
        items = [item for status, item in answers if status.get("Status") in _PENDING and item is not None]
        return items, last.get("Status")

    @contextmanager
    def _associate(
        self,
        contexts: Sequence[tuple[str, list[str]]],
        *,
        handlers: Sequence[tuple[evt.EventType, Callable]] = (),
        roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    ) -> Iterator[Association]:
        settings = self._settings
        ae = AE(ae_title=settings.ae_title)
        # pynetdicom waits for a connection for as long as the system does, unless it is told
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = settings.timeout_s
        for abstract, transfer in contexts:
            ae.add_requested_context(abstract, transfer)
        connected = threading.Event()
        association = ae.associate(
            settings.host,
            settings.port,
            ae_title=settings.called_ae_title,
            tls_args=self._tls,
            ext_neg=list(roles),
            evt_handlers=[(evt.EVT_CONN_OPEN, lambda _: connected.set()), *handlers],
        )
        if not association.is_established:
            if association.is_rejected:
                raise _RefusedError("ASSOCIATION_REJECTED")
            raise _RefusedError("ASSOCIATION_ABORTED" if connected.is_set() else "CONNECT")
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    @contextmanager
    def _associate_to_get(
        self, classes: Sequence[str] | dict[str, None], take: Callable[[str, bytes], None]
    ) -> Iterator[Association]:
        """`take` is called with the UID and the file of everything that comes."""

        def on_store(event: Event) -> int:
            assert isinstance(event.request, C_STORE)
            take(str(event.request.AffectedSOPInstanceUID), event.encoded_dataset())
            return 0x0000

        contexts = [(_GET, _PLAIN), (_FIND, _PLAIN), *((uid, _ANY) for uid in classes)]
        with self._associate(
            contexts,
            roles=[build_role(uid, scp_role=True) for uid in classes],
            handlers=[(evt.EVT_C_STORE, on_store)],
        ) as association:
            yield association


def _commitment_of(letters: Sequence[Letter], transaction: str) -> Dataset:
    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for letter in letters:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = letter.sop_class_uid, letter.uid
        request.ReferencedSOPSequence.append(item)
    return request


def _query(level: str, **keys: str | None) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _last_status(answers: Iterator[tuple[Dataset, Dataset | None]]) -> int | None:
    """None where the answer was lost."""
    code = None
    for status, _ in answers:
        code = status.get("Status")
    return code


def _code_of(status: int | None) -> str:
    return "NO_STATUS" if status is None else f"DIMSE_{status:04X}"


def _unanswered(code: str) -> PacsError:
    return PacsError(
        "The PACS does not answer over DIMSE as it should. Check host, port and AE titles in [pacs], "
        "and that it knows ours.",
        code=code,
    )
