"""Decisions -> a site's calibration, and an account of how drafts fare over time.

What reviewers kept, removed and added says whether a finding is called too often or too seldom here. Each
finding's log odds are moved by one number, the same for every patient: the order of patients stays as it
was, and thresholds move with it (a shift of prior odds: Saerens, Latinne, Decaestecker, Neural Computation
2002;14:21). The number is the most likely one under a normal prior around no change, so that a few
decisions move little. By command only, for a checkpoint in a folder of the site, and back to the byte.

Knows no networks and no patients. What it cannot know: a reviewer who accepts without looking confirms the
model in its mistakes, so shares of acceptance are no accuracy.
"""

# N decisions

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from mla_med.errors import CheckpointError, ConfigError
from mla_med.files import sync_folder
from mla_med.types import Presence

MIN_DECISIONS = 30
"""Of a finding, before anything is moved."""
PRIOR_SD = 1.0
"""Of the shift, in log odds: a change of prevalence by a factor of e is nothing unusual, by e³ it is."""
MAX_SHIFT = 2.0
KEPT = "calibration.json.before-review"
"""The bytes that `undo` puts back, with a number from 1 behind it."""
RECORD = "review-recalibration"
"""What was moved, and when: one with each of the numbers."""


@dataclass(frozen=True, slots=True)
class Shift:
    """What decisions say of one finding."""

    code: str
    log_odds: float
    """Positive: it is there more often than the model says, and is called from a lower probability on."""
    decisions: int
    removed: int
    added: int
    threshold: float
    moved_to: float


def shift_of(examples: Sequence[tuple[float, bool]]) -> float:
    """`examples`: calibrated probability that a finding is present, and whether the reviewer left it as
    present -> the shift of the log odds. More "present" never lowers it."""
    odds = [_log_odds(p) for p, _ in examples]
    low, high = -MAX_SHIFT, MAX_SHIFT
    for _ in range(60):  # the slope falls with the shift, so its root is found by halving
        middle = (low + high) / 2
        slope = sum(is_ - _sigmoid(z + middle) for z, (_, is_) in zip(odds, examples, strict=True))
        if slope - middle / PRIOR_SD**2 > 0:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 4)


def examples_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, bool]]]:
    """Per code. A draft that could not say gives no probability of presence, and a decision that cannot say
    no answer. Of a finding stated several times in one report the patient counts once."""
    found: dict[tuple[str, str], tuple[float, bool]] = {}
    for row in rows:
        if row["confidence"] is None or row["drafted"] not in (Presence.PRESENT, Presence.ABSENT):
            continue
        if row["decided"] == Presence.CANNOT_SAY:
            continue
        said = row["drafted"] == Presence.PRESENT
        p = row["confidence"] if said else 1 - row["confidence"]
        key = (row["code"], row["decision_id"])
        before = found.get(key, (p, False))
        found[key] = (max(before[0], p), before[1] or row["decided"] == Presence.PRESENT)
    by_code: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for (code, _), example in found.items():
        by_code[code].append(example)
    return dict(by_code)


def recalibrated(
    calibration: dict[str, Any], rows: Sequence[Mapping[str, Any]], min_decisions: int = MIN_DECISIONS
) -> tuple[dict[str, Any], tuple[Shift, ...]]:
    """calibration.json as it stands -> as decisions move it, and by how much. Codes with fewer decisions, and
    every key that says nothing of findings, stay as they are."""
    new = json.loads(json.dumps(calibration))
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counted[row["code"]][row["outcome"]] += 1
    shifts = []
    for code, examples in examples_of(rows).items():
        if code not in calibration["thresholds"] or len(examples) < min_decisions:
            continue
        shift = shift_of(examples)
        answer = new.get("answers", {}).get(code)
        slope = answer["slope"] if answer else 1.0
        old_threshold = calibration["thresholds"][code]
        new["thresholds"][code] = moved(old_threshold, shift, slope)
        if answer:
            answer["offset"] += shift
            for key in ("cut", "present_from", "absent_to"):
                answer[key] = moved(answer[key], shift, slope)
        shifts.append(
            Shift(
                code,
                shift,
                len(examples),
                counted[code]["removed"],
                counted[code]["added"],
                old_threshold,
                new["thresholds"][code],
            )
        )
    return new, tuple(shifts)


def moved(threshold: float, shift: float, slope: float) -> float:
    """The probability of the model at which the shifted log odds are what they were at `threshold`. Its ends
    stay: a threshold of 0 or 1 says that there were too few examples."""
    if not 0 < threshold < 1:
        return threshold
    return _sigmoid(_log_odds(threshold) - shift / slope)


def recalibrate(
    folder: Path, rows: Sequence[Mapping[str, Any]], made_utc: str | None = None
) -> tuple[Shift, ...]:
    """Moves the thresholds of a checkpoint folder and keeps the bytes of before beside them. Nothing is
    written where nothing moves."""
    path = folder / "calibration.json"
    old = _read(path)
    new, shifts = recalibrated(_parsed(path, old), rows)
    if not shifts:
        return ()
    number = len(_kept(folder)) + 1
    _write(folder / f"{KEPT}-{number}", old)
    record = {
        "made_utc": made_utc or datetime.now(UTC).isoformat(timespec="seconds"),
        "number": number,
        "shifts": {s.code: {"log_odds": s.log_odds, "decisions": s.decisions} for s in shifts},
    }
    _write(folder / f"{RECORD}-{number}.json", (json.dumps(record, indent=1) + "\n").encode())
    _write(path, (json.dumps(new, indent=1) + "\n").encode())
    return shifts


def read_calibration(folder: Path) -> dict[str, Any]:
    path = folder / "calibration.json"
    return _parsed(path, _read(path))


def undo_recalibration(folder: Path) -> None:
    """The last one is as if it had not been, to the byte."""
    kept = _kept(folder)
    if not kept:
        raise ConfigError(
            f"{folder} was never recalibrated from a review, or all of it was undone.", code="NOTHING_TO_UNDO"
        )
    _write(folder / "calibration.json", _read(kept[-1]))
    (folder / f"{RECORD}-{len(kept)}.json").unlink(missing_ok=True)
    kept[-1].unlink()


def own_copy(packaged: Path, folder: Path) -> Path:
    """A site's own copy of a packaged checkpoint: the package itself is never changed."""
    if folder.exists():
        raise ConfigError(f"{folder} is there already; give it as --checkpoint, or another --out.")
    part = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(packaged, part)
    return part.replace(folder)


def _kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{KEPT}-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
        assert isinstance(values["thresholds"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise CheckpointError(f"{path} is no calibration; copy the checkpoint again.") from None
    return values


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}. Is it a checkpoint folder?") from error


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, on the disk when it returns."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {path}: {error.strerror}.") from error


def _log_odds(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


# How drafts fare


@dataclass(frozen=True, slots=True)
class Share:
    """Of findings that a draft stated as present, or a reviewer did."""

    name: str
    kept: int
    changed: int
    removed: int
    added: int

    @property
    def total(self) -> int:
        return self.kept + self.changed + self.removed + self.added

    @property
    def accepted(self) -> float:
        return self.kept / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Wilson, J Am Stat Assoc 1927;22:209)."""
        return wilson(self.kept, self.total)


@dataclass(frozen=True, slots=True)
class Week:
    """One week of one finding, or of all."""

    start: str
    """The Monday, ISO 8601."""
    share: Share


@dataclass(frozen=True, slots=True)
class Account:
    """The drift page."""

    drafts: dict[str, int]
    """By decision: ACCEPTED, CHANGED, REJECTED."""
    refusals: dict[str, int]
    """Reason code of the gate -> decided drafts."""
    turnaround_h: tuple[float, float] | None
    """From the draft to the decision: median and 90th percentile."""
    reading_min: float | None
    """From the first look to the decision: median."""
    weeks: tuple[Week, ...]
    by_code: tuple[Share, ...]
    by_scanner: tuple[Share, ...]
    by_subgroup: tuple[Share, ...]
    by_week_and_code: dict[str, tuple[Week, ...]]


def account_of(decided: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Account:
    """`decided`: decisions that stand; `rows`: what became of their findings. What stayed absent is left
    out: it would hide the rest."""
    stated = [r for r in rows if Presence.PRESENT in (r["drafted"], r["decided"])]
    waited = sorted((d["at"] - d["drafted_at"]) / 3600 for d in decided if d["drafted_at"])
    looked = [(d["at"] - d["opened_at"]) / 60 for d in decided if d["opened_at"]]
    by_code = _shares(stated, "code")
    return Account(
        drafts=dict(Counter(d["decision"] for d in decided)),
        refusals=dict(Counter(d["refusal"] for d in decided if d["refusal"]).most_common()),
        turnaround_h=(median(waited), waited[math.ceil(0.9 * len(waited)) - 1]) if waited else None,
        reading_min=median(looked) if looked else None,
        weeks=_weeks(stated),
        by_code=by_code,
        by_scanner=_shares(stated, "scanner"),
        by_subgroup=_shares(stated, "subgroup"),
        by_week_and_code={s.name: _weeks([r for r in stated if r["code"] == s.name]) for s in by_code},
    )


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    if not total:
        return 0.0, 1.0
    p, zz = hits / total, z * z
    middle = (p + zz / (2 * total)) / (1 + zz / total)
    half = z * math.sqrt(p * (1 - p) / total + zz / (4 * total * total)) / (1 + zz / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _shares(rows: Sequence[Mapping[str, Any]], by: str) -> tuple[Share, ...]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row[by]][row["outcome"]] += 1
    shares = [_share(name, counted) for name, counted in counts.items()]
    return tuple(sorted(shares, key=lambda s: (-s.total, s.name)))


def _share(name: str, counted: Counter[str]) -> Share:
    return Share(name, counted["kept"], counted["changed"], counted["removed"], counted["added"])


def _weeks(rows: Sequence[Mapping[str, Any]]) -> tuple[Week, ...]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        day = datetime.fromtimestamp(row["at"], UTC).date()
        monday = day.fromordinal(day.toordinal() - day.weekday())
        counts[monday.isoformat()][row["outcome"]] += 1
    return tuple(Week(start, _share(start, counted)) for start, counted in sorted(counts.items()))
