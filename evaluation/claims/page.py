"""Results of rows -> a picture of each, and claims.html: one file, without scripts or fonts from elsewhere.

A picture shows every target as a bar with its interval over seeds, each seed as a point, and the bar of the
claim as a line. Knows the values of the results alone.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from evaluation.claims.row import Held, Result, machine_words, show, shown

INK, MET, MISSED, LINE = "#222222", "#2c7a4b", "#b3541e", "#888888"


def draw(results: Sequence[Result], out: Path) -> dict[str, Path]:
    """By key, the picture of what was measured."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pictures = {}
    out.mkdir(parents=True, exist_ok=True)
    for result in results:
        if not result.measured:
            continue
        figure, axes = pyplot.subplots(
            1, len(result.held), figsize=(3.2 * len(result.held), 2.4), dpi=110, squeeze=False
        )
        for one, plot in zip(result.held, axes[0], strict=True):
            _bar(plot, one)
        figure.suptitle(result.row.key, fontsize=9, color=INK)
        figure.tight_layout()
        pictures[result.row.key] = out / f"{result.row.key}.png"
        figure.savefig(pictures[result.row.key], metadata={"Software": None})
        pyplot.close(figure)
    return pictures


def _bar(plot: Any, one: Held) -> None:
    colour = MET if one.is_met else MISSED
    value = 0.0 if math.isnan(one.value) else one.value
    plot.barh([0], [value], color=colour, alpha=0.35, height=0.5)
    low, high = one.ci95
    if not math.isnan(low):
        plot.plot([low, high], [0, 0], color=colour, linewidth=2)
    plot.plot(one.seeds, [0] * len(one.seeds), "o", color=colour, markersize=4)
    plot.axvline(one.target.bar, color=LINE, linestyle="--", linewidth=1)
    plot.set_yticks([])
    plot.set_ylim(-1, 1)
    plot.set_title(fill(one.target.words, 40), fontsize=7, color=INK)
    plot.set_xlabel(shown(one), fontsize=7, color=colour)
    plot.tick_params(labelsize=6)


def to_html(results: Sequence[Result], facts: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    page = Environment(
        loader=PackageLoader("evaluation.claims", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inline = {
        key: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        for key, path in pictures.items()
    }
    counted = {word: sum(r.verdict == word for r in results) for word in ("met", "missed", "not measured")}
    return page.get_template("claims.html.jinja").render(
        results=results,
        facts=facts,
        pictures=inline,
        counted=counted,
        machine_words=machine_words,
        show=show,
        shown=shown,
    )
