"""What delivery and retrieval need of a PACS, whatever it speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from mla_med.ledger.nouns import Outcome
from mla_med.pacs.letter import Letter

DOCUMENT_MODALITIES = frozenset(("SR", "KO", "PR", "DOC", "SEG", "REG", "RWV", "FID", "PLAN", "OT"))


@dataclass(frozen=True, slots=True)
class SeriesCount:
    series_uid: str
    modality: str
    instances: int
    """As the PACS counts them."""


Answer = bytes | Outcome | None
"""Of a fetch: the stored file, None where there is none, or why it could not be told."""


class Peer(Protocol):
    @property
    def commits(self) -> bool:
        """Does `confirm` ask for anything?"""

    def store(self, letters: Sequence[Letter]) -> list[Outcome]:
        """What the PACS says of each. DELIVERED means that it says so, not that it is so."""

    def fetch(self, letters: Sequence[Letter]) -> list[Answer]:
        """Each as it is stored."""

    def confirm(self, letters: Sequence[Letter]) -> list[Outcome]:
        """What a site asks for beyond reading back, of what was read back equal."""

    def find_studies(self, first: date, modalities: Sequence[str]) -> list[str]:
        """UIDs of studies from this day on, all of them (find.py). PacsError if it cannot be asked."""

    def count(self, study_uid: str) -> list[SeriesCount]: ...

    def retrieve(self, study_uid: str, series_uid: str, write: Callable[[bytes], None]) -> None:
        """Hands over one file after the other. PacsError if they stop coming."""

    def echo(self) -> None:
        """PacsError if it does not answer."""


def images(counts: Sequence[SeriesCount], modalities: Sequence[str]) -> Iterator[SeriesCount]:
    """The series that a draft is made from: our own documents in a study must not make it a new one."""
    return (c for c in counts if c.modality in modalities)
