"""United Imaging: uMR."""

from __future__ import annotations

from mla_med.phantom.scanner.makers.form import MrMaker, MrPulse, Times

_M = ("ORIGINAL", "PRIMARY", "M", "NONE")
_T1 = Times(7.9, 3.4, 9, ti_ms=900, dimension="3D")
_DIFFUSION = Times(4200, 82, 90)
MR = MrMaker(
    manufacturer="UIH",
    model="uMR 780",
    software="R003",
    tesla=3.0,
    protocol="Head",
    pulses={
        "T1": MrPulse("gre_fsp", "t1_gre_fsp_3d_{plane}", ("GR", "IR"), ("SP", "MP"), _M, _T1),
        "T1 contrast": MrPulse("gre_fsp", "t1_gre_fsp_3d_{plane}+C", ("GR", "IR"), ("SP", "MP"), _M, _T1),
        "T2": MrPulse("fse", "t2_fse_{plane}", ("SE",), ("SK",), _M, Times(4600, 104, 150, train=15)),
        "FLAIR": MrPulse(
            "fse_ir",
            "t2_fse_flair_{plane}",
            ("SE", "IR"),
            ("SK",),
            _M,
            Times(8400, 112, 150, ti_ms=2450, train=19),
        ),
        "DWI": MrPulse("epi_dwi", "epi_dwi_{plane}_b{b:.0f}", ("EP", "SE"), ("NONE",), _M, _DIFFUSION),
        "ADC": MrPulse(
            "epi_dwi",
            "epi_dwi_{plane}_ADC",
            ("EP", "SE"),
            ("NONE",),
            ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"),
            _DIFFUSION,
        ),
        "SWI": MrPulse("gre_swi", "swi_{plane}", ("GR",), ("SP",), _M, Times(34, 20, 15, dimension="3D")),
    },
    planes={"axial": "tra", "sagittal": "sag", "coronal": "cor"},
    coil="Head 24",
    first_series=301,
    series_step=100,
    private_b_value=(0x0065, 0x09, "FD", "Image Private Header", "{b:.0f}"),
    extra={"NumberOfAverages": "1"},
)
