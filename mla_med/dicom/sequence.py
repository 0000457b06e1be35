"""MR header -> which sequence it is (T1, T2, FLAIR, DWI ...), with the reason in words.

Evidence counts in this order, the first that speaks decides, and what disagrees is told:
1. the image type, where the scanner says that it is a map, a phase image or a projection;
2. diffusion: a b-value above 0, or the signs of a diffusion series with the b-value it states;
3. words that name a purpose (localizer, angiogram, perfusion ...): the times cannot tell these from
   a weighting, a time-of-flight angiogram is a T1-weighted gradient echo;
4. the times TR, TE, TI and the flip angle;
5. words that name a weighting. They outweigh the times only where these are blind: FLAIR and STIR
   differ from T2 in the inversion time alone, and some headers do not state it.
A sequence that nothing tells stays "". Knows one header, no pixels and no other series.

Times: Westbrook & Talbot, MRI in Practice, 5th ed. 2018; De Coene et al., AJNR 1992;13:1555
(FLAIR); Bydder & Young, J Comput Assist Tomogr 1985;9:659 (STIR); Mugler & Brookeman, Magn Reson
Med 1990;15:152 (MPRAGE); Haacke et al., Magn Reson Med 2004;52:612 (SWI). That the
attributes used here tell the series of a brain MR apart: Gauriau et al., J Digit Imaging 2020;33:747.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mla_med.dicom.certificate import LOCALIZER_WORDS, PROJECTION_WORDS
from mla_med.dicom.header import Header

T1, T1_CONTRAST, T2, FLAIR, DWI, ADC, SWI = "T1", "T1 contrast", "T2", "FLAIR", "DWI", "ADC", "SWI"
PD, STIR, DIR, B0 = "PD", "STIR", "DIR", "b0"
LOCALIZER, ANGIOGRAM, PERFUSION, FUNCTIONAL = "localizer", "angiogram", "perfusion", "functional MR"
PHASE, PROJECTION, FIELD_MAP = "phase image", "projection", "field map"
DIFFUSION_MAP, MAP = "diffusion map", "quantitative map"

WEIGHTED_B = 50.0
"""s/mm2. Up to here a volume counts as unweighted: some protocols use 5 or 50 for what serves as b0."""

SHORT_SE_TR_MS, LONG_SE_TR_MS = 1000.0, 1500.0
SHORT_SE_TE_MS, PD_TE_MS, LONG_SE_TE_MS = 30.0, 40.0, 60.0
FLAIR_TI_MS = 1500.0
"""Cerebrospinal fluid has T1 near 4000 ms, so that its null lies at 1700 to 2800 ms, by TR."""
T1_TI_MS = 300.0
"""Longer, and up to FLAIR_TI_MS, white and grey matter lie on both sides of their null."""
STIR_TI_MS = (80.0, 300.0)
STATIC_DEPHASING_TE_MS = (15.0, 60.0)
"""Gradient echoes: from here on contrast is susceptibility, T2*."""
SPOILED_TR_MS = (5.0, 15.0)
"""Below, angiograms of a bolus and dynamic series look the same; above, so does time of flight."""
SLOW_GRADIENT_TR_MS = 50.0

WEIGHTED_KINDS = (T1, T1_CONTRAST, T2, FLAIR, DWI, ADC, SWI, PD, STIR, DIR)
"""What an examination can ask for."""


@dataclass(frozen=True, slots=True)
class MrSequence:
    """Which sequence a series is. `kind` is one of the words above, "" where nothing tells."""

    kind: str
    words: str
    """By what it was told, as in "T1 by TR 2300, TE 3, TI 900 ms"; of an unknown one, what is missing."""
    b_value: float | None = None
    """s/mm2, of diffusion series."""


# What an ImageType may hold behind its first two values, by vendor: Siemens, GE, Philips, Canon, UIH.
IMAGE_TYPES: dict[str, set[str]] = {
    LOCALIZER: LOCALIZER_WORDS,
    PROJECTION: PROJECTION_WORDS,
    ADC: {"ADC", "ADC_UNSPECIFIED"},
    DIFFUSION_MAP: {"FA", "EADC", "EXP", "TENSOR", "TENSOR_B0", "COLFA"},
    PHASE: {"P", "PHASE", "PHASE MAP", "I", "IMAGINARY", "R", "REAL", "VELOCITY", "VELOCITY MAP"},
    PERFUSION: {
        *("PERFUSION", "ASL", "CBF", "RCBF", "RELCBF", "CBV", "RCBV", "RELCBV", "CORRELCBV"),
        *("MTT", "RELMTT", "TTP", "TMAX", "PBP", "GBP"),
    },
    FUNCTIONAL: {"FMRI", "BOLD", "TTEST"},
    FIELD_MAP: {"FIELD_MAP", "FIELDMAP", "B0", "B0 MAP", "B0_MAP", "B1", "B1_MAP"},
    MAP: {
        "T1 MAP",
        "T1_MAP",
        "T2 MAP",
        "T2_MAP",
        "T2_STAR_MAP",
        "T2_STAR MAP",
        "R2_MAP",
        "R2_STAR_MAP",
        "QSM",
    },
    "subtraction": {"SUBTRACTION", "SUB"},
    "fat image": {"F", "FAT", "FAT_FRACTION", "OP", "OPP_PHASE", "OUT_PHASE"},
    "spectroscopy": {"SPECTROSCOPY", "CSI"},
}
SWI_TYPES = {"SWI", "SWAN", "SWIP"}
DIFFUSION_TYPES = {"DIFFUSION", "TRACEW", "TRACE", "DWI"}


BEFORE = r"(?<![A-Z0-9])(?:AX|SAG|COR|TRA|[23]D|[A-Z])?"
"""What may stand right before an abbreviation: a direction or one letter (AXT1, sT2W, eDWI)."""


def _pattern(bounded: str = "", free: str = "") -> re.Pattern[str]:
    """`bounded` is an abbreviation, with at most digits behind it; `free` is unlike any other word
    and may stand inside one."""
    parts = [f"{BEFORE}(?:{bounded})(?![A-Z])"] if bounded else []
    return re.compile("|".join([*parts, *([free] if free else [])]))


PURPOSES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        LOCALIZER,
        _pattern(
            r"LOC|PILOT|3 ?PL(?:ANE)?|PLAN ?SCAN|SCANO(?:GRAM)?",
            r"LO[CK]ALI[SZ]|LOCATOR|SCOUT|SURV(?:EY|IEW)|定位|位置決め",
        ),
    ),
    ("calibration scan", _pattern(r"CAL|B1 ?MAP|REF ?SCAN", r"CALIB|PRESCAN|COIL ?SENS|SENSE ?REF|SHIM")),
    (FUNCTIONAL, _pattern(r"(?<!VEN )(?<!VEN)BOLD", r"FMRI|RESTING ?STATE")),
    (
        PERFUSION,
        _pattern(r"PWI|DSC|DCE|P?C?ASL|PERF|R?CB[FV]|MTT|TTP|TMAX", r"PERFUSION|SPIN LABEL|灌注"),
    ),
    (
        ANGIOGRAM,
        _pattern(
            r"TOF|MR[AV]|PCA|PC ?3D|3D ?PC|TWIST|TRICKS|Q ?FLOW", r"ANGIO|VENOGR|PHASE CONTRAST|INHANCE"
        ),
    ),
    ("spectroscopy", _pattern(r"MRS|SVS|CSI|PRESS|STEAM", r"SPECTRO")),
    (MAP, _pattern(r"(?:T1|T2 ?\*?|R2 ?\*?) ?MAPS?|QSM", r"T[12] ?\*? ?MAPPING|SUSCEPTIBILITY MAP")),
    (FIELD_MAP, _pattern(r"B0 ?MAP|FMAP", r"FIELD ?MAP")),
    ("subtraction", _pattern(r"SUB(?! ?\d)", r"SUBTRACT")),
    (PROJECTION, _pattern(r"M[IN]* ?IPS?|VRT|SSD", r"COLLAPSE|PROJECTION")),
    (PHASE, _pattern(r"(?:FILT )?PHA|PHASE (?:IMAGES?|MAP)")),
    ("MP2RAGE inversion image", _pattern(r"INV ?[12]")),
    (DIR, _pattern(r"(?<![0-9] )(?<![0-9])DIR", r"DOUBLE INV")),
    (
        "balanced gradient echo",
        _pattern(r"CISS|B ?FFE|B ?TFE|B ?SSFP|SSFP|TRUFI|COSMIC", r"FIESTA|TRUE ?FISP|BALANCED"),
    ),
)
DIFFUSION_WORDS = _pattern(
    r"DWI?|DTI|DKI|IVIM|R?DWI|DIFF|TRACEW?|EPI? ?B", r"DIFFUSION|DWI(?:BS|SE)|RESOLVE|弥散|拡散"
)
DIFFUSION_MAP_WORDS = _pattern(r"EADC|EXP ?ADC|COL ?FA|FA ?MAP", r"EXPONENTIAL|FRACTIONAL ?ANISO|DTI.* FA\b")
ADC_WORDS = _pattern(r"ADC(?: ?MAP)?", r"APPARENT DIFF|AVERAGE DC")
B_WORDS = re.compile(r"(?<![A-Z])B ?=? ?(\d{1,4})(?!\d| ?MAP)")

WEIGHTINGS: dict[str, re.Pattern[str]] = {
    SWI: _pattern(
        r"SWI|SWAN|SWIP|FSBB|VEN ?BOLD|HEMO|T2S|T2 ?(?:\*W?|STAR)|T2W? ?(?:GRE|FFE|FLASH|FL[23]D)|GRE ?T2",
        r"SUSCEPT|HEMORR?HAGE|T2 ?\*|磁敏感",
    ),
    FLAIR: _pattern(r"DA ?FL", r"FLAIR|DARK ?FL|FLUID ATT|水抑制"),
    STIR: _pattern(free="STIR"),
    PD: _pattern(r"PDW?I?|DP", r"PROTON|DENSIT"),
    T1: re.compile(BEFORE + r"T1(?!\d)|MP ?2?RAGE|BRAVO|SPGR|VIBE|LAVA|THRIVE|GRE ?FSP"),
    T2: re.compile(BEFORE + r"T2(?!\d| ?\*| ?STAR|S(?![A-Z]))|FRFSE"),
}
AGENT = r"CONTRAST[A-Z]*|GD|GAD[A-Z]*|CE|KM|MDC"
ENHANCED = re.compile(
    rf"(?<![A-Z0-9])(?:POST(?! ?FOSSA)|{AGENT})(?![A-Z])|\+ ?C(?![A-Z])|(?<![A-Z])C ?\+|增强|造影"
)
UNENHANCED = re.compile(
    rf"(?<![A-Z0-9])(?:(?:PRE|WITHOUT|W ?O|NATIVE?|PLAIN|NON?)(?: ?(?:{AGENT}))?|UNENH[A-Z]*)(?![A-Z])|平扫"
)
NO_AGENT = re.compile(r"NO\b.*|NONE|NON\b.*|N|0|NIL|WITHOUT.*|ORAL.*", re.IGNORECASE)

# SequenceName and PulseSequenceName -> ScanningSequence, for headers that give only the name. The
# names are the vendors' own: Siemens *tfl3d1, *spcir; Philips T1TFE; GE FSE; Canon SEEPI2D; UIH gre_fsp.
FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"EPFID|FEEPI|FE_EPI|GRE?_?EPI|EPI_BOLD", ("EP", "GR")),
    (r"EPSE|EP_B|E[PZ]_|RE_B|SE_?EPI|DWISE|EPI_D[WT]I", ("EP", "SE")),
    (r"^EP", ("EP",)),
    (r"SPCIR|^TIR|HIR|FSE_?IR|^IR|FLAIR", ("SE", "IR")),
    (r"TFL|^FL|^FI\d|FM\dD|SWI|^TFI|^CI\d|FFE|TFE|GRE|SPGR|^FE\d|BRAVO|^ME\dD", ("GR",)),
    (r"TSE|^SE|^H\dD|^SPC|FSE|FASE|CUBE|GRASE", ("SE",)),
)
FAMILY_WORDS = {"EP": "echo planar", "GR": "gradient echo", "SE": "spin echo"}


def sequence_of(header: Header, description: str, *, in_diffusion_series: bool = False) -> MrSequence:
    """Which sequence the image belongs to, by the order of evidence that this file opens with.

    `description` is the SeriesDescription. `in_diffusion_series`: another volume under its
    SeriesInstanceUID is diffusion weighted, so that its own b-value of 0 means something; GE and
    Philips write one into every image.
    """
    text = _plain(description)
    found = (
        _by_image_type(header)
        or _by_diffusion(header, text, in_diffusion_series)
        or _by_purpose(header, text)
        or _by_weighting(header, text)
    )
    return _with_contrast(found, header, description) if found.kind == T1 else found


def _plain(text: str) -> str:
    """Upper case, and blanks between the words whatever stood there; + * = carry meaning."""
    return " ".join(re.sub(r"[^\w+*=]|_", " ", text.upper()).split())


def _by_image_type(header: Header) -> MrSequence | None:
    stated = {word.upper() for word in header.image_type[2:]}
    for kind, words in IMAGE_TYPES.items():
        if named := sorted(stated & words):
            return MrSequence(kind, f"image type {named[0]}")
    if named := sorted(stated & SWI_TYPES):
        return MrSequence(SWI, f"image type {named[0]}")
    return None


def _by_diffusion(header: Header, text: str, in_diffusion_series: bool) -> MrSequence | None:
    weighted = header.b_value is not None and header.b_value > WEIGHTED_B
    derived = "DERIVED" in {word.upper() for word in header.image_type}
    if DIFFUSION_MAP_WORDS.search(text) and (derived or not weighted):
        return MrSequence(DIFFUSION_MAP, "its description")
    if ADC_WORDS.search(text) and (derived or not weighted):
        return MrSequence(ADC, "its description")
    if not (weighted or in_diffusion_series or _looks_like_diffusion(header, text)):
        return None
    b_value = _b_value(header, text)
    if b_value is None:
        return MrSequence("", "it is diffusion imaging, but its b-value is not stated")
    kind = DWI if b_value > WEIGHTED_B else B0
    return MrSequence(kind, f"b-value {b_value:g}", b_value)


def _looks_like_diffusion(header: Header, text: str) -> bool:
    stated = {word.upper() for word in header.image_type[2:]}
    name = _plain(header.sequence_name)
    return bool(
        stated & DIFFUSION_TYPES
        or DIFFUSION_WORDS.search(text)
        or re.search(r"\b(?:EP|EZ|RE) B\d|DWI|DTI", name)
    )


def _b_value(header: Header, text: str) -> float | None:
    """The header's, else the one in the sequence name, else in the description if it names one."""
    if header.b_value is not None:
        return header.b_value
    for words in (_plain(header.sequence_name), text):
        named = {float(number) for number in B_WORDS.findall(words)}
        if len(named) == 1:
            return named.pop()
    return None


def _by_purpose(header: Header, text: str) -> MrSequence | None:
    name = header.sequence_name.upper()
    for kind, pattern in PURPOSES:
        if match := pattern.search(text):
            return MrSequence(kind, f"its description ({match[0].strip()})")
    if re.search(r"FM\dD", name):
        return MrSequence(FIELD_MAP, "its sequence name")
    if re.search(r"FL3D\w*_T\d", name):
        # TONE: a flip angle that rises along the vessel, used for nothing else.
        return MrSequence(ANGIOGRAM, "its sequence name")
    if re.search(r"(?<![A-Z0-9])B0(?![A-Z0-9])", text) and "GR" in _family(header):
        return MrSequence(FIELD_MAP, "its description (B0), being a gradient echo")
    return None


def _by_weighting(header: Header, text: str) -> MrSequence:
    by_times, times = _by_times(header)
    by_name = _named_weighting(text)
    if not by_name and not _is_ge(header):
        # GE writes the name of the whole examination's protocol there.
        by_name = _named_weighting(_plain(header.protocol))
    blind = header.inversion_ms in (None, 0) and by_times in (T2, PD) and by_name in (FLAIR, STIR)
    if by_name and (blind or not by_times):
        because = "no inversion time is stated" if blind else times
        return MrSequence(by_name, f"its name, as {because}")
    if by_times and by_name not in ("", by_times):
        return MrSequence(by_times, f"{times}, although its name says {by_name}")
    return MrSequence(by_times, times)


def _is_ge(header: Header) -> bool:
    return header.manufacturer.upper().startswith("GE")


def _named_weighting(text: str) -> str:
    """ "" where no weighting is named, or more than one ("PD + T2": each echo has its own)."""
    named = {kind for kind, pattern in WEIGHTINGS.items() if pattern.search(text)}
    if FLAIR in named:
        # "T2 FLAIR" is FLAIR; "T1 FLAIR" is T1 by inversion recovery.
        return T1 if T1 in named and T2 not in named else FLAIR
    for kind in (STIR, SWI):
        if kind in named:
            return kind
    return named.pop() if len(named) == 1 else ""


def _by_times(header: Header) -> tuple[str, str]:
    """What the times make it, and the times in words; "" where they fit several sequences or none."""
    family = _family(header)
    stated = _times_in_words(header, family)
    te_ms, tr_ms, ti_ms = header.echo[0], header.repetition_ms, header.inversion_ms
    if not te_ms or not tr_ms:
        return "", "repetition and echo time are not both stated"
    if ti_ms:
        kind = _by_inversion(tr_ms, te_ms, ti_ms, family)
    elif "EP" in family:
        return "", f"{stated}: several kinds of echo planar imaging share these"
    elif "GR" in family:
        kind = _by_gradient_echo(header, tr_ms, te_ms, family)
    elif "SE" in family and "IR" not in family:
        kind = _by_spin_echo(tr_ms, te_ms)
    else:
        kind = ""
    return kind, stated if kind else f"{stated} fit no one sequence"


def _family(header: Header) -> frozenset[str]:
    """ScanningSequence and SequenceVariant, or what the sequence name and the times make of it."""
    stated = {part for word in header.scanning_sequence for part in re.split(r"[\\/_ ]", word.upper())}
    if stated & {"SE", "GR", "EP"}:
        return frozenset(stated)
    name = header.sequence_name.upper().lstrip("*")
    for pattern, family in FAMILIES:
        if name and re.search(pattern, name):
            return frozenset({*stated, *family})
    tr_ms, flip_deg = header.repetition_ms or 0, header.flip_deg or 0
    if 0 < tr_ms < SLOW_GRADIENT_TR_MS:
        return frozenset({*stated, "GR"})
    # A gradient echo of so long a TR is never excited so far.
    return frozenset({*stated, "SE"}) if flip_deg >= 80 and tr_ms >= 300 else frozenset(stated)


def _times_in_words(header: Header, family: frozenset[str]) -> str:
    times = {"TR": header.repetition_ms, "TE": header.echo[0], "TI": header.inversion_ms}
    words = ", ".join(
        f"{name} {ms:.3g}" if ms < 100 else f"{name} {ms:.0f}" for name, ms in times.items() if ms
    )
    flip = f", flip {header.flip_deg:g} deg" if header.flip_deg and "GR" in family else ""
    kinds = " ".join(FAMILY_WORDS[word] for word in ("EP", "GR", "SE") if word in family)
    return f"{words} ms{flip}" + (f" ({kinds})" if kinds else "")


def _by_inversion(tr_ms: float, te_ms: float, ti_ms: float, family: frozenset[str]) -> str:
    gradient = "GR" in family
    if ti_ms > FLAIR_TI_MS:
        return FLAIR if te_ms >= LONG_SE_TE_MS and not gradient else ""
    if gradient and te_ms <= 10:
        return T1
    if ti_ms > T1_TI_MS:
        return T1 if te_ms <= PD_TE_MS else ""
    low_ms, high_ms = STIR_TI_MS
    return STIR if low_ms <= ti_ms <= high_ms and tr_ms >= LONG_SE_TR_MS else ""


def _by_gradient_echo(header: Header, tr_ms: float, te_ms: float, family: frozenset[str]) -> str:
    low_ms, high_ms = STATIC_DEPHASING_TE_MS
    if low_ms <= te_ms <= high_ms:
        return SWI
    balanced = "SS" in family and "SP" not in family
    if te_ms > 10 or balanced or header.flip_deg is None:
        return ""
    if SPOILED_TR_MS[0] <= tr_ms < SPOILED_TR_MS[1] and 5 <= header.flip_deg <= 40:
        return T1
    return T1 if SLOW_GRADIENT_TR_MS <= tr_ms <= 500 and header.flip_deg >= 50 else ""


def _by_spin_echo(tr_ms: float, te_ms: float) -> str:
    if tr_ms <= SHORT_SE_TR_MS:
        return T1 if te_ms <= SHORT_SE_TE_MS else ""
    if tr_ms < LONG_SE_TR_MS:
        return ""
    return T2 if te_ms >= LONG_SE_TE_MS else PD if te_ms <= PD_TE_MS else ""


def contrast_stated(header: Header, description: str) -> bool | None:
    """Whether the image was made after a contrast agent; None where nothing says so or otherwise.

    An agent that the header names outweighs the description, and the description an empty
    attribute, which is also how DICOM writes "unknown" (PS3.5 section 7.4.3).
    """
    if _has_agent(header):
        return True
    text = _plain(description)
    before = bool(UNENHANCED.search(text))
    after = bool(ENHANCED.search(UNENHANCED.sub(" ", text)))
    return None if before == after else after


def _has_agent(header: Header) -> bool:
    agent = (header.contrast or "").strip()
    return bool(agent) and not NO_AGENT.fullmatch(agent)


def _with_contrast(found: MrSequence, header: Header, description: str) -> MrSequence:
    if not contrast_stated(header, description):
        return MrSequence(T1, f"{found.words}, no contrast agent stated")
    if not _has_agent(header):
        return MrSequence(T1_CONTRAST, f"{found.words}, after contrast by its name")
    doubt = ", although its name says before" if UNENHANCED.search(_plain(description)) else ""
    return MrSequence(T1_CONTRAST, f"{found.words}, with a contrast agent stated{doubt}")
