"""What differs between the headers of makers, as a form to fill in. Knows no maker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Numbers:
    """How a maker writes decimal strings: digits behind the point; None: as many as are needed."""

    position: int | None = None
    orientation: int | None = None
    spacing: int | None = None
    plus: bool = False
    """Writes the sign of positive values."""


@dataclass(frozen=True, slots=True)
class CtMaker:
    """The headers of one CT scanner."""

    manufacturer: str
    model: str
    software: str
    image_type: tuple[str, ...]
    localizer_type: tuple[str, ...]
    kernels: Mapping[str, str]
    """Key of ct.KERNELS -> ConvolutionKernel."""
    filter_type: str
    """FilterType; "kernel" where it repeats the kernel."""
    protocol: str
    series_descriptions: Mapping[str, str]
    """By kernel; {t} is the slice thickness in mm, {kernel} the maker's kernel."""
    localizer_description: str
    dose_description: str
    first_series: int
    """SeriesNumber of the first reconstruction."""
    localizer_series: int
    dose_series: int
    scan_options: str
    intercept: int = -1024
    signed: bool = False
    bits_stored: int = 12
    padding_stored: int | None = None
    """What is stored outside the circle of the field of view; None: what the lowest HU is stored as."""
    padding_declared: bool = False
    from_feet: bool = False
    """InstanceNumber 1 is the lowest slice."""
    position: str = "HFS"
    numbers: Numbers = Numbers()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further elements, by keyword."""


@dataclass(frozen=True, slots=True)
class Times:
    """How a maker usually takes a sequence."""

    tr_ms: float
    te_ms: float
    flip_deg: float
    ti_ms: float | None = None
    train: int = 1
    """EchoTrainLength."""
    dimension: str = "2D"


@dataclass(frozen=True, slots=True)
class MrPulse:
    """What a maker calls a sequence."""

    name: str
    """SequenceName."""
    description: str
    """SeriesDescription; {plane} is written as the maker does."""
    scanning: tuple[str, ...]
    """ScanningSequence."""
    variant: tuple[str, ...]
    """SequenceVariant."""
    image_type: tuple[str, ...]
    times: Times
    options: tuple[str, ...] = ()
    """ScanOptions."""


@dataclass(frozen=True, slots=True)
class MrMaker:
    """The headers of one MR scanner."""

    manufacturer: str
    model: str
    software: str
    tesla: float
    protocol: str
    pulses: Mapping[str, MrPulse]
    """By kind of sequence: T1, T2, FLAIR, DWI, ADC, SWI, "T1 contrast"."""
    planes: Mapping[str, str]
    """axial, sagittal and coronal, as the maker writes them."""
    coil: str
    first_series: int
    series_step: int
    signed: bool = False
    bits_stored: int = 12
    slope: float | None = None
    """RescaleSlope of MR units by stored value, for makers that state one."""
    private_b_value: tuple[int, int, str, str, str] | None = None
    """Group, element, VR, private creator and value with {b}, where the b-value (also) stands."""
    standard_b_value: bool = True
    numbers: Numbers = Numbers()
    extra: Mapping[str, Any] = field(default_factory=dict)
