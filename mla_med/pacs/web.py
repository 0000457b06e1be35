"""DICOMweb (PS3.18) -> outcomes, files and counts: STOW-RS, WADO-RS and QIDO-RS as a client.

Bytes go out as they are: dicomweb-client is used for its transport and its multipart messages, with
its retries off, as the ledger retries. Addresses hold UIDs and dates, never a patient.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.session_utils import create_session
from dicomweb_client.web import DICOMwebClient
from urllib3.exceptions import HTTPError, NewConnectionError

from mla_med.errors import ConfigError, PacsError
from mla_med.ledger.nouns import Kind, Outcome
from mla_med.pacs.find import Found, Told, find_since
from mla_med.pacs.letter import Letter, check_uid, only_uids
from mla_med.pacs.peer import Answer, SeriesCount
from mla_med.pacs.settings import Credentials, PacsSettings
from mla_med.pacs.status import DENIED, SUCCESS, UNPROVEN, of_dimse, of_http

_DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_JSON = "application/dicom+json"
_PAGE = 200
"""Studies; a server that computes what it tells of each is slow."""
_CHUNK = 2**16
_SLOWEST = 2**12
"""Bytes a second of a series: what comes slower does not come."""

# (0008,1199) ReferencedSOPSequence, (0008,1198) FailedSOPSequence, (0008,1155) ReferencedSOPInstanceUID,
# (0008,1197) FailureReason: PS3.18 annex I.2
_REFERENCED, _FAILED, _UID, _REASON = "00081199", "00081198", "00081155", "00081197"
_STUDY, _SERIES, _MODALITY, _COUNT = "0020000D", "0020000E", "00080060", "00201209"
_INSTANCE = "00080018"
_MODALITIES = "00080061"


class WebPeer:
    commits = False

    def __init__(self, settings: PacsSettings, credentials: Credentials, url: str = ""):
        self._url = (url or settings.dicomweb_url).rstrip("/")
        if credentials != Credentials() and not _is_private(self._url):
            raise ConfigError(
                "Credentials would cross the network in the clear: give dicomweb_url as https://.",
                code="CREDENTIALS_EXPOSED",
            )
        self._settings = settings
        self._credentials = credentials
        self._local = threading.local()  # a session is not made for several threads

    # Out

    def store(self, letters: Sequence[Letter]) -> list[Outcome]:
        answers = self._post(letters)
        if isinstance(answers, dict):
            return [answers.get(letter.uid, UNPROVEN) for letter in letters]
        if len(letters) > 1 and (answers.kind is Kind.PERMANENT or answers.reason == DENIED[403]):
            # one that the PACS cannot take, or not from us, must not keep its neighbours from it
            return [outcome for letter in letters for outcome in self.store([letter])]
        return [answers] * len(letters)

    def _post(self, letters: Sequence[Letter]) -> dict[str, Outcome] | Outcome:
        """By UID, or of the request as a whole."""
        boundary = _boundary(letters)
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        body = self._client()._encode_multipart_message([letter.content for letter in letters], kind)
        try:
            response = self._ask("POST", "/studies", {"Content-Type": kind, "Accept": _JSON}, data=body)
        except requests.RequestException as error:
            return _why(error)
        answers = _store_answers(response)
        if answers:
            return answers
        return of_http(response.status_code)

    def fetch(self, letters: Sequence[Letter]) -> list[Answer]:
        return [self._fetch(letter) for letter in letters]

    def _fetch(self, letter: Letter) -> Answer:
        place = f"/studies/{letter.study_uid}/series/{letter.series_uid}/instances/{letter.uid}"
        try:
            response = self._get(place, _DICOM)
        except requests.RequestException as error:
            return _why(error)
        if response.status_code in (404, 410):
            return None
        if response.status_code != 200:
            outcome = of_http(response.status_code)
            # that it cannot be read says nothing of whether it is stored
            kind = outcome.kind if outcome.kind is Kind.DENIED else Kind.UNKNOWN
            return Outcome(kind, f"READ_{outcome.reason}")
        try:
            return next(self._parts(response), None)
        except PacsError as error:
            return Outcome(Kind.UNKNOWN, error.code)

    def confirm(self, letters: Sequence[Letter]) -> list[Outcome]:
        return [SUCCESS] * len(letters)  # DICOMweb has no more to ask for

    # In

    def find_studies(self, first: date, modalities: Sequence[str]) -> list[str]:
        found: Found = {}
        for modality in modalities:
            found |= find_since(first, date.today(), partial(self._studies, modality))
        return list(found)

    def _studies(self, modality: str, when: dict[str, str]) -> Told:
        told = self._pages(when | {"ModalitiesInStudy": modality}, modality)
        if told.whole or len(told.found) < _PAGE:
            return told
        # Orthanc 1.10 knows an offset, but not beside this key
        further = self._pages(when, modality)
        return Told(told.found | further.found, whole=further.whole)

    def _pages(self, match: dict[str, str], modality: str) -> Told:
        """PS3.18 8.3.4.4: limit and offset. Who does not say what a study holds is believed."""
        seen: Found = {}
        found: Found = {}
        brought = 0
        while True:
            page = self._query("/studies", match | {"limit": str(_PAGE), "offset": str(len(seen))})
            with _as_pacs_error():
                told = {_text(item, _STUDY): _values(item, _MODALITIES) for item in page}
                ours = [uid for uid, held in told.items() if not held or modality in held]
            is_new = bool(told.keys() - seen.keys())
            brought += is_new
            seen |= dict.fromkeys(told)
            found |= dict.fromkeys(only_uids(ours))
            if not is_new or len(page) < _PAGE:
                return Told(found, whole=brought > 1)

    def count(self, study_uid: str) -> list[SeriesCount]:
        fields = {"includefield": _COUNT}
        found = self._query(f"/studies/{check_uid(study_uid)}/series", fields)
        with _as_pacs_error():
            return [self._counted(study_uid, item) for item in found]

    def _counted(self, study_uid: str, item: dict[str, Any]) -> SeriesCount:
        """Who does not count (PS3.18 lets a server leave it out) is asked for the instances."""
        series_uid, number = check_uid(_text(item, _SERIES)), _text(item, _COUNT)
        instances = int(number) if number else self._count_instances(study_uid, series_uid)
        return SeriesCount(series_uid, _text(item, _MODALITY), instances)

    def _count_instances(self, study_uid: str, series_uid: str) -> int:
        seen: set[str] = set()
        while True:
            asked = {"limit": str(_PAGE), "offset": str(len(seen))}
            page = self._query(f"/studies/{study_uid}/series/{series_uid}/instances", asked)
            fresh = {_text(item, _INSTANCE) for item in page} - seen
            seen |= fresh
            if not fresh or len(page) < _PAGE:
                return len(seen)

    def retrieve(self, study_uid: str, series_uid: str, write: Callable[[bytes], None]) -> None:
        place = f"/studies/{check_uid(study_uid)}/series/{check_uid(series_uid)}"
        with _as_pacs_error(), self._get(place, _DICOM, stream=True) as response:
            if response.status_code != 200:
                raise _unanswered("The PACS does not hand over a series", response.status_code)
            for part in self._parts(response, stream=True):
                write(bytes(part))

    def echo(self) -> None:
        self._query("/studies", {"limit": "1"})

    def delete(self, letters: Sequence[Letter]) -> bool:
        """Where a PACS allows it (PS3.18 has no such service for studies); False where it does not."""
        client, gone = self._client(), True
        for letter in letters:
            place = f"/studies/{letter.study_uid}/series/{letter.series_uid}/instances/{letter.uid}"
            try:
                response = client._session.delete(self._url + place, timeout=self._settings.timeout_s)
            except requests.RequestException:
                return False
            gone = gone and response.status_code in (200, 202, 204)
        return gone

    def _query(self, place: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        with _as_pacs_error():
            response = self._get(place, _JSON, parameters)
            if response.status_code == 204:
                return []
            if response.status_code != 200:
                raise _unanswered("The PACS does not answer a query", response.status_code)
            return json.loads(response.content)

    def _get(
        self, place: str, accept: str, parameters: dict[str, str] | None = None, *, stream: bool = False
    ) -> requests.Response:
        # compressed, a stream could go on without a byte of content
        headers = {"Accept": accept} | ({"Accept-Encoding": "identity"} if stream else {})
        return self._ask("GET", place, headers, stream, params=parameters)

    def _ask(
        self, method: str, place: str, headers: dict[str, str], stream: bool = False, **more: Any
    ) -> requests.Response:
        """Of what is no `stream` the whole answer, in time; a stream in what time its bytes may take."""
        timeout_s = self._settings.timeout_s
        response = self._client()._session.request(
            method,
            self._url + place,
            headers=headers,
            timeout=timeout_s,
            stream=True,
            allow_redirects=False,
            **more,
        )
        if stream:
            # what the library reads a stream by
            response.iter_content = partial(_within, response, timeout_s, _SLOWEST)  # type: ignore[method-assign]
        else:
            response._content = b"".join(_within(response, timeout_s))
        return response

    def _parts(self, response: requests.Response, stream: bool = False) -> Iterator[bytes]:
        if response.headers.get("Content-Type", "").startswith("application/dicom"):
            yield response.content  # a server that sends one instance bare
            return
        try:
            yield from (bytes(part) for part in self._client()._decode_multipart_message(response, stream))
        except ValueError:
            raise PacsError("The PACS's answer is no multipart message.", code="ANSWER_UNREADABLE") from None

    def _client(self) -> DICOMwebClient:
        if not hasattr(self._local, "client"):
            session = create_session()
            session.trust_env = False  # no proxy and no .netrc of whoever runs this
            settings, credentials = self._settings, self._credentials
            session.verify = settings.ca_file or True
            if settings.cert_file:
                session.cert = (settings.cert_file, settings.key_pem_file)
            if credentials.token:
                session.headers["Authorization"] = f"Bearer {credentials.token}"
            elif credentials.user:
                session.auth = (credentials.user, credentials.password)
            client = DICOMwebClient(self._url, session=session, timeout=settings.timeout_s)
            client.set_http_retry_params(retry=False)
            self._local.client = client
        return self._local.client


def _within(
    response: requests.Response, seconds: float, least: float = 0.0, chunk_size: int = _CHUNK
) -> Iterator[bytes]:
    """The time-out of a session is for each byte: who sends one now and then would hold a thread for ever.
    The answer may take longer by a second for every `least` bytes of it."""
    until = time.monotonic() + seconds
    with response:
        try:
            while part := response.raw.read1(chunk_size, decode_content=True):
                came = time.monotonic()
                if came > until:
                    raise requests.ReadTimeout()
                yield part
                # what is done with it takes none of the time of who sends it
                until += time.monotonic() - came + (len(part) / least if least else 0.0)
        except HTTPError as error:
            raise requests.ConnectionError(error) from error


def _is_private(url: str) -> bool:
    """Encrypted, or on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost")


def _boundary(letters: Sequence[Letter]) -> str:
    """A line that is in none of the documents."""
    number = 0
    while any(f"mla_med_{number}".encode() in letter.content for letter in letters):
        number += 1
    return f"mla_med_{number}"


def _store_answers(response: requests.Response) -> dict[str, Outcome]:
    """What the store says of each instance, whatever the status of the whole: a 200 may reference none,
    and a 409 some (PS3.18 10.5.3)."""
    try:
        answer = json.loads(response.content)
        referenced, failed = _sequence(answer, _REFERENCED), _sequence(answer, _FAILED)
        found = {_text(item, _UID): of_dimse(int(_text(item, _REASON) or 0xC000)) for item in failed}
        # never both: what is named as failed is not stored
        return {_text(item, _UID): SUCCESS for item in referenced} | found
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}


def _sequence(item: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    return _values(item, tag)


def _text(item: dict[str, Any], tag: str) -> str:
    values = _values(item, tag)
    return str(values[0]) if values else ""


def _values(item: dict[str, Any], tag: str) -> list[Any]:
    return item.get(tag, {}).get("Value", [])


def _unanswered(what: str, status: int) -> PacsError:
    hint = "Check dicomweb_url."
    if status in DENIED:
        hint = (
            "It does not know our user and password or token, or does not let them do this: mend "
            "credentials_file or MLA_MED_PACS_*, or their rights there."
        )
    return PacsError(f"{what} ({status}). {hint}", code=DENIED.get(status, f"HTTP_{status}"))


@contextmanager
def _as_pacs_error() -> Iterator[None]:
    try:
        yield
    except requests.RequestException as error:
        code = _why(error).reason
    except (ValueError, TypeError, AttributeError, KeyError):
        code = "ANSWER_UNREADABLE"
    else:
        return
    # the library's own words hold the address with its parameters
    raise PacsError("The PACS does not answer, or not as DICOMweb does. Check [pacs].", code=code)


def _why(error: requests.RequestException) -> Outcome:
    """Before anything was sent it is a failure; after that nobody knows."""
    if isinstance(error, requests.exceptions.SSLError):
        # a stream may break after the last byte, too; with a certificate that is not right nothing began
        began = not isinstance(_cause(error), ssl.SSLCertVerificationError)
        return Outcome(Kind.UNKNOWN if began else Kind.TRANSIENT, "TLS")
    if isinstance(error, requests.ConnectTimeout):
        return Outcome(Kind.TRANSIENT, "CONNECT")
    if isinstance(error, requests.Timeout):
        return Outcome(Kind.UNKNOWN, "TIMEOUT")
    if isinstance(_reason(error), NewConnectionError):
        return Outcome(Kind.TRANSIENT, "CONNECT")
    return Outcome(Kind.UNKNOWN, "CONNECTION_LOST")


def _reason(error: requests.RequestException) -> Any:
    """What urllib3 says."""
    return getattr(error.args[0], "reason", None) if error.args else None


def _cause(error: requests.RequestException) -> Any:
    """What urllib3 was told."""
    reason = _reason(error)
    return reason.args[0] if isinstance(reason, HTTPError) and reason.args else reason
