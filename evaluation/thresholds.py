"""NAME=VALUE -> a score that must not be worse, for exit codes. Knows no files."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Scores
from mla_med.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score that must not be worse than this."""

    name: str
    value: float

    def missed(self, scores: Scores) -> str:
        """In words; empty where it is kept."""
        found = scores.value_of(self.name)
        if found is None:
            known = ", ".join(row.score.name for row in scores.rows)
            raise ConfigError(f"No score '{self.name}'; there are: {known}.", code="SCORE_UNKNOWN")
        value, higher_is_better = found
        kept = value >= self.value if higher_is_better else value <= self.value
        if kept:  # NaN keeps nothing
            return ""
        bound = "least" if higher_is_better else "most"
        return f"{self.name} is {value:.4g}, and was to be at {bound} {self.value:g}"


def read_threshold(text: str) -> Threshold:
    """From NAME=VALUE."""
    name, _, value = text.rpartition("=")
    try:
        return Threshold(name.strip(), float(value))
    except ValueError as error:
        raise ConfigError(f'{text!r} is no threshold; write "NAME=VALUE", as "BLEU-4=0.2".') from error
