"""Philips: Ingenuity and, older, Brilliance (CT), Ingenia (MR)."""

from __future__ import annotations

from dataclasses import replace

from mla_med.phantom.scanner.makers.form import CtMaker, MrMaker, MrPulse, Times

CT = CtMaker(
    manufacturer="Philips",
    model="Ingenuity CT",
    software="4.1",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL", "HELIX"),
    localizer_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
    kernels={"soft": "B", "standard": "C", "lung": "YC"},
    filter_type="kernel",
    protocol="CHEST ROUTINE /Thorax",
    series_descriptions={
        "soft": "CHEST {t:g}MM, iDose (3)",
        "standard": "CHEST {t:g}MM, iDose (3)",
        "lung": "LUNG {t:g}MM, iDose (3)",
    },
    localizer_description="SURVIEW",
    dose_description="Dose Info",
    first_series=201,
    localizer_series=100,
    dose_series=401,
    scan_options="HELIX",
    from_feet=True,
    extra={
        "DataCollectionDiameter": "500",
        "DistanceSourceToDetector": "1040",
        "DistanceSourceToPatient": "570",
        "TableHeight": "129.8",
        "AcquisitionType": "SPIRAL",
        "ExposureModulationType": "Z MODULATION",
    },
)

CT_BRILLIANCE = replace(
    CT,
    model="Brilliance 16P",
    software="2.3.0",
    # measured on real series: intercept -1000, slices from the head down, feet first
    intercept=-1000,
    from_feet=False,
    position="FFS",
    kernels={"soft": "B", "standard": "C", "lung": "D"},
    series_descriptions={"soft": "CHEST", "standard": "CHEST", "lung": "LUNGS"},
)

_FFE = ("ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE")
_SE = ("ORIGINAL", "PRIMARY", "M_SE", "M", "SE")
_T1 = Times(8.1, 3.7, 8, train=240, dimension="3D")
_DIFFUSION = Times(3900, 89, 90)
MR = MrMaker(
    manufacturer="Philips Medical Systems",
    model="Ingenia",
    software="5.4.1\\5.4.1.2",
    tesla=1.5,
    protocol="WIP BRAIN",
    pulses={
        "T1": MrPulse("T1TFE", "s3DI_MC_HR {plane}", ("GR",), ("MP",), _FFE, _T1, ("OTHER",)),
        "T1 contrast": MrPulse("T1TFE", "T1W_3D_TFE {plane} Gd", ("GR",), ("MP",), _FFE, _T1, ("OTHER",)),
        "T2": MrPulse(
            "TSE", "T2W_TSE {plane}", ("SE",), ("SK",), _SE, Times(3000, 80, 90, train=15), ("FC",)
        ),
        "FLAIR": MrPulse(
            "TIR",
            "FLAIR_longTR {plane}",
            ("IR",),
            ("SK",),
            ("ORIGINAL", "PRIMARY", "M_IR", "M", "IR"),
            Times(11000, 125, 90, ti_ms=2800, train=27),
            ("FC",),
        ),
        "DWI": MrPulse("DwiSE", "DWI_SSh {plane}", ("SE",), ("SK",), _SE, _DIFFUSION, ("FS",)),
        "ADC": MrPulse(
            "DwiSE",
            "dADC {plane}",
            ("SE",),
            ("SK",),
            ("ORIGINAL", "PRIMARY", "ADC", "M", "SE"),
            _DIFFUSION,
            ("FS",),
        ),
        "SWI": MrPulse(
            "FFE", "SWIp {plane}", ("GR",), ("NONE",), _FFE, Times(51, 22, 20, dimension="3D"), ("FC",)
        ),
    },
    planes={"axial": "AX", "sagittal": "SAG", "coronal": "COR"},
    coil="MULTI COIL",
    first_series=301,
    series_step=100,
    slope=1.25,
    private_b_value=(0x2001, 0x03, "FL", "Philips Imaging DD 001", "{b:.0f}"),
    extra={"TransmitCoilName": "B", "NumberOfAverages": "1"},
)
