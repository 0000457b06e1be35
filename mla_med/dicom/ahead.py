"""What a draft of a study will ask a reader for -> answers that are there when it asks.

So the next study is read while the model works on another. Knows which series are chosen and read; knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mla_med.dicom.select import choose_series
from mla_med.dicom.study import only_study
from mla_med.dicom.volume import read_volume
from mla_med.errors import MlaMedError


class Ahead:
    """A reader that answers at once what it was asked before: so the next study is read while the model
    works on another, though drafting reads as it goes."""

    def __init__(self, call: Callable[..., Any]):
        self._call = call
        self._known: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = []

    def read(self, studies: Sequence[Any], examination: str) -> None:
        """What a draft of it will ask for. A failure is left for the draft to meet, and to judge."""
        with suppress(MlaMedError):
            study = only_study(studies)
            verdicts = self._remember(choose_series, study, examination)
            for verdict in verdicts:
                if verdict.chosen:
                    self._remember(read_volume, verdict.series)

    def _remember(self, read: Callable[..., Any], *args: Any) -> Any:
        answer = self._call(read, *args)
        self._known.append((read, args, answer))
        return answer

    def __call__(self, read: Callable[..., Any], *args: Any) -> Any:
        for number, (known, given, answer) in enumerate(self._known):
            if known is read and given == args:
                del self._known[number]  # a volume is large, and asked for once
                return answer
        return self._call(read, *args)
