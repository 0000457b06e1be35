"""How a study was examined -> the sentence that stands above its findings. Knows no images."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mla_med.report.schema import schema_of
from mla_med.report.style import Style
from mla_med.types import Prior, SeriesVerdict

_EXAMINED = {
    ("chest_ct", "en"): "CT of the chest, {slices} slices {spacing:.1f} mm apart.",
    ("chest_ct", "zh"): "胸部CT扫描，共{slices}层，层间距{spacing:.1f} mm。",
    ("brain_mr", "en"): "MR of the brain: {sequences}.",
    ("brain_mr", "zh"): "颅脑MR检查，序列：{sequences}。",
}
_COMPARED = {
    "en": " Compared by measurement with the examination of {date}.",
    "zh": "与{date}检查的测量结果比较。",
}
_UNSEEN = {"en": " Not assessed: {terms}.", "zh": "未评估：{terms}。"}
_UNKNOWN_DATE = {"en": "unknown date", "zh": "日期不明"}


def technique_words(
    examination: str,
    verdicts: Sequence[SeriesVerdict],
    style: Style,
    codes: Collection[str],
    prior: Prior | None,
) -> str:
    """How it was examined, with what it was compared, and what is not looked for: silence on what is not
    among `codes` is no statement."""
    language = style.language
    read = {v.role: v.certificate for v in verdicts if v.chosen and v.certificate is not None}
    if not read or (examination, language) not in _EXAMINED:
        return style.wording(examination).technique
    certificate = next(iter(read.values()))
    text = _EXAMINED[examination, language].format(
        slices=certificate.shape[2],
        spacing=certificate.spacing_mm[2],
        sequences=("、" if language == "zh" else ", ").join(read),
    )
    if prior is not None:
        day = prior.study_date
        date = f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else _UNKNOWN_DATE[language]
        text += _COMPARED[language].format(date=date)
    terms = style.wording(examination).terms
    unseen = [
        terms[code] for code, kind in schema_of(examination).items() if kind.required and code not in codes
    ]
    return text + (_UNSEEN[language].format(terms=style.listed.join(unseen)) if unseen else "")
