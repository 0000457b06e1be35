"""Tables and timings -> Markdown for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from evaluation.peers.run import OURS, Cost
from evaluation.peers.synthetic import Timing
from evaluation.peers.tables import FAILING, Row, Table

_HEAD = (
    *(
        "reader",
        "verdict",
        "shape",
        "spacing mm",
        "voxel diff.",
        "corner mm",
        "affine diff.",
        "wall s",
        "CPU s",
    ),
    *("peak MiB", "above start", "what it says; why it differs"),
)
_ALIGN = ("---", "---", "---", "---", *["---:"] * 7, "---")


def tables_to_markdown(tables: Sequence[Table], versions: Mapping[str, str]) -> str:
    lines = ["# Reading DICOM, side by side", "", _versions(versions), ""]
    for table in tables:
        lines += [*_title(table), "", _cells(_HEAD), _cells(_ALIGN)]
        lines += [_cells(_row(row)) for row in table.rows] + [""]
    return "\n".join([*lines, *_summary(tables), "", *_legend()])


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}".strip() for name, version in versions.items())


def _title(table: Table) -> list[str]:
    asked = f" Asked for by its name: {table.asked}." if table.asked else ""
    against = f"Compared with {table.basis}"
    if table.basis_shape:
        against += f", {_times(table.basis_shape)}"
    return [f"## {table.folder}", "", f"{table.series}. {against}.{asked}"]


def _row(row: Row) -> list[str]:
    gap, cost = row.gap, row.cost
    asked = "" if row.as_asked is None else (" (as asked)" if row.as_asked else " (NOT as asked)")
    return [
        row.reader,
        row.verdict + asked,
        _times(row.shape) if row.shape else "",
        " x ".join(f"{x:.4g}" for x in row.spacing_mm) if row.spacing_mm else "",
        "" if gap is None else ("basis" if row.is_basis else _number(gap.voxel, ".3g")),
        "" if gap is None else ("basis" if row.is_basis else _number(gap.corner_mm, ".3f")),
        "" if gap is None else ("basis" if row.is_basis else _number(gap.affine, ".2g")),
        *_cost_cells(cost),
        "; ".join(text for text in (row.words, "**" + "; ".join(row.why) + "**" if row.why else "") if text),
    ]


def _cost_cells(cost: Cost | None) -> list[str]:
    if cost is None:
        return [""] * 4
    return [f"{cost.wall_s:.3f}", f"{cost.cpu_s:.3f}", f"{cost.peak_mib:.0f}", f"{cost.above_start_mib:.0f}"]


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _summary(tables: Sequence[Table]) -> list[str]:
    """For each reader, over all series: how often it agreed, and how often it was as asked."""
    names = dict.fromkeys(row.reader.split(" (")[0] for table in tables for row in table.rows)
    head = ("reader", "series", "equal", "differs", "is the basis", "refused", "nothing or failed")
    lines = ["## All series", "", _cells((*head, "as asked", "wall s")), _cells(["---", *["---:"] * 8])]
    for name in names:
        rows = [(table, _best(table, name)) for table in tables]
        lines.append(_cells([name, *_counts([(t, row) for t, row in rows if row is not None])]))
    return lines


def _best(table: Table, name: str) -> Row | None:
    return next((row for row in table.rows if row.reader == name or row.reader.startswith(f"{name} (")), None)


def _counts(rows: Sequence[tuple[Table, Row]]) -> list[str]:
    accepted = [(table, row) for table, row in rows if row.accepted]
    basis = [row for _, row in accepted if row.is_basis]
    compared = [row for _, row in accepted if not row.is_basis]
    equal = [row for row in compared if row.gap is not None and row.gap.none]
    refused = [row for _, row in rows if row.verdict.startswith("refused")]
    asked = [row.as_asked for _, row in rows if row.as_asked is not None]
    walls = {table.folder: row.cost.wall_s for table, row in rows if row.cost is not None}
    return [
        str(len(rows)),
        str(len(equal)),
        str(len(compared) - len(equal)),
        str(len(basis)),
        str(len(refused)),
        str(len(rows) - len(accepted) - len(refused)),
        f"{sum(asked)} of {len(asked)}" if asked else "",
        f"{sum(walls.values()):.2f}",
    ]


def _legend() -> list[str]:
    return [
        "Shapes and axes are those of the basis, in RAS order. Corner: the farthest that a corner of the "
        "volume lies from where the basis puts it. n/a: the shapes differ. Times and memory are medians of a "
        "whole folder in a fresh process, after imports and after a first tiny series; above start: the peak "
        "while reading, over what was held before. dcm2niix: the program, and reading its file back.",
        f"As asked: the verdict is what the name of a folder under {FAILING} asks for; of a peer any refusal "
        "counts, whatever reason it gives.",
    ]


def timings_to_markdown(timings: Sequence[Timing]) -> str:
    lines = []
    for timing in timings:
        size = f"{_times(timing.shape)}, {timing.syntax}: {timing.volume_mib:.0f} MiB as float32"
        lines += [f"## {size}, {timing.repeats} interleaved runs", ""]
        lines += [
            _cells(
                (
                    "reader",
                    "verdict",
                    "voxel diff.",
                    "corner mm",
                    "wall s",
                    "CPU s",
                    "ours / it",
                    "peak / volume",
                    "above start / volume",
                    "start s",
                    "",
                )
            ),
            _cells(["---", "---", *["---:"] * 8, "---"]),
        ]
        lines += [_cells(_timing_cells(timing, row)) for row in timing.rows] + [""]
    return "\n".join(lines)


def _timing_cells(timing: Timing, row: Row) -> list[str]:
    cost, gap = row.cost, row.gap
    ratios = timing.ratios.get(row.reader, ())
    return [
        row.reader,
        row.verdict,
        "" if gap is None else _number(gap.voxel, ".3g"),
        "" if gap is None else _number(gap.corner_mm, ".3f"),
        *(_cost_cells(cost)[:2]),
        "" if not ratios or row.reader == OURS else f"{median(ratios):.3f}",
        "" if cost is None else f"{cost.peak_mib / timing.volume_mib:.2f}",
        "" if cost is None else f"{cost.above_start_mib / timing.volume_mib:.2f}",
        "" if cost is None else f"{cost.start_s:.2f}",
        "; ".join((*((row.words,) if row.words else ()), *row.why)),
    ]


def to_json_value(table: Table | Timing) -> dict[str, Any]:
    return asdict(table)


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
