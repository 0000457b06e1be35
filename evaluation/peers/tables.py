"""Runs of several readers on one folder -> a table for each series: verdict, geometry, difference, cost, why.

What everybody is compared with is the NIfTI reference beside the folder, else what we read, else what
the first peer read. Knows what the names in a folder of failing series ask for; starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from evaluation.peers.compare import (
    NOTABLE_TILT_DEG,
    Case,
    Difference,
    Grid,
    difference,
    explain,
    tilt_kept_deg,
    to_frame,
    to_grids,
)
from evaluation.peers.facts import SeriesFacts
from evaluation.peers.references import find_references, references_of
from evaluation.peers.run import OURS, Cost, Found, Run, State

FAILING = "failing_series"
# What the test data of dicom2nifti ask for by the name of a folder, and our codes that say so.
ASKED: Mapping[str, tuple[str, ...]] = {
    "sliceincrement": ("UNEVEN_SPACING", "MISSING_SLICE"),
    "sliceorientation": ("MIXED_ORIENTATION",),
    "slicecount": ("TOO_FEW_SLICES",),
    "notavolume": ("NOT_A_VOLUME",),
    "gantrytilting": (),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One reader on one series."""

    reader: str
    verdict: str
    words: str = ""
    """What the reader says of it: the reason of a refusal, or its warnings."""
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    gap: Difference | None = None
    why: tuple[str, ...] = ()
    """Why it differs."""
    as_asked: bool | None = None
    cost: Cost | None = None
    is_basis: bool = False
    """It is what the others are compared with."""

    @property
    def accepted(self) -> bool:
        return self.shape is not None


@dataclass(frozen=True, slots=True)
class Table:
    """One series of a folder, or one of several volumes under its UID."""

    folder: str
    series: str
    """Which it is, in words that name no patient and no UID."""
    basis: str
    """What the readers are compared with."""
    basis_shape: tuple[int, ...] | None
    asked: str
    rows: tuple[Row, ...]


_Distance = tuple[bool, bool, float, float]


@dataclass(frozen=True, slots=True)
class _Dealt:
    """A volume, and how far it is from its target; of several the nearest is shown first."""

    distance: _Distance
    grid: Grid
    found: Found


@dataclass(slots=True)
class _Target:
    """What a table is about, while the readers' volumes are dealt out."""

    facts: SeriesFacts
    basis: str
    grid: Grid | None
    volumes: dict[str, list[_Dealt]] = field(default_factory=dict)
    """For each reader."""


def to_tables(
    folder: Path, name: str, facts: tuple[SeriesFacts, ...], runs: Sequence[Sequence[Run]]
) -> tuple[Table, ...]:
    """`runs`: for each reader its repeats; the volumes are those of the first, the costs the medians."""
    firsts = [repeats[0] for repeats in runs]
    costs = {repeats[0].reader: median_cost(repeats) for repeats in runs}
    targets = [target for series in facts for target in _targets(folder, series, facts, firsts)]
    for run in firsts:
        _deal(run, targets, facts)
    asked = _asked(folder)
    return tuple(
        Table(
            folder=name,
            series=_series_words(target, targets),
            basis=target.basis,
            basis_shape=target.grid.shape if target.grid else None,
            asked=asked,
            rows=tuple(row for run in firsts for row in _rows(run, target, facts, asked, costs[run.reader])),
        )
        for target in targets
    )


def median_cost(repeats: Iterable[Run]) -> Cost | None:
    costs = [run.cost for run in repeats if run.cost is not None]
    if not costs:
        return None
    return Cost(*(median(getattr(cost, name) for cost in costs) for name in Cost.__dataclass_fields__))


def _targets(
    folder: Path, series: SeriesFacts, facts: tuple[SeriesFacts, ...], runs: Sequence[Run]
) -> list[_Target]:
    references = references_of(series, find_references(folder))
    grids = [(f"reference {r.path.name}", to_frame(grid)) for r in references for grid in r.grids()]
    if not grids:
        # Every volume of ours is one to compare with, but of a peer only the first.
        ours = [run for run in runs if run.reader == OURS]
        grids = [(OURS, grid) for run in ours for grid in _grids_of(run, series, facts)]
    if not grids:
        grids = [(run.reader, grid) for run in runs for grid in _grids_of(run, series, facts)][:1]
    return [_Target(series, basis, grid) for basis, grid in grids] or [_Target(series, "nothing", None)]


def _grids_of(run: Run, series: SeriesFacts, facts: tuple[SeriesFacts, ...]) -> list[Grid]:
    return [
        to_frame(grid)
        for found in run.found
        if found.series_uid in ("", series.series_uid) or _is_unknown(found, facts)
        for grid in _to_grids(found, series)
        if len(grid.shape) == 3 and not grid.is_singular
    ]


def _is_unknown(found: Found, facts: Sequence[SeriesFacts]) -> bool:
    return found.series_uid not in {series.series_uid for series in facts}


def _to_grids(found: Found, series: SeriesFacts) -> list[Grid]:
    return to_grids(found.voxels(), found.affine, series.colour_planes)


def _deal(run: Run, targets: Sequence[_Target], facts: Sequence[SeriesFacts]) -> None:
    """Each target its nearest volume; what is left over, to the target that it is nearest to."""
    for own, volumes in _volumes_by_series(run, targets, facts):
        pairs = [
            (_distance(target.grid, grid), t, v)
            for t, target in enumerate(own)
            for v, (grid, _) in enumerate(volumes)
        ]
        waiting, filled = set(range(len(volumes))), set()
        for first in (True, False):
            for distance, t, v in sorted(pairs):
                if v in waiting and not (first and t in filled):
                    own[t].volumes.setdefault(run.reader, []).append(_Dealt(distance, *volumes[v]))
                    waiting.remove(v)
                    filled.add(t)


def _volumes_by_series(
    run: Run, targets: Sequence[_Target], facts: Sequence[SeriesFacts]
) -> list[tuple[list[_Target], list[tuple[Grid, Found]]]]:
    """The volumes of a reader with the targets that they may belong to."""
    groups: dict[str, list[tuple[Grid, Found]]] = {}
    for found in run.found:
        uid = "" if _is_unknown(found, facts) else found.series_uid
        series = next((f for f in facts if f.series_uid == uid), facts[0])
        groups.setdefault(uid, []).extend((grid, found) for grid in _to_grids(found, series))
    return [
        ([t for t in targets if uid in ("", t.facts.series_uid)], volumes) for uid, volumes in groups.items()
    ]


def _distance(target: Grid | None, grid: Grid) -> _Distance:
    if target is None:
        return True, True, 0.0, 0.0
    gap = difference(target, to_frame(grid, target))
    if gap.voxel is None or gap.corner_mm is None:
        return True, True, 0.0, 0.0
    return False, not gap.same_place, gap.voxel, gap.corner_mm


def _series_words(target: _Target, targets: Sequence[_Target]) -> str:
    facts = target.facts
    files = len({(image.file, image.sop_uid) for image in facts.images})
    words = (
        f"{facts.first.modality}, {len(facts.images)} images in {files} files, {facts.positions} positions"
    )
    uids = list(dict.fromkeys(t.facts.series_uid for t in targets))
    if len(uids) > 1:
        words = f"series {uids.index(facts.series_uid) + 1} of {len(uids)}: {words}"
    siblings = [t for t in targets if t.facts is facts]
    if len(siblings) > 1:
        number = next(k for k, t in enumerate(siblings) if t is target)
        words += f"; volume {number + 1} of {len(siblings)}"
    return words


def _asked(folder: Path) -> str:
    """The kind of a failing series, as the folder's name has it."""
    parts = folder.resolve().parts
    kinds = [b for a, b in pairwise(parts) if a == FAILING and b in ASKED]
    return kinds[0] if kinds else ""


def _rows(
    run: Run, target: _Target, facts: tuple[SeriesFacts, ...], asked: str, cost: Cost | None
) -> list[Row]:
    if run.state is not State.READ:
        return [Row(run.reader, run.state.value, run.words)]
    volumes = target.volumes.get(run.reader, [])
    if not volumes:
        return [_refused_row(run, target, asked, cost)]
    ranked = sorted(volumes, key=lambda dealt: dealt.distance)
    rows = [_row(run, v.grid, v.found, target, facts, asked, cost) for v in ranked]
    rows[0] = replace(rows[0], is_basis=target.basis == run.reader)
    return _once_each(rows)


def _once_each(rows: Sequence[Row]) -> list[Row]:
    """The first row as it is; of the others those that look alike as one, with their number."""
    alike: dict[tuple, list[Row]] = {}
    for row in rows[1:]:
        alike.setdefault((row.reader, row.shape, row.spacing_mm, row.why), []).append(row)
    others = [
        replace(same[0], reader=f"{same[0].reader} ({len(same)} more)" if len(same) > 1 else same[0].reader)
        for same in alike.values()
    ]
    return [rows[0], *others]


def _refused_row(run: Run, target: _Target, asked: str, cost: Cost | None) -> Row:
    uid = target.facts.series_uid
    own = [r for r in run.refused if r.series_uid == uid] or [r for r in run.refused if not r.series_uid]
    if not own:
        words = "; ".join((*run.warnings, "no volume of its own for these images"))
        return Row(run.reader, "nothing", words, as_asked=False if asked else None, cost=cost)
    code = own[0].code
    expected = ASKED.get(asked, ())
    as_asked = bool(expected) and (not code or code in expected) if asked else None
    verdict = f"refused {code}".strip()
    return Row(run.reader, verdict, "; ".join(r.words for r in own), as_asked=as_asked, cost=cost)


def _row(
    run: Run,
    grid: Grid,
    found: Found,
    target: _Target,
    facts: tuple[SeriesFacts, ...],
    asked: str,
    cost: Cost | None,
) -> Row:
    shown = to_frame(grid, target.grid)
    gap = None if target.grid is None else difference(target.grid, shown)
    case = Case(shown, target.grid, gap, target.facts, facts, alone=target.basis == run.reader)
    notes = (*found.notes, *run.warnings)
    return Row(
        reader=run.reader + (f" ({found.label})" if found.label else ""),
        verdict="accepted, warns" if notes else "accepted",
        words="; ".join(notes),
        shape=shown.shape,
        spacing_mm=shown.spacing_mm,
        gap=gap,
        why=explain(case),
        as_asked=_keeps_or_corrects_tilt(case) if asked == "gantrytilting" else (False if asked else None),
        cost=cost,
    )


def _keeps_or_corrects_tilt(case: Case) -> bool:
    kept = tilt_kept_deg(case)
    is_kept = kept is not None and abs(kept - case.facts.tilt_deg) <= NOTABLE_TILT_DEG
    return is_kept or case.plane != case.stored_plane
