"""How the scanners of each maker write their headers: names, kernels, image types, number formats.

As seen in real files and in the makers' conformance statements; no value identifies a device or a
person. What a study and its voxels are is said in headers.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from mla_med.phantom.scanner.makers import canon, ge, philips, siemens, united_imaging
from mla_med.phantom.scanner.makers.form import CtMaker, MrMaker, MrPulse

CT: Mapping[str, CtMaker] = {
    "siemens": siemens.CT,
    "ge": ge.CT,
    "philips": philips.CT,
    "philips_brilliance": philips.CT_BRILLIANCE,
    "canon": canon.CT,
    "toshiba": canon.CT_TOSHIBA,
}
MR: Mapping[str, MrMaker] = {
    "siemens": siemens.MR,
    "ge": ge.MR,
    "philips": philips.MR,
    "canon": canon.MR,
    "united_imaging": united_imaging.MR,
}

__all__ = ["CT", "MR", "CtMaker", "MrMaker", "MrPulse"]
