"""Slots of legal texts and a decoder -> for each text the likeliest legal one, greedily, many slots at a
time.

Every slot is guessed, and the decoder reads the guesses of several slots at once. Where it prefers what was
guessed, the guess stands; at the first place where it does not, its choice is taken, and what it preferred
further on is the next guess (Santilli et al., ACL 2023, Jacobi decoding; Fu et al., ICML 2024). So slots
whose wording does not hang on those before are written side by side, and the text is that of greedy writing,
token for token: nothing is kept that was not chosen after the very tokens that stand before it.

Knows machines and logits; knows no runtime.
"""

# B texts of a batch, T tokens that are read at once, W wanted logits of a text, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mla_med.model.slots import SlotMachine, Written

LEAST = -1e4
"""What a legal token counts at least: at minus infinity it would tie with the forbidden ones, and a text
below -1e9 with the beams that transformers has not filled yet."""
AHEAD = 8
"""So many slots with a choice are read at once: more are guessed in vain."""


class Reader(Protocol):
    """A decoder that reads a batch of texts, and keeps what it read in a cache of static size."""

    def read(
        self, ids: Sequence[Sequence[int]], first: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> Sequence[np.ndarray]:
        """Tokens of each text from the place `first` on, over what was read there before -> for each text
        the logits (W, V) after those of `wanted`, places among its new tokens; more rows only fill."""


def filled(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of unlike length, filled behind with 0."""
    out = np.zeros((len(rows), max(1, *map(len, rows))), np.int64)
    for row, values in enumerate(rows):
        out[row, : len(values)] = values
    return out


@dataclass(slots=True)
class _Text:
    """One text on its way."""

    machine: SlotMachine
    leaves: list[int]
    """The wording that is guessed for each slot, or already known."""
    done: list[int] = field(default_factory=list)
    """The tokens of the slots before `slot`."""
    slot: int = 0
    """The first that is not known to its end."""
    inside: int = 0
    """So many tokens of it are known."""
    read: int = 0
    """So many tokens, the start among them, were read."""
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    """Slot, choice in it, and place in the text, of what is read now."""

    def ask(self, bos: int, ahead: int) -> list[int]:
        """What to read next, up to the last choice of the next slots; nothing where all is known."""
        self.asked = []
        slots, tokens = 0, [bos, *self.done]
        for slot in range(self.slot, len(self.leaves)):
            path = self.machine.tries[slot].paths[self.leaves[slot]]
            known = self.inside if slot == self.slot else 0
            choices = [n for n, choice in enumerate(path.choices) if choice.place >= known]
            # the token before a choice is one place further on: the start is none of the text
            self.asked += [(slot, n, len(tokens) - 1 + path.choices[n].place) for n in choices]
            tokens += path.tokens
            slots += bool(choices)
            if slots == ahead:
                break
        return tokens[self.read : self.asked[-1][2] + 1] if self.asked else []

    def take(self, logits_WV: np.ndarray) -> None:
        """The logits of what was asked, in its order; more rows only fill."""
        slot, _, place = self.asked[-1]
        read, sure, inside = place + 1, slot + 1, 0
        wrong = -1
        for (slot, n, place), logits_V in zip(self.asked, logits_WV, strict=False):
            if slot == wrong:
                continue  # behind another token than the one that was read
            trie = self.machine.tries[slot]
            choice = trie.paths[self.leaves[slot]].choices[n]
            best = choice.legal[int(_finite(logits_V[choice.columns]).argmax())]
            if best == choice.token:
                continue
            if wrong == -1:
                # all before stands, and so does this token
                read, sure, inside = place + 1, slot, choice.place + 1
            wrong = slot
            self.leaves[slot] = trie.first_leaf[trie.after[choice.node][best]]
        for slot in range(self.slot, sure):
            self.done += self.machine.tries[slot].paths[self.leaves[slot]].tokens
        self.read, self.slot, self.inside = read, sure, inside


def write_side_by_side(
    reader: Reader, machines: Sequence[SlotMachine], bos: int, ahead: int = AHEAD
) -> list[Written]:
    """Greedy: at each choice the likeliest legal token, and of equal ones the first."""
    texts = [_Text(machine, [trie.first_leaf[0] for trie in machine.tries]) for machine in machines]
    while True:
        ids = [text.ask(bos, ahead) for text in texts]
        if not any(ids):
            break
        first = [text.read for text in texts]
        wanted = [[place - text.read for _, _, place in text.asked] for text in texts]
        answers = reader.read(ids, first, wanted)
        for text, logits_WV in zip(texts, answers, strict=True):
            if text.asked:
                text.take(logits_WV)
    return [_to_written(text) for text in texts]


def _finite(logits: np.ndarray) -> np.ndarray:
    return np.nan_to_num(logits, nan=LEAST).clip(LEAST, -LEAST)


def _to_written(text: _Text) -> Written:
    tries = text.machine.tries
    wordings = tuple(trie.wording[leaf] for trie, leaf in zip(tries, text.leaves, strict=True))
    tokens = [t for trie, leaf in zip(tries, text.leaves, strict=True) for t in trie.paths[leaf].tokens]
    return Written("".join(wordings), wordings, (*tokens, text.machine.end), ())
