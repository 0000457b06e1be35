"""Values of several rounds -> median, lowest and highest; and beside what was wanted, whether it is met.

Everybody who is compared takes turns within a round, and the ratio is taken within it: a busy machine is busy
for all. Knows no bench.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        known = sorted(values)
        return cls(median(known), known[0], known[-1])

    @classmethod
    def of_ratios(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """Of each round of one by the same round of the other."""
        return cls.of(a / b for a, b in zip(over, under, strict=True))

    def times(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.lowest * factor, self.highest * factor)

    def to_text(self) -> str:
        return f"{_short(self.median)} ({_short(self.lowest)} to {_short(self.highest)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    measured: Spread
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        value = self.measured.median
        return value <= self.wanted if self.at_most else value >= self.wanted


def targets_table(targets: Iterable[Target]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| target | median (lowest to highest) | wanted | met |", "|---|---|---|---|"]
    for target in targets:
        wanted = f"at {'most' if target.at_most else 'least'} {target.wanted:g}"
        met = "yes" if target.met else "no"
        lines.append(f"| {target.name} | {target.measured.to_text()} | {wanted} | {met} |")
    return lines
