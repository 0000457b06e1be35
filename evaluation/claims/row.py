"""A claim -> what was measured beside its control, over seeds, and whether the target is met.

A row says what it measures, against which control of equal budget, and from which value on it is met;
`measure` does it for one seed. Every seed that is done lies on disk and is not measured again, unless its
settings have changed. What cannot be measured yet says why, and counts as not met. Knows no particular
claim.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.errors import MlaMedError
from mla_med.files import write_text

SEEDS = (0, 1, 2)
QUICK_SEEDS = (0,)
Say = Callable[[str], None]


class NotMeasured(MlaMedError):
    """Something that the row needs is not there."""

    code = "NOT_MEASURED"


@dataclass(frozen=True, slots=True)
class Target:
    """One number of a claim, and from where on it is met."""

    name: str
    bar: float
    unit: str = ""
    """What stands behind the number: "x", "%", "points"."""
    at_least: bool = True
    """Or at most."""
    strictly: bool = False
    """The bar itself is not enough."""
    missing: str = "not measured"
    """What a seed without a number means."""

    @property
    def words(self) -> str:
        sign = (">" if self.strictly else "≥") if self.at_least else ("<" if self.strictly else "≤")
        return f"{self.name} {sign} {show(self.bar)}{_unit(self.unit)}"

    def is_met(self, value: float) -> bool:
        if value == self.bar:
            return not self.strictly
        return value > self.bar if self.at_least else value < self.bar


@dataclass(frozen=True, slots=True)
class Job:
    """One seed of a row."""

    seed: int
    quick: bool
    sizes: Mapping[str, Any]
    work: Path
    """A folder of this row for what is made on the way."""
    world: Path
    """A folder for what rows share: phantoms."""
    data: Path
    """A folder of real texts and images; it may not be there."""
    corpus: Path
    """Of phantoms; it may not be there."""
    say: Say = lambda words: None

    @property
    def folder(self) -> Path:
        """Of this seed in these sizes: what was begun with others is not gone on with."""
        return self.work / f"seed-{self.seed}-{digest_of(self.sizes)}"


@dataclass(frozen=True, slots=True)
class Measured:
    values: Mapping[str, float]
    """By the name of the target."""
    arms: Mapping[str, Mapping[str, float]]
    """By arm, what was measured of it: ours, the control, and what else helps to judge."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    """On which this seed was measured."""


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    claim: str
    """As the articles print it, or whose bar it is."""
    measured_as: str
    control: str
    """What stands beside ours, and in what the budgets are equal."""
    targets: tuple[Target, ...]
    sizes: Callable[[bool], Mapping[str, Any]]
    """How large, by whether it is the quick run."""
    measure: Callable[[Job], Measured]


@dataclass(frozen=True, slots=True)
class Held:
    """A target and what came out."""

    target: Target
    seeds: tuple[float, ...]

    @property
    def value(self) -> float:
        return float(np.mean(self.seeds)) if self.seeds else math.nan

    @property
    def ci95(self) -> tuple[float, float]:
        return interval(self.seeds)

    @property
    def is_met(self) -> bool:
        return bool(self.seeds) and self.target.is_met(self.value)

    @property
    def is_unsure(self) -> bool:
        """The interval reaches over the bar."""
        low, high = self.ci95
        return not math.isnan(low) and self.target.is_met(low) != self.target.is_met(high)


@dataclass(frozen=True, slots=True)
class Result:
    row: Row
    seeds: tuple[int, ...]
    measured: tuple[Measured, ...]
    why_not: str = ""
    seconds: float = 0.0

    @property
    def held(self) -> tuple[Held, ...]:
        return tuple(Held(t, tuple(m.values[t.name] for m in self.measured)) for t in self.row.targets)

    @property
    def is_met(self) -> bool:
        return bool(self.measured) and all(one.is_met for one in self.held)

    @property
    def verdict(self) -> str:
        if not self.measured:
            return "not measured"
        return "met" if self.is_met else "missed"


def digest_of(sizes: Mapping[str, Any]) -> str:
    return sha256(json.dumps(dict(sizes), sort_keys=True).encode()).hexdigest()[:8]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean over seeds, by Student's t; NaN of fewer than two."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan, math.nan
    mean, half = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half *= float(t.ppf(0.975, len(values) - 1))
    return mean - half, mean + half


def this_machine() -> dict[str, Any]:
    import torch

    from evaluation.selection import processor

    return {
        "processor": processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def gain(ours: float, control: float) -> float:
    """Relative, in per cent."""
    return 100 * (ours / control - 1) if control else math.nan


def run_row(
    row: Row,
    seeds: Sequence[int],
    quick: bool,
    out: Path,
    data: Path,
    corpus: Path,
    say: Say = lambda words: None,
) -> Result:
    """What is there of it, and what is missing."""
    sizes = _sizes(row, quick)
    measured, seconds = [], 0.0
    for seed in seeds:
        kept = _kept(row, seed, sizes, out)
        if kept is None:
            say(f"{row.key}, seed {seed}")
            began = time.perf_counter()
            work = out / "work"
            job = Job(seed, quick, sizes, work / row.key, work / "world", data, corpus, say)
            try:
                one = row.measure(job)
            except NotMeasured as error:
                return Result(row, tuple(seeds), (), str(error))
            kept = {
                "seed": seed,
                "sizes": sizes,
                "seconds": round(time.perf_counter() - began, 1),
                **_plain(asdict(replace(one, machine=this_machine()))),
            }
            path = _path(row, seed, out)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        measured.append(Measured(_numbers(kept["values"]), kept["arms"], kept["facts"], kept["machine"]))
        seconds += kept["seconds"]
    return Result(row, tuple(seeds), tuple(measured), seconds=seconds)


def is_whole(row: Row, seeds: Sequence[int], quick: bool, out: Path) -> bool:
    """Every seed lies there."""
    return all(_kept(row, seed, _sizes(row, quick), out) is not None for seed in seeds)


def _kept(row: Row, seed: int, sizes: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    path = _path(row, seed, out)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return kept if kept is not None and kept["sizes"] == sizes else None


def _path(row: Row, seed: int, out: Path) -> Path:
    return out / "rows" / row.key / f"seed-{seed}.json"


def _sizes(row: Row, quick: bool) -> dict[str, Any]:
    """As JSON gives them back."""
    return json.loads(json.dumps(dict(row.sizes(quick))))


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def to_dict(result: Result) -> dict[str, Any]:
    row = result.row
    return _plain(
        {
            "key": row.key,
            "claim": row.claim,
            "measured_as": row.measured_as,
            "control": row.control,
            "verdict": result.verdict,
            "why_not": result.why_not,
            "seconds": round(result.seconds, 1),
            "seeds": list(result.seeds) if result.measured else [],
            "targets": [
                {
                    "name": one.target.name,
                    "bar": one.target.bar,
                    "unit": one.target.unit,
                    "at_least": one.target.at_least,
                    "value": one.value,
                    "ci95": list(one.ci95),
                    "by_seed": list(one.seeds),
                    "met": one.is_met,
                }
                for one in result.held
            ],
            "arms": [dict(m.arms) for m in result.measured],
            "facts": dict(result.measured[0].facts) if result.measured else {},
            "machines": machines_of([result]),
        }
    )


def machines_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each once."""
    found = (dict(one.machine) for result in results for one in result.measured)
    return [json.loads(words) for words in dict.fromkeys(json.dumps(one) for one in found)]


# In words


def machine_words(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine['threads']} thread(s), torch {machine['torch']}"


def show(value: float | None, digits: int = 3) -> str:
    if value is None or math.isnan(value):
        return "–"
    if value == int(value) or abs(value) >= 100 or abs(value) < 5e-4:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def shown(one: Held) -> str:
    """Value and interval; where seeds have no number, why."""
    if missing := sum(map(math.isnan, one.seeds)):
        return f"{one.target.missing} ({missing} of {len(one.seeds)} seeds)"
    low, high = one.ci95
    ci = "" if math.isnan(low) else f" [{show(low)}, {show(high)}]"
    return f"{show(one.value)}{_unit(one.target.unit)}{ci}"
