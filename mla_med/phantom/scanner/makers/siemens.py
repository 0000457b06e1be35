"""Siemens: SOMATOM with syngo VA (CT), MAGNETOM with syngo MR E (MR)."""

from __future__ import annotations

from mla_med.phantom.scanner.makers.form import CtMaker, MrMaker, MrPulse, Times

CT = CtMaker(
    manufacturer="SIEMENS",
    model="SOMATOM Force",
    software="syngo CT VB10A",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"),
    localizer_type=("ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"),
    kernels={"soft": "Br40d", "standard": "Br44d", "lung": "Bl57d"},
    filter_type="WEDGE_2",
    protocol="Thorax_Routine",
    series_descriptions={
        "soft": "Thorax  {t:.1f}  {kernel}",
        "standard": "Thorax  {t:.1f}  {kernel}",
        "lung": "Lung  {t:.1f}  {kernel}",
    },
    localizer_description="Topogram  0.6  T20f",
    dose_description="Patient Protocol",
    first_series=2,
    localizer_series=1,
    dose_series=501,
    scan_options="",
    extra={
        "DataCollectionDiameter": "500",
        "DistanceSourceToDetector": "1085.6",
        "DistanceSourceToPatient": "595",
        "TableHeight": "150",
        "RotationDirection": "CW",
        "FocalSpots": "1.2",
        "GeneratorPower": "38",
        "ExposureModulationType": "XYZ_EC",
    },
)

_M = ("ORIGINAL", "PRIMARY", "M", "ND", "NORM")
_T1 = Times(2300, 2.98, 9, ti_ms=900, dimension="3D")
_DIFFUSION = Times(5700, 89, 90)
MR = MrMaker(
    manufacturer="SIEMENS",
    model="Skyra",
    software="syngo MR E11",
    tesla=3.0,
    protocol="head",
    pulses={
        "T1": MrPulse(
            "*tfl3d1_16ns", "t1_mprage_{plane}_p2_iso", ("GR", "IR"), ("SK", "SP", "MP"), _M, _T1, ("IR",)
        ),
        "T1 contrast": MrPulse(
            "*tfl3d1_16ns",
            "t1_mprage_{plane}_p2_iso_post",
            ("GR", "IR"),
            ("SK", "SP", "MP"),
            _M,
            _T1,
            ("IR",),
        ),
        "T2": MrPulse(
            "*tse2d1_16",
            "t2_tse_{plane}_512",
            ("SE",),
            ("SK", "SP"),
            (*_M, "DIS2D"),
            Times(6000, 99, 150, train=16),
            ("PFP",),
        ),
        "FLAIR": MrPulse(
            "*tir2d1_16",
            "t2_tirm_{plane}_dark-fluid",
            ("SE", "IR"),
            ("SK", "SP", "MP"),
            _M,
            Times(9000, 81, 150, ti_ms=2500, train=16),
            ("IR", "PFP"),
        ),
        "DWI": MrPulse(
            "*ep_b{b:.0f}t",
            "ep2d_diff_3scan_trace_{plane}_TRACEW",
            ("EP",),
            ("SK", "SP"),
            ("DERIVED", "PRIMARY", "DIFFUSION", "TRACEW", "ND", "NORM"),
            _DIFFUSION,
            ("PFP", "FS"),
        ),
        "ADC": MrPulse(
            "*ep_b0_1000",
            "ep2d_diff_3scan_trace_{plane}_ADC",
            ("EP",),
            ("SK", "SP"),
            ("DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND", "NORM"),
            _DIFFUSION,
            ("PFP", "FS"),
        ),
        "SWI": MrPulse(
            "*fl3d1r",
            "{plane}_SWI_Images",
            ("GR",),
            ("SP",),
            ("ORIGINAL", "PRIMARY", "M", "SWI", "NORM"),
            Times(28, 20, 15, dimension="3D"),
            ("PFP",),
        ),
    },
    planes={"axial": "tra", "sagittal": "sag", "coronal": "cor"},
    coil="HeadNeck_20",
    first_series=3,
    series_step=1,
    private_b_value=(0x0019, 0x0C, "IS", "SIEMENS MR HEADER", "{b:.0f}"),
    standard_b_value=False,
    extra={"AngioFlag": "N", "TransmitCoilName": "Body", "NumberOfAverages": "1"},
)
