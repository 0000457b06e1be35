"""The values of familiar images -> Usual: how many voxels may have others.

Knows how often values occurred, not what they are of (imaging/values.py).
"""

# N images, H bins of a histogram

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mla_med.types import Modality

SLACK = 1.15
"""What is familiar reaches so far beyond what 99.5 % of the held-out examples stay under."""
HISTOGRAM_SLACK = {Modality.CT: SLACK, Modality.MR: 2.0}
"""HU are the same everywhere. MR has no units, and the contrast of another scanner's sequences moves as many
voxels again as patients differ by."""
SHARE_SLACK = {Modality.CT: (0.6, 1.4), Modality.MR: (0.75, SLACK)}
"""Times the smallest and the largest share. Lungs are larger and smaller by breath. A head is not; of fewer
sequences less of it stands out."""
LEAST = 20
"""Images that have to show a channel before it is limited: of one, the mean is that one."""


@dataclass(frozen=True, slots=True)
class Usual:
    """Of images of one kind; by channel, `CT` or the sequence. What is not known is not limited."""

    share: tuple[float, float] = (0.0, 1.0)
    """Of lung or head: smallest and largest that is familiar."""
    histograms: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Share of the voxels in each bin, mean over familiar images."""
    limits: dict[str, float] = field(default_factory=dict)
    """Largest share of voxels that may lie in other bins than in that mean."""

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Usual:
        low, high = values["share"]
        return cls(
            (float(low), float(high)),
            {str(name): tuple(map(float, each)) for name, each in values["histograms"].items()},
            {str(name): float(each) for name, each in values["limits"].items()},
        )

    def distances(self, histograms: Mapping[str, np.ndarray]) -> dict[str, float]:
        """By channel, the share of the voxels that lie in other bins than they do on average in familiar
        images."""
        return {
            name: total_variation(histogram_H, np.asarray(self.histograms[name]))
            for name, histogram_H in histograms.items()
            if name in self.histograms
        }


def usual_of(
    modality: str, share_N: Sequence[float], histograms_N: Sequence[Mapping[str, np.ndarray]]
) -> Usual:
    """Shares and histograms by channel of familiar images -> what is usual. A sequence that few of them have
    is not limited."""
    by_channel: dict[str, list[np.ndarray]] = {}
    for histograms in histograms_N:
        for name, histogram_H in histograms.items():
            by_channel.setdefault(name, []).append(histogram_H)
    by_channel = {name: some for name, some in by_channel.items() if len(some) >= LEAST}
    means = {name: np.mean(some, 0) for name, some in by_channel.items()}
    limits = {
        name: np.quantile([total_variation(row, means[name]) for row in some], 0.995)
        for name, some in by_channel.items()
    }
    (less, more), slack = SHARE_SLACK[Modality(modality)], HISTOGRAM_SLACK[Modality(modality)]
    return Usual(
        (float(min(share_N) * less), float(min(1.0, max(share_N) * more))),
        {name: tuple(mean_H.round(5).tolist()) for name, mean_H in means.items()},
        {name: round(float(min(1.0, limit * slack)), 4) for name, limit in limits.items()},
    )


def total_variation(one_H: np.ndarray, other_H: np.ndarray) -> float:
    """Half the sum of absolute differences: the share that would have to move."""
    return float(np.abs(np.asarray(one_H) - other_H).sum() / 2)
