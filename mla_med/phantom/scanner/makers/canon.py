"""Canon, formerly Toshiba: Aquilion (CT), Vantage (MR)."""

from __future__ import annotations

from dataclasses import replace

from mla_med.phantom.scanner.makers.form import CtMaker, MrMaker, MrPulse, Numbers, Times

CT = CtMaker(
    manufacturer="CANON",
    model="Aquilion Prime SP",
    software="V10.11ER002",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    localizer_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
    kernels={"soft": "FC08", "standard": "FC18", "lung": "FC51"},
    filter_type="LARGE",
    protocol="CHEST ROUTINE",
    series_descriptions={"soft": "Body {t:.1f}", "standard": "Body {t:.1f}", "lung": "Lung {t:.1f}"},
    localizer_description="SCANO",
    dose_description="Dose Report",
    first_series=2,
    localizer_series=1,
    dose_series=9000,
    scan_options="HELICAL_CT",
    # HU as they are, in 16 bits with sign; -2048 outside the circle, which no element declares
    intercept=0,
    signed=True,
    bits_stored=16,
    padding_stored=-2048,
    position="FFS",
    numbers=Numbers(position=4, orientation=5, spacing=3, plus=True),
    extra={
        "DataCollectionDiameter": "500.00",
        "TableHeight": "+116.00",
        "RotationDirection": "CW",
        "FocalSpots": "1.6\\1.4",
        "GeneratorPower": "20",
        "ExposureModulationType": "3D",
        "PatientOrientation": "L\\P",
    },
)

CT_TOSHIBA = replace(CT, manufacturer="TOSHIBA", model="Aquilion ONE", software="V4.74ER004")

_M = ("ORIGINAL", "PRIMARY", "OTHER")
_T1 = Times(8.4, 3.1, 9, ti_ms=900, dimension="3D")
_DIFFUSION = Times(5500, 90, 90)
MR = MrMaker(
    manufacturer="CANON_MEC",
    model="Vantage Orian",
    software="V6.0*R004",
    tesla=1.5,
    protocol="Brain Routine",
    pulses={
        "T1": MrPulse("FE3D_fs_T1", "T1W MPRAGE {plane}", ("GR", "IR"), ("MP", "SP"), _M, _T1),
        "T1 contrast": MrPulse("FE3D_fs_T1", "T1W MPRAGE {plane} CE", ("GR", "IR"), ("MP", "SP"), _M, _T1),
        "T2": MrPulse("FSE2D", "T2W FSE2D {plane}", ("SE",), ("SK",), _M, Times(4500, 105, 90, train=17)),
        "FLAIR": MrPulse(
            "FSE_IR", "FLAIR {plane}", ("SE", "IR"), ("SK",), _M, Times(10000, 105, 90, ti_ms=2700, train=17)
        ),
        "DWI": MrPulse("SEEPI2D", "DWI {plane} b={b:.0f}", ("SE", "EP"), ("SK",), _M, _DIFFUSION),
        "ADC": MrPulse(
            "SEEPI2D", "ADC MAP {plane}", ("SE", "EP"), ("SK",), ("DERIVED", "SECONDARY", "ADC"), _DIFFUSION
        ),
        "SWI": MrPulse("FE3D", "FSBB {plane}", ("GR",), ("SP",), _M, Times(29, 20, 20, dimension="3D")),
    },
    planes={"axial": "AX", "sagittal": "SG", "coronal": "CO"},
    coil="Head SPEEDER",
    first_series=3000,
    series_step=1000,
    signed=True,
    bits_stored=16,
    numbers=Numbers(position=4, orientation=5, spacing=4),
    extra={"NumberOfAverages": "1"},
)
