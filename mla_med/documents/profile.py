"""The stages of a draft -> a table of seconds, share and memory, and a flame-like picture of them.

    profile = Profile()
    draft_one(studies, out, model, progress=profile)
    print(profile.end().to_text())

A stage lasts from its `progress` message to the next; "prior: reading" is a stage inside the stage "prior".
Memory is the largest resident set of this process within the stage (Linux: VmHWM of /proc/self/status, set
back through clear_refs; elsewhere it is not known); what the reader's process needs is not in it.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

COLOURS = ("#2f6f8f", "#4f8f5f", "#8f7a2f", "#9f5a3f", "#7a4f8f", "#4f6f9f", "#6f6f6f")
WIDTH, ROW = 960, 34


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    begin_s: float
    end_s: float
    peak_mib: float | None

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Profiled:
    stages: tuple[Stage, ...]
    """In order of time."""

    @property
    def seconds(self) -> float:
        return self.stages[-1].end_s - self.stages[0].begin_s if self.stages else 0.0

    def rows(self) -> list[tuple[str, float, float, float | None]]:
        """Name, seconds, share and memory; a stage that comes several times is one."""
        names = dict.fromkeys(stage.name for stage in self.stages)
        found = []
        for name in names:
            same = [stage for stage in self.stages if stage.name == name]
            seconds = sum(stage.seconds for stage in same)
            peaks = [stage.peak_mib for stage in same if stage.peak_mib is not None]
            found.append((name, seconds, seconds / max(self.seconds, 1e-9), max(peaks, default=None)))
        return found

    def to_text(self) -> str:
        lines = [f"{'stage':<32}{'s':>9}{'share':>8}{'peak MiB':>10}"]
        for name, seconds, share, peak in self.rows():
            memory = "" if peak is None else f"{peak:.0f}"
            lines.append(f"{name:<32}{seconds:>9.3f}{100 * share:>7.1f}%{memory:>10}")
        lines.append(f"{'all':<32}{self.seconds:>9.3f}")
        return "\n".join(lines)

    def to_svg(self) -> str:
        """Time runs to the right; what a stage consists of stands under it."""
        depth = max((stage.name.count(": ") for stage in self.stages), default=0) + 1
        colour = {name: COLOURS[n % len(COLOURS)] for n, (name, *_) in enumerate(self.rows())}
        begin = self.stages[0].begin_s if self.stages else 0.0
        scale = WIDTH / max(self.seconds, 1e-9)
        bars = []
        for stage in self.stages:
            x, width = (stage.begin_s - begin) * scale, max(stage.seconds * scale, 0.5)
            y = ROW * stage.name.count(": ")
            words = html.escape(stage.name)
            bars.append(
                f'<g><title>{words}: {stage.seconds:.3f} s</title><rect x="{x:.1f}" y="{y}" '
                f'width="{width:.1f}" height="{ROW - 2}" fill="{colour[stage.name]}"/>'
                + (
                    f'<text x="{x + 5:.1f}" y="{y + 21}" fill="#fff" font-size="12">'
                    f"{words[: int(width / 6.6)]}</text>"
                    if width > 40
                    else ""
                )
                + "</g>"
            )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * depth}" role="img" '
            f'font-family="sans-serif"><title>Stages of a draft, {self.seconds:.2f} s</title>'
            + "".join(bars)
            + "</svg>"
        )

    def to_html(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{seconds:.3f}</td><td>{100 * share:.1f} %</td>"
            f"<td>{'' if peak is None else f'{peak:.0f}'}</td></tr>"
            for name, seconds, share, peak in self.rows()
        )
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Stages of a draft</title>'
            "<style>body{font:15px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}"
            "table{border-collapse:collapse;margin-top:1rem}td,th{padding:.2rem .8rem;text-align:right}"
            "td:first-child,th:first-child{text-align:left}svg{width:100%}</style>"
            f"<h1>A draft in {self.seconds:.2f} s</h1>{self.to_svg()}"
            "<table><tr><th>stage</th><th>seconds</th><th>share</th><th>peak MiB</th></tr>"
            f"{rows}</table></html>\n"
        )


@dataclass(slots=True)
class Profile:
    """Called at the start of each stage; `end` ends the last."""

    clock: Callable[[], float] = time.perf_counter
    also: Callable[[str], None] = lambda step: None
    """Told of every stage too."""
    stages: list[Stage] = field(default_factory=list)
    _open: tuple[str, float] | None = None

    def __call__(self, step: str) -> None:
        self._close()
        _forget_peak()
        self._open = (step, self.clock())
        self.also(step)

    def end(self) -> Profiled:
        self._close()
        return Profiled(tuple(self.stages))

    def _close(self) -> None:
        if self._open is not None:
            name, begin = self._open
            self.stages.append(Stage(name, begin, self.clock(), _peak_mib()))
        self._open = None


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the peak is then that of the whole process


def _peak_mib() -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) / 1024
