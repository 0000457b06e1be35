"""Pieces of work that threads bring one at a time -> done several at once, by whichever of them comes first.

Nobody waits for a batch to be full: who finds nothing under work takes what is there, and what comes
meanwhile is the next batch. So batches grow by themselves where the work is slower than what brings it.
Knows neither studies nor models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mla_med.errors import MlaMedError

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class _Brought(Generic[Piece, Answer]):
    piece: Piece
    alone: bool
    answer: Future[Answer] = field(default_factory=Future)


class Batches(Generic[Piece, Answer]):
    def __init__(
        self,
        work: Callable[[Sequence[Piece]], Sequence[Answer | MlaMedError]],
        most: int,
        alike: Callable[[Piece, Piece], bool] = lambda one, other: True,
    ):
        """`work` is never called twice at once, with `most` pieces that are `alike` at most; an error in the
        place of an answer is raised where that piece was brought."""
        self._work = work
        self._most = most
        self._alike = alike
        self._free = threading.Lock()
        self._changing = threading.Lock()
        self._waiting: list[_Brought[Piece, Answer]] = []

    def __call__(self, piece: Piece, alone: bool = False) -> Answer:
        """`alone`: in a batch of one."""
        brought: _Brought[Piece, Answer] = _Brought(piece, alone)
        with self._changing:
            self._waiting.append(brought)
        while not brought.answer.done():
            with self._free:
                # while this thread waited for its turn, another may have done its piece too
                if not brought.answer.done():
                    self._do(self._take())
        return brought.answer.result()

    def _take(self) -> list[_Brought[Piece, Answer]]:
        """The oldest, and what goes with it."""
        with self._changing:
            first, *others = self._waiting
            fit = [one for one in others if not one.alone and self._alike(first.piece, one.piece)]
            taken = [first] if first.alone else [first, *fit[: self._most - 1]]
            self._waiting = [one for one in self._waiting if one not in taken]
            return taken

    def _do(self, taken: Sequence[_Brought[Piece, Answer]]) -> None:
        try:
            answers = self._work([one.piece for one in taken])
        except BaseException as error:  # whatever it is, it is theirs who wait for it
            for one in taken:
                one.answer.set_exception(error)
            return
        for one, answer in zip(taken, answers, strict=True):
            if isinstance(answer, MlaMedError):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
