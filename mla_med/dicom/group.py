"""Headers -> Series: what shares a SeriesInstanceUID, a geometry and an acquisition.

Two echoes, two b-values or two time points under one UID are two series, never a stack of time; each
says in words what tells it from the others. Knows headers; knows nothing of files or people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mla_med.dicom.header import Header
from mla_med.types import Instance, Series

MIN_SLICES = 3
"""Two slices define a step but cannot show that it is even."""
SAME_DIRECTION = 1e-3
"""Two orientations are the same if no cosine differs by more."""
SAME_SPACING = 1e-3
"""Two pixel spacings are the same if they differ by no more than this fraction."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """What may tell two acquisitions apart."""

    value: Callable[[Header], object]
    words: Callable[[Header], str]


ACQUISITION = (
    Attribute(lambda h: h.image_type, lambda h: "\\".join(h.image_type)),
    Attribute(lambda h: h.echo, lambda h: " ".join(filter(None, ("echo", h.echo[1], _of(h.echo[0], "ms"))))),
    Attribute(lambda h: h.b_value, lambda h: f"b {_of(h.b_value)}"),
    Attribute(lambda h: h.temporal_position, lambda h: f"time point {_of(h.temporal_position)}"),
    Attribute(lambda h: h.kernel, lambda h: f"kernel {h.kernel or 'not stated'}"),
)
"""These always tell acquisitions apart."""

# Tried in this order, and only where two images lie at one position: within a sound series these
# may change from slice to slice.
SPLITTERS = (
    Attribute(lambda h: h.tiles and h.sop_instance_uid, lambda h: f"image {_of(h.instance_number)}"),
    Attribute(lambda h: h.acquisition_number, lambda h: f"acquisition {_of(h.acquisition_number)}"),
    Attribute(lambda h: h.gradient, lambda h: "gradient " + ", ".join(f"{x:.2f}" for x in h.gradient or ())),
    Attribute(lambda h: h.cardiac_phase, lambda h: f"phase {_of(h.cardiac_phase, '%')}"),
    Attribute(lambda h: h.trigger_ms, lambda h: f"trigger {_of(h.trigger_ms, 'ms')}"),
    Attribute(lambda h: h.inversion_ms, lambda h: f"inversion {_of(h.inversion_ms, 'ms')}"),
    Attribute(lambda h: h.flip_deg, lambda h: f"flip {_of(h.flip_deg, 'degrees')}"),
    Attribute(lambda h: h.kvp, lambda h: f"{_of(h.kvp)} kV"),
    Attribute(lambda h: h.acquisition_time, lambda h: f"acquired {h.acquisition_time[:6]}"),
    Attribute(lambda h: h.content_time, lambda h: f"made {h.content_time[:6]}"),
)


def group_series(headers: Sequence[Header]) -> tuple[Series, ...]:
    """One Series for each SeriesInstanceUID, geometry and acquisition, by series number."""
    by_uid: dict[str, list[Header]] = {}
    for header in headers:
        by_uid.setdefault(header.series_uid, []).append(header)
    ordered = sorted(by_uid.values(), key=lambda group: (group[0].series_number, group[0].series_uid))
    return tuple(series for group in ordered for series in _labelled(_parts(group)))


def _parts(headers: list[Header]) -> list[list[Header]]:
    """The volumes under one UID; what is too little for a volume stays together, as one refusal."""
    groups: dict[tuple, list[Header]] = {}
    orientations: list[Sequence[float]] = []
    spacings: list[Sequence[float]] = []
    for header in headers:
        key = (
            header.rows,
            header.columns,
            header.samples,
            _nearest(header.orientation, orientations, SAME_DIRECTION),
            # log: a relative tolerance
            _nearest(_logs(header.row_column_spacing_mm), spacings, SAME_SPACING),
            *(attribute.value(header) for attribute in ACQUISITION),
        )
        groups.setdefault(key, []).append(header)
    large = [group for group in groups.values() if _number_of_images(group) >= MIN_SLICES]
    small = [h for group in groups.values() if _number_of_images(group) < MIN_SLICES for h in group]
    parts = [part for group in large for part in _without_repeats(group)]
    left = [header for header in small if not _rejoin(header, parts)]
    return parts + ([left] if left else [])


def _rejoin(header: Header, parts: list[list[Header]]) -> bool:
    """Puts an image that one odd attribute parted from its stack back into it: without its last slice a
    stack looks whole. What it lacks is judged with the stack."""
    for part in parts:
        if _continues(header, part):
            part.append(header)
            return True
    return False


def _continues(header: Header, part: Sequence[Header]) -> bool:
    """Whether it lies on the line of the slices, at a place of its own, no further off than they are."""
    first = part[0]
    if header.position_mm is None or (header.rows, header.columns) != (first.rows, first.columns):
        return False
    if header.orientation is not None and header.orientation != first.orientation:
        return False
    if header.frame is not None or any(h.position_mm is None for h in part):
        return False
    places = np.array([h.position_mm for h in part])
    ends = places[np.argsort(places @ (places[-1] - places[0]))]
    line = ends[-1] - ends[0]
    length = float(np.linalg.norm(line))
    if length == 0:
        return False
    along = np.sort((places - ends[0]) @ line / length)
    step = float(np.median(np.diff(along)))
    at = np.asarray(header.position_mm) - ends[0]
    here = float(at @ line / length)
    beside = float(np.linalg.norm(at - here * line / length))
    nearest = float(np.abs(along - here).min())
    return beside < 1.0 and 0.5 * step < nearest < 1.5 * step


def _nearest(value: Sequence[float] | None, known: list[Sequence[float]], tolerance: float) -> int | None:
    """The number of the first known value that equals this one; rounding would split at its edges."""
    if value is None:
        return None
    for number, other in enumerate(known):
        if max(abs(a - b) for a, b in zip(value, other, strict=True)) <= tolerance:
            return number
    known.append(value)
    return len(known) - 1


def _logs(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if spacing is None or min(spacing) <= 0 else tuple(math.log(s) for s in spacing)


def _number_of_images(headers: Iterable[Header]) -> int:
    return len({(h.sop_instance_uid, h.frame) for h in headers})


def _without_repeats(headers: list[Header]) -> list[list[Header]]:
    """Whole stacks with one image at each position, as far as any attribute tells them apart."""
    return _stacks(headers, SPLITTERS) or _blocks(headers) or [headers]


def _stacks(headers: list[Header], attributes: Sequence[Attribute]) -> list[list[Header]] | None:
    """By the first attribute that leaves such stacks, and where it does not suffice by a further one."""
    if not _repeats(headers):
        return [headers]
    splits = [(number, _split(headers, attribute)) for number, attribute in enumerate(attributes)]
    splits = [(number, parts) for number, parts in splits if parts]
    # the fewest, longest stacks: an attribute that alternates from slice to slice would halve them
    alone = [parts for _, parts in splits if not any(map(_repeats, parts))]
    if alone:
        return min(alone, key=len)
    for number, parts in splits:
        found = [_stacks(part, attributes[number + 1 :]) for part in parts]
        if all(found):
            return [stack for stacks in found if stacks for stack in stacks]
    return None


def _split(headers: Sequence[Header], attribute: Attribute) -> list[list[Header]]:
    """Empty where the attribute does not tell stacks apart."""
    parts: dict[object, list[Header]] = {}
    for header in headers:
        parts.setdefault(attribute.value(header), []).append(header)
    large = all(_number_of_images(part) >= MIN_SLICES for part in parts.values())
    return list(parts.values()) if len(parts) > 1 and large else []


def _blocks(headers: list[Header]) -> list[list[Header]] | None:
    """Time points that only the instance number tells: whole stacks one after the other, or the time
    points of each position in turn."""
    images = {(h.sop_instance_uid, h.frame): h for h in headers}
    ordered = sorted(images.values(), key=lambda h: (h.instance_number or 0, h.frame or 0))
    numbers = {(h.instance_number, h.frame) for h in ordered}
    positions = len({_place(h) for h in ordered})
    times, rest = divmod(len(ordered), max(1, positions))
    if rest or times < 2 or positions < MIN_SLICES or len(numbers) < len(ordered):
        return None
    for stacks in (
        [ordered[t * positions : (t + 1) * positions] for t in range(times)],
        [ordered[t::times] for t in range(times)],
    ):
        if not any(_repeats(stack) for stack in stacks):
            kept = [{(h.sop_instance_uid, h.frame) for h in stack} for stack in stacks]
            return [[h for h in headers if (h.sop_instance_uid, h.frame) in keys] for keys in kept]
    return None


def _repeats(headers: Iterable[Header]) -> bool:
    positions = [_place(h) for h in {(h.sop_instance_uid, h.frame): h for h in headers}.values()]
    stated = [position for position in positions if position is not None]
    return len(set(stated)) < len(stated)


def _place(header: Header) -> tuple[float, ...] | None:
    return None if header.position_mm is None else tuple(round(x, 2) for x in header.position_mm)


def _labelled(parts: list[list[Header]]) -> list[Series]:
    series = [_to_series(part) for part in parts]
    if len(parts) == 1:
        return series
    words = [[] for _ in parts]  # type: list[list[str]]
    for attribute in (*ACQUISITION, *SPLITTERS):
        values = [{attribute.value(header) for header in part} for part in parts]
        if len(set(map(frozenset, values))) > 1:
            for number, part in enumerate(parts):
                if len(values[number]) == 1:
                    words[number].append(attribute.words(part[0]))
    labels = [", ".join(texts[:2]) for texts in words]
    return [
        replace(s, part=label if label and labels.count(label) == 1 else f"part {k + 1} of {len(parts)}")
        for k, (s, label) in enumerate(zip(series, labels, strict=True))
    ]


def _of(number: float | None, unit: str = "") -> str:
    return "not stated" if number is None else f"{number:g} {unit}".strip()


def _to_series(headers: Sequence[Header]) -> Series:
    first = headers[0]
    instances = (Instance(h.sop_instance_uid, h.sop_class_uid, h.path, h.frame) for h in headers)
    return Series(
        series_uid=first.series_uid,
        modality=first.modality,
        description=first.description,
        body_part=first.body_part,
        image_type=first.image_type,
        instances=tuple(instances),
    )
