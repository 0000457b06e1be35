"""GE: Revolution EVO (CT), SIGNA Architect (MR)."""

from __future__ import annotations

from mla_med.phantom.scanner.makers.form import CtMaker, MrMaker, MrPulse, Numbers, Times

_SIX = Numbers(position=6, orientation=6, spacing=6)
CT = CtMaker(
    manufacturer="GE MEDICAL SYSTEMS",
    model="Revolution EVO",
    software="revo_evo_16mw42.9",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    localizer_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
    kernels={"soft": "SOFT", "standard": "STANDARD", "lung": "LUNG"},
    filter_type="BODY FILTER",
    protocol="5.1 ROUTINE CHEST",
    series_descriptions={
        "soft": "CHEST {t:.2f}MM SOFT",
        "standard": "CHEST {t:.2f}MM STND",
        "lung": "LUNG {t:.2f}MM",
    },
    localizer_description="SCOUT",
    dose_description="Dose Report",
    first_series=2,
    localizer_series=1,
    dose_series=999,
    scan_options="HELICAL MODE",
    signed=True,
    bits_stored=16,
    padding_stored=-2000,
    padding_declared=True,
    numbers=_SIX,
    extra={
        "DataCollectionDiameter": "500.000000",
        "DistanceSourceToDetector": "949.075012",
        "DistanceSourceToPatient": "541.000000",
        "TableHeight": "133.500000",
        "RotationDirection": "CW",
        "FocalSpots": "0.700000",
        "GeneratorPower": "24000",
        "PositionReferenceIndicator": "SN",
    },
)

_M = ("ORIGINAL", "PRIMARY", "OTHER")
_T1 = Times(7.7, 3.1, 12, ti_ms=450, dimension="3D")
_DIFFUSION = Times(6000, 76, 90)
MR = MrMaker(
    manufacturer="GE MEDICAL SYSTEMS",
    model="SIGNA Architect",
    software="29\\LX\\MR Software release:DV29.1_R02",
    tesla=3.0,
    protocol="BRAIN ROUTINE",
    pulses={
        "T1": MrPulse(
            "BRAVO",
            "{plane} 3D T1 BRAVO",
            ("GR", "IR"),
            ("SS", "SP", "MP"),
            _M,
            _T1,
            ("EDR_GEMS", "ACC_GEMS"),
        ),
        "T1 contrast": MrPulse(
            "BRAVO",
            "{plane} 3D T1 BRAVO +C",
            ("GR", "IR"),
            ("SS", "SP", "MP"),
            _M,
            _T1,
            ("EDR_GEMS", "ACC_GEMS"),
        ),
        "T2": MrPulse(
            "fse-xl",
            "{plane} T2 FSE",
            ("SE",),
            ("SK",),
            _M,
            Times(4800, 102, 111, train=24),
            ("FAST_GEMS", "FC", "EDR_GEMS"),
        ),
        "FLAIR": MrPulse(
            "flair",
            "{plane} T2 FLAIR",
            ("SE", "IR"),
            ("SK",),
            _M,
            Times(9500, 117, 160, ti_ms=2485, train=24),
            ("FAST_GEMS", "IR", "EDR_GEMS"),
        ),
        "DWI": MrPulse(
            "epi2",
            "{plane} DWI B{b:.0f}",
            ("EP", "SE"),
            ("NONE",),
            _M,
            _DIFFUSION,
            ("EPI_GEMS", "PFF", "FS", "EDR_GEMS"),
        ),
        "ADC": MrPulse(
            "epi2",
            "Apparent Diffusion Coefficient (mm2/s)",
            ("EP", "SE"),
            ("NONE",),
            ("DERIVED", "PRIMARY", "ADC"),
            _DIFFUSION,
            ("EPI_GEMS", "FS"),
        ),
        "SWI": MrPulse(
            "swan",
            "{plane} 3D SWAN",
            ("GR",),
            ("SS", "SP"),
            _M,
            Times(41.2, 23.4, 15, dimension="3D"),
            ("FC", "EDR_GEMS", "ACC_GEMS"),
        ),
    },
    planes={"axial": "Ax", "sagittal": "Sag", "coronal": "Cor"},
    coil="48HAP",
    first_series=2,
    series_step=1,
    signed=True,
    bits_stored=16,
    private_b_value=(0x0043, 0x39, "IS", "GEMS_PARM_01", "{b:.0f}\\8\\0\\0"),
    standard_b_value=False,
    numbers=Numbers(position=4, orientation=6, spacing=4),
    extra={"TransmitCoilName": "BODY", "NumberOfAverages": "1", "PositionReferenceIndicator": "NA"},
)
