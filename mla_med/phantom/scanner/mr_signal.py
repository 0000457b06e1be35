"""Tissues of a head -> the signal of a sequence without noise, by its equation.

Spin echo and inversion recovery (Bernstein, King & Zhou, Handbook of MRI Pulse Sequences, 2004, ch. 14),
spoiled gradient echo (Ernst & Anderson, Rev Sci Instrum 1966;37:93), MPRAGE (Deichmann et al., Neuroimage
2000;12:112), diffusion (Stejskal & Tanner, J Chem Phys 1965;42:288). The three parts of a voxel, tissue, free
water and flowing blood, give signals that add. Knows no scanner's noise and no anatomy.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from mla_med.phantom.head.tissues import TISSUES, Tissues
from mla_med.phantom.scanner.makers.form import Times
from mla_med.phantom.shapes import Grid

CSF_T1_MS, CSF_T2_MS, CSF_ADC = 4300.0, 1900.0, 3.0
"""Free water at body temperature: T1 of fluid at any field by Rooney et al., Magn Reson Med 2007;57:308; T2
of fluid in large spaces; ADC of water at 37 degrees Celsius."""
BLOOD_T1_MS = 1650.0
"""Lu et al., Magn Reson Med 2004;52:679, at 3 T."""
INFLOW_T1_MS = 1000.0
"""What fresh blood looks like on 3D gradient echoes."""
GADOLINIUM_PER_S = 3.4
"""Rise of 1/T1 where uptake is 1: relaxivity 4.5 per s and mmol/l (Rohrer et al., Invest Radiol 2005;40:715),
0.75 mmol/l."""
BLOOM_PER_MS = 0.45
"""Rise of 1/T2* where the paramagnetic load is 1, at 3 T."""
FAT_IN_PHASE = 0.5
"""What gradient echoes show of fat: its protons have several frequencies."""
EPI_LOSS = 3.0
"""How fast echo planar images lose signal with the paramagnetic load, at 3 T."""


def signal(
    tissues: Tissues, sequence: str, times: Times, tesla: float = 3.0, b_s_per_mm2: float = 1000.0
) -> np.ndarray:
    """The signal without noise, from maps at 3 T, in units of the equilibrium magnetisation of water."""
    m = tissues
    t1 = _t1_at(m.t1_ms, tesla)
    if sequence == "T1 contrast":
        t1 = 1 / (1 / t1 + m.uptake * np.float32(GADOLINIUM_PER_S / 1000))
    t2star, load = m.t2star_ms, m.chi
    if sequence == "SWI":
        t2star = _t2star_at(m, tesla)
        load = _bloomed(m.chi, m.grid)
    solid = m.pd * _contrast(sequence, times, t1, m.t2_ms, t2star, m.adc, b_s_per_mm2)
    if sequence == "DWI":
        # fat is suppressed, and an echo planar image loses what is paramagnetic
        solid *= (1 - m.fat) * np.exp(np.float32(-EPI_LOSS * tesla / 3) * m.chi)
    elif times.dimension == "3D":
        solid *= 1 - np.float32(1 - FAT_IN_PHASE) * m.fat
    out = solid
    out += m.water * np.float32(_contrast(sequence, times, CSF_T1_MS, CSF_T2_MS, 800.0, CSF_ADC, b_s_per_mm2))
    out += m.blood * np.float32(_blood(sequence, times, tesla))
    if sequence == "SWI":
        out *= np.exp(np.float32(-times.te_ms * BLOOM_PER_MS * tesla / 3) * load)
    return out


def white_signal(sequence: str, times: Times, tesla: float = 3.0, b_s_per_mm2: float = 1000.0) -> float:
    """The signal of white matter."""
    w = TISSUES["white"]
    t1 = float(_t1_at(np.float32(w.t1_ms), tesla))
    return w.pd * float(_contrast(sequence, times, t1, w.t2_ms, w.t2star_ms, w.adc, b_s_per_mm2))


def _t1_at(t1_ms, tesla: float):
    """T1 of tissue rises with the field, by about its cube root (Bottomley et al., Med Phys 1984;11:425);
    that of fat hardly does."""
    share = np.clip((t1_ms - np.float32(350)) / np.float32(400), 0, 1)
    return t1_ms * np.float32(tesla / 3) ** (np.float32(0.35) * share)


def _t2star_at(m: Tissues, tesla: float) -> np.ndarray:
    """The part of 1/T2* that is not 1/T2 rises with the field."""
    slow = 1 / m.t2_ms
    return 1 / (slow + np.maximum(1 / m.t2star_ms - slow, 0) * np.float32(tesla / 3))


def _contrast(sequence: str, times: Times, t1, t2, t2star, adc, b_s_per_mm2: float):
    """Signal of one unit of protons."""
    if sequence in ("T1", "T1 contrast"):
        if times.dimension == "3D":
            return mprage(times, t1) * np.exp(-times.te_ms / t2star)
        return (1 - np.exp(-times.tr_ms / t1)) * np.exp(-times.te_ms / t2)
    if sequence == "T2":
        return (1 - np.exp(-times.tr_ms / t1)) * np.exp(-times.te_ms / t2)
    if sequence == "FLAIR":
        assert times.ti_ms is not None
        recovered = 1 - 2 * np.exp(-times.ti_ms / t1) + np.exp(-times.tr_ms / t1)
        return np.abs(recovered) * np.exp(-times.te_ms / t2)
    if sequence == "DWI":
        weighted = (1 - np.exp(-times.tr_ms / t1)) * np.exp(-times.te_ms / t2)
        return weighted * np.exp(-b_s_per_mm2 / 1000 * adc)
    assert sequence == "SWI"
    return spoiled(times, t1) * np.exp(-times.te_ms / t2star)


def spoiled(times: Times, t1):
    """Steady state of a spoiled gradient echo."""
    flip, e1 = math.radians(times.flip_deg), np.exp(-times.tr_ms / t1)
    return math.sin(flip) * (1 - e1) / (1 - math.cos(flip) * e1)


def mprage(times: Times, t1):
    """Signal in the middle of a train of gradient echoes after inversion, in the steady state."""
    cycle_ms, echo_ms, before, half = train_of(times)
    flip, train_ms = math.radians(times.flip_deg), 2 * half * echo_ms
    after = cycle_ms - before - train_ms
    slow = 1 / t1
    fast = slow - math.log(math.cos(flip)) / echo_ms
    driven = (1 - np.exp(-echo_ms * slow)) / (1 - math.cos(flip) * np.exp(-echo_ms * slow))
    # m -> a + b m over a cycle: rest after the train, inversion, wait, train
    rest, wait, train = np.exp(-after * slow), np.exp(-before * slow), np.exp(-train_ms * fast)
    a, b = 1 - rest, rest
    a, b = -a, -b
    a, b = 1 - wait + wait * a, wait * b
    a, b = driven * (1 - train) + train * a, train * b
    end = a / (1 - b)
    start = 1 - wait - wait * (1 - rest + rest * end)
    middle = driven + (start - driven) * np.exp(-train_ms / 2 * fast)
    return np.abs(middle) * math.sin(flip)


def train_of(times: Times) -> tuple[float, float, float, int]:
    """-> time between inversions, between echoes, from inversion to train (ms), half the number of echoes.

    Makers state different times: as TR the time between inversions, or that between echoes (inversions are
    then near 2300 ms apart); as TI that to the middle of the train or, where it is short, to its
    beginning."""
    cycle_ms = times.tr_ms if times.tr_ms > 1000 else 2300.0
    echo_ms = times.tr_ms if times.tr_ms < 1000 else 7.0
    ti_ms = times.ti_ms or 900.0
    if ti_ms < 600:
        return cycle_ms, echo_ms, ti_ms, 64
    half = int(min(88.0, 0.9 * ti_ms / echo_ms))
    return cycle_ms, echo_ms, ti_ms - half * echo_ms, half


def _blood(sequence: str, times: Times, tesla: float) -> float:
    """Signal of flowing blood: a void on spin echoes, fresh on gradient echoes."""
    if sequence in ("T1", "T1 contrast"):
        t1 = INFLOW_T1_MS
        if sequence == "T1 contrast":
            t1 = 1 / (1 / BLOOD_T1_MS + GADOLINIUM_PER_S / 1000)
        if times.dimension == "3D":
            return 0.85 * float(mprage(times, t1)) * math.exp(-times.te_ms / 40)
        return 0.25 * (1 - math.exp(-times.tr_ms / t1))
    if sequence == "SWI":
        return 1.15 * float(spoiled(times, INFLOW_T1_MS)) * math.exp(-times.te_ms / 70)
    return 0.01


def _bloomed(chi: np.ndarray, grid: Grid) -> np.ndarray:
    """The field of what is paramagnetic reaches beyond it."""
    if not chi.any():
        return chi
    wide = ndimage.gaussian_filter(chi, [1.4 / s for s in grid.spacing_mm], truncate=3)
    return np.maximum(chi, 1.5 * wide)
