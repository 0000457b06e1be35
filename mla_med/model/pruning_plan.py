"""Groups of channels, an image and a wish -> which channels go.

    measure(groups, model, image_BCIJK)
    plan = plan_for(model, groups, 0.58, image_BCIJK)

A channel costs what the encoder's time falls by without it, on this machine. All groups are ranked together
by what a channel is worth (compress.weigh) for what it costs; each keeps its floor, and gives away channels
in the steps that processors like. Once the wish is met, what fits into the time comes back, the cheapest
first.
"""

# B batch, C channels of a group

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from mla_med.errors import ConfigError
from mla_med.model.compress import STEP, Group, Plan, remove
from mla_med.model.mla import MLAModel

LEAST_GAIN = 1e-3
"""Of the encoder's time, at a group's floor: what gains less is not told from nothing."""
ROUNDS = 9


@dataclass(frozen=True, slots=True)
class _Step:
    """What goes at once."""

    group: str
    channels: tuple[int, ...]
    cost: float
    rank: float
    """What it is worth for what it costs; never less than that of the step of its group before."""


def _steps(groups: Sequence[Group]) -> list[_Step]:
    """What is worth least for what it costs first, down to the floor of each group."""
    steps = []
    for group in groups:
        worth_C = group.worth_C
        assert worth_C is not None
        order = torch.argsort(worth_C, stable=True).tolist()
        size = STEP[group.kind]
        rank = 0.0
        for begin in range(0, group.channels - group.floor - size + 1, size):
            some = order[begin : begin + size]
            cost = group.cost * size
            rank = max(rank, float(worth_C[some].sum()) / cost)
            steps.append(_Step(group.name, tuple(some), cost, rank))
    return sorted(steps, key=lambda step: step.rank)


def _plan(steps: Iterable[_Step]) -> Plan:
    gone: dict[str, list[int]] = {}
    for step in steps:
        gone.setdefault(step.group, []).extend(step.channels)
    return {name: tuple(sorted(channels)) for name, channels in gone.items()}


def choose(groups: Sequence[Group], share: float) -> Plan:
    """Which channels go so that about `share` of the cost of all groups goes."""
    wanted = share * _whole_cost(groups)
    gone, chosen = 0.0, []
    for step in _steps(groups):
        if gone >= wanted:
            break
        chosen.append(step)
        gone += step.cost
    return _plan(chosen)


def share_of(groups: Sequence[Group], plan: Plan) -> float:
    """Of the cost of all groups, so much goes."""
    return sum(group.cost * len(plan.get(group.name, ())) for group in groups) / _whole_cost(groups)


def _whole_cost(groups: Sequence[Group]) -> float:
    return sum(group.cost * group.channels for group in groups)


# How long it takes


def measure(groups: Sequence[Group], model: MLAModel, image_BCIJK: Tensor, rounds: int = ROUNDS) -> None:
    """Fills `cost` with what one channel of each group takes of the encoder on this machine: multiplications
    take several times as long on a fine grid of few channels as on a coarse one of many."""
    for group in groups:
        gone = tuple(range(group.channels - group.floor))
        if not gone:
            continue
        smaller = remove(model, groups, {group.name: gone})
        whole_s, smaller_s = map(min, encode_s([model, smaller], image_BCIJK, rounds))
        group.cost = max(whole_s - smaller_s, LEAST_GAIN * whole_s) / len(gone)


@torch.no_grad()
def encode_s(models: Sequence[MLAModel], image_BCIJK: Tensor, rounds: int = ROUNDS) -> list[list[float]]:
    """Seconds of each model to see one image, in turn: a busy machine is busy for all of them."""
    spent: list[list[float]] = [[] for _ in models]
    for number in range(rounds + 1):
        for model, times in zip(models, spent, strict=True):
            began = time.perf_counter()
            model.find(model.encode(image_BCIJK[:1], "cough"))
            if number:  # the first warms up
                times.append(time.perf_counter() - began)
    return spent


def ratio(times: Sequence[float], than: Sequence[float]) -> float:
    """Median over rounds of how long one takes by the other."""
    return median(a / b for a, b in zip(times, than, strict=True))


@dataclass(frozen=True, slots=True)
class Point:
    """Of the curve of latency against what is lost."""

    share: float
    """Of the cost of all groups, so much was to go."""
    latency: float
    """By that of the whole model."""
    parameters: int
    quality: dict[str, float]


def curve(
    model: MLAModel,
    groups: Sequence[Group],
    shares: Iterable[float],
    image_BCIJK: Tensor,
    quality: Callable[[MLAModel], dict[str, float]],
) -> list[Point]:
    """Before recovery."""
    points = []
    for share in shares:
        smaller = remove(model, groups, choose(groups, share))
        whole_s, smaller_s = encode_s([model, smaller], image_BCIJK)
        size = sum(p.numel() for p in smaller.parameters())
        points.append(Point(share, ratio(smaller_s, whole_s), size, quality(smaller)))
    return points


def plan_for(
    model: MLAModel, groups: Sequence[Group], latency: float, image_BCIJK: Tensor, rounds: int = ROUNDS
) -> Plan:
    """What is worth least goes until the encoder takes `latency` of its time. The last step may be a large
    one: of the other groups, what costs least comes back as long as the wish is met, as it is room that helps
    what is left to learn. One step goes at least. ConfigError where nothing meets the wish."""

    def meets(some: Iterable[_Step]) -> bool:
        smaller = remove(model, groups, _plan(some))
        whole_s, smaller_s = encode_s([model, smaller], image_BCIJK, rounds)
        # the fastest of each: what else runs on the machine only ever adds
        return min(smaller_s) / min(whole_s) <= latency

    steps = _steps(groups)
    if not meets(steps):
        raise ConfigError(
            f"With every group at its floor the encoder still takes more than {latency:.2f} of the time. "
            "Wish for less, or train a smaller model.",
            code="LATENCY_UNREACHABLE",
        )
    low, high = 1, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(steps[:middle]) else (middle + 1, high)
    gone = steps[:high]
    for group in sorted(groups, key=lambda group: group.cost * STEP[group.kind]):
        # of a group, what is worth most comes back first; the last step of all was needed
        for step in [step for step in reversed(gone[:-1]) if step.group == group.name != gone[-1].group]:
            others = [other for other in gone if other is not step]
            if not meets(others):
                break
            gone = others
    return _plan(gone)
