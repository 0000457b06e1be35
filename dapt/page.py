"""Every receipt of a plan -> receipts.html: one file with curves, no scripts, links or fonts from elsewhere.

Knows the values of receipts.json alone; holds no report and no patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

_WIDTH, _HEIGHT, _LEFT, _TOP, _BELOW = 330, 150, 44, 8, 18
NOT_MEASURED = "–"
TRENDS = (
    ("Bits per byte of reports", "The decoder alone; lower is better. Not changed by how a text is cut."),
    ("Effective rank", "Of the image embeddings; dashed: the most it could be. Near 1 they have collapsed."),
    ("Retrieval R@5", "Report by image; dashed: drawing at random."),
    ("Linear probe, mean AUC", "Findings from the frozen image embedding; dashed: 0.5, chance."),
    ("Findings, macro F1", "The model's own heads at 0.5."),
)
NOT_LOSSES = {
    *("step", "steps", "seconds", "tokens_per_s", "studies_per_s", "lr", "gradient", "validation_s"),
}


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: str
    """Of an SVG polyline."""
    style: str
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    words: str
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    """Of the vertical axis: y in pixels, text."""
    labels: tuple[tuple[float, str], ...]
    """Of the horizontal axis."""


def to_html(whole: Mapping[str, Any]) -> str:
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("dapt") / "receipts.html.jinja").read_text(encoding="utf-8")
    seeds = []
    for seed in whole["plan"]["seeds"]:
        mine = [r for r in whole["receipts"] if r["seed"] == seed]
        if mine:
            seeds.append((seed, mine, trends(mine), [(r, losses(r["log"])) for r in mine if r["log"]]))
    return page.from_string(template).render(
        plan=whole["plan"],
        control=[{**row, "verdict": verdict(row)} for row in whole["control"]],
        seeds=seeds,
        corpora=[name for name in ("site", "source") if whole["plan"]["corpora"][name]],
        number=number,
        pick=pick,
        chance=chance,
        mean_auc=mean_auc,
        probes=probes,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        top=_TOP,
        below=_BELOW,
    )


def verdict(row: Mapping[str, Any]) -> str:
    """Of chain against control, in words."""
    ci = row.get("difference_ci95")
    if not ci or None in ci:
        return "no interval"
    if ci[0] > 0 or ci[1] < 0:
        return "better" if (ci[0] > 0) == row["higher_is_better"] else "worse"
    return "no difference shown"


def pick(receipt: Mapping[str, Any], corpus: str, *keys: str) -> Any:
    """A value of a receipt; None where it was not measured."""
    value: Any = receipt["measured"].get(corpus)
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def chance(receipt: Mapping[str, Any], corpus: str, *keys: str) -> str:
    value = pick(receipt, corpus, *keys)
    return "" if value is None else f"({number(value)})"


def mean_auc(receipt: Mapping[str, Any], corpus: str) -> float | None:
    rows = pick(receipt, corpus, "probe") or {}
    return sum(row["auc"] for row in rows.values()) / len(rows) if rows else None


def probes(receipts: Sequence[Mapping[str, Any]], corpus: str) -> list[dict[str, Any]]:
    """By finding: AUC after the first and the last stage of the chain, and what chance gives."""
    chain = [r for r in receipts if r["arm"] != "control" and pick(r, corpus, "probe")]
    if not chain:
        return []
    first, last = chain[0], chain[-1]
    rows = []
    for key, row in pick(last, corpus, "probe").items():
        before = (pick(first, corpus, "probe", key) or {}).get("auc")
        beats = row["auc"] > row["chance_high"]
        rows.append({"key": key, **row, "before": before, "beats": beats})
    return sorted(rows, key=lambda row: -row["present"])


def number(value: Any, digits: int = 3) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_MEASURED
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}f}".rstrip("0").rstrip(".")


# Curves


def trends(receipts: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """One number after each stage: the chain on site and source, the control on the site."""
    chain = [r for r in receipts if r["arm"] != "control"]
    control = [r for r in receipts if r["arm"] == "control"]
    shared = sum(r["arm"] == "shared" for r in chain)
    labels = [r["name"].replace("-", " ") for r in chain]

    def line(name: str, corpus: str, style: str, values: Any) -> tuple[str, str, list[tuple[float, float]]]:
        seen = [(float(n), values(r, corpus)) for n, r in enumerate(chain)]
        return name, style, [(n, float(v)) for n, v in seen if v is not None]

    def beside(values: Any) -> tuple[str, str, list[tuple[float, float]]]:
        """From the last shared stage straight to the end: as many steps as all the chain's stages."""
        ends = [(float(shared - 1), values(chain[shared - 1], "site"))]
        ends += [(float(len(chain) - 1), values(r, "site")) for r in control]
        return "control", "control", [(n, float(v)) for n, v in ends if v is not None]

    of: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
        "Bits per byte of reports": lambda r, c: pick(r, c, "perplexity", "bits_per_byte"),
        "Effective rank": lambda r, c: pick(r, c, "rank", "effective_rank"),
        "Retrieval R@5": lambda r, c: pick(r, c, "retrieval", "image to report R@5"),
        "Linear probe, mean AUC": mean_auc,
        "Findings, macro F1": lambda r, c: pick(r, c, "findings", "macro F1"),
    }
    best: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
        "Effective rank": lambda r, c: pick(r, c, "rank", "of"),
        "Retrieval R@5": lambda r, c: pick(r, c, "retrieval", "chance R@5"),
        "Linear probe, mean AUC": lambda r, c: 0.5,
    }
    made = []
    for title, words in TRENDS:
        lines = [line("site", "site", "site", of[title]), line("source", "source", "source", of[title])]
        if control:
            lines.append(beside(of[title]))
        if title in best:
            lines.append(line("", "site", "floor", best[title]))
        lines = [one for one in lines if one[2]]
        if lines:
            made.append(chart(title, words, lines, [(float(n), label) for n, label in enumerate(labels)]))
    return made


def losses(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Every loss of a stage over its steps, with its validation."""
    names = dict.fromkeys(
        key for row in log for key in row if key not in NOT_LOSSES and not key.startswith("validation ")
    )
    made = []
    for name in names:
        lines = []
        for key, style in ((name, "site"), (f"validation {name}", "source")):
            points = [(float(row["step"]), float(row[key])) for row in log if key in row]
            if points:
                lines.append(("validation" if style == "source" else "train", style, points))
        last = int(log[-1]["step"])
        made.append(chart(name, "", lines, [(0.0, "0"), (float(last), f"step {last}")]))
    return made


def chart(
    title: str,
    words: str,
    lines: Sequence[tuple[str, str, list[tuple[float, float]]]],
    labels: Sequence[tuple[float, str]],
) -> Chart:
    xs = [x for _, _, points in lines for x, _ in points] + [x for x, _ in labels]
    ys = [y for _, _, points in lines for _, y in points]
    low, high = min(ys), max(ys)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    left, right = min(xs), max(max(xs), min(xs) + 1)

    def x_of(x: float) -> float:
        return round(_LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - 12), 1)

    def y_of(y: float) -> float:
        return round(_TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BELOW), 1)

    drawn = tuple(
        Line(
            name,
            " ".join(f"{x_of(x)},{y_of(y)}" for x, y in points),
            style,
            (x_of(points[-1][0]), y_of(points[-1][1])),
        )
        for name, style, points in lines
    )
    ticks = tuple((y_of(value), number(value)) for value in (low, (low + high) / 2, high))
    return Chart(title, words, drawn, ticks, tuple((x_of(x), label) for x, label in labels))
