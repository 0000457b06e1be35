"""Settings -> the peer and the ledger that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mla_med.ledger.ledger import Ledger
from mla_med.pacs.settings import Credentials, PacsSettings, read_ledger_secret

if TYPE_CHECKING:
    from mla_med.pacs.peer import Peer  # brings pydicom, and the verbs of the ledger need none


def make_peer(settings: PacsSettings, credentials: Credentials) -> Peer:
    if settings.protocol == "dimse":
        from mla_med.pacs.dimse import DimsePeer

        return DimsePeer(settings, credentials)
    from mla_med.pacs.web import WebPeer

    return WebPeer(settings, credentials)


def open_ledger(settings: PacsSettings) -> Ledger:
    return Ledger.open(settings.ledger_url, read_ledger_secret(settings))
