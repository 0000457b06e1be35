"""What is known of a study -> Gate: may this model draft it? Every refusal has a code.

Plain values in, no DICOM: the header part runs before pixels are read, the part of what the voxels show
before the network, the features before any finding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mla_med.model.calibrate import Calibration
from mla_med.model.usual import Usual
from mla_med.types import Modality, Reason

CUT_OFF_CM2 = 40.0
"""So much lung may lie on the last slices of a scan: recesses; of 80 phantoms 25 cm2 at most."""

PROCESSED = (
    *("SUBTRACTION", "SUBTRACT", "SUB", "ADDITION", "MASKED", "DIVISION", "MULTIPLICATION"),
    *("STD_DEVIATION", "PERFUSION", "CBF", "CBV", "MTT", "TTP"),
)
"""Values of Image Type (0008,0008) of images that were calculated from others, so that their numbers are
no tissue's: Defined Terms of derived pixel contrast (PS3.3 C.8.16.1), and what makers write. A reformatted
CT stays in HU; localizers, screens and projections are refused where the series is certified."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a checkpoint was trained for."""

    examination: str = "chest_ct"
    modality: str = "CT"
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "LUNG", "TORSO")
    orientation: str = "axial"
    """Empty: any."""
    coverage_mm: float = 180.0
    """Least extent along the patient's length: apices to bases."""
    in_plane_mm: float = 200.0
    """Least width and depth of the field of view."""
    thickness_mm: float = 5.5
    """Largest distance between slices."""
    tilt_deg: float = 2.0
    youngest_years: float = 18.0
    """No child was among the training examples, and children are not small adults."""
    enhanced: bool = False
    """Whether images with contrast medium were among them."""
    sequences: tuple[str, ...] = ()
    """MR: any of these has to be there; without one too little is seen."""

    @property
    def shown(self) -> str:
        """The part of the body as the voxels are judged (Certificate.body_part_pixels)."""
        return {"chest_ct": "chest", "abdomen_ct": "abdomen"}.get(self.examination, "head")


SCOPES = {
    "chest_ct": Scope(enhanced=True),
    "brain_mr": Scope(
        examination="brain_mr",
        modality="MR",
        body_parts=("BRAIN", "HEAD"),
        orientation="",
        coverage_mm=90.0,
        in_plane_mm=150.0,
        thickness_mm=8.5,
        tilt_deg=60.0,
        enhanced=True,
        sequences=("FLAIR", "T2"),
    ),
}
"""What the shipped models are trained for."""


def header_reasons(
    scope: Scope,
    modality: str,
    body_part: str,
    orientation: str,
    tilt_deg: float,
    shape,
    spacing_mm,
    image_type: tuple[str, ...] = (),
    age_years: float | None = None,
) -> tuple[Reason, ...]:
    """Refusals that the header alone justifies. An empty body part is left to the pixels, an age that
    is not known to whoever reads the draft."""
    reasons = []
    if processed := sorted({value.upper() for value in image_type} & set(PROCESSED)):
        reasons.append(
            Reason(
                "PROCESSED_IMAGES",
                f"The images were calculated from others ({', '.join(processed)}); this model reads what the "
                "scanner reconstructed.",
            )
        )
    if age_years is not None and age_years < scope.youngest_years:
        reasons.append(
            Reason(
                "AGE_UNFAMILIAR",
                f"The patient is {age_years:.0f} years old; this model saw nobody under "
                f"{scope.youngest_years:.0f}.",
            )
        )
    if modality != scope.modality:
        reasons.append(
            Reason("WRONG_MODALITY", f"The series is {modality}; this model reads {scope.modality}.")
        )
    part = body_part.upper()
    if part and not any(known in part for known in scope.body_parts):
        reasons.append(
            Reason(
                "WRONG_BODY_PART",
                f"The series shows {part}; this model was trained for {scope.body_parts[0]}.",
            )
        )
    if scope.orientation and orientation != scope.orientation:
        reasons.append(
            Reason(
                "WRONG_ORIENTATION", f"The slices are {orientation}; this model reads {scope.orientation}."
            )
        )
    extent = [n * s for n, s in zip(shape, spacing_mm, strict=True)]
    if extent[2] < scope.coverage_mm:
        reasons.append(
            Reason(
                "COVERAGE_TOO_SMALL",
                f"The slices cover {extent[2]:.0f} mm along the patient; a whole "
                f"{scope.body_parts[0].lower()} needs at least {scope.coverage_mm:.0f} mm.",
            )
        )
    if min(extent[:2]) < scope.in_plane_mm:
        reasons.append(
            Reason(
                "FIELD_OF_VIEW_TOO_SMALL",
                f"The field of view is {extent[0]:.0f} x {extent[1]:.0f} mm; "
                f"at least {scope.in_plane_mm:.0f} mm are needed.",
            )
        )
    if spacing_mm[2] > scope.thickness_mm:
        reasons.append(
            Reason(
                "SLICES_TOO_THICK",
                f"The slices are {spacing_mm[2]:.1f} mm apart; at most {scope.thickness_mm:.1f} mm.",
            )
        )
    if abs(tilt_deg) > scope.tilt_deg:
        reasons.append(
            Reason(
                "GANTRY_TILT",
                f"The gantry was tilted by {tilt_deg:.1f} degrees; at most {scope.tilt_deg:.0f}.",
            )
        )
    return tuple(reasons)


def missing_reasons(scope: Scope, roles: Collection[str]) -> tuple[Reason, ...]:
    """That none of the sequences is left that have to be there."""
    if scope.sequences and not set(scope.sequences) & set(roles):
        wanted, there = " or ".join(scope.sequences), ", ".join(sorted(roles))
        return (Reason("NO_SEQUENCE", f"There is no {wanted} among the series that were chosen ({there})."),)
    return ()


def content_reasons(
    scope: Scope, body_part_pixels: str, contrast_header: bool | None, contrast_pixels: bool | None
) -> tuple[Reason, ...]:
    """Refusals for another examination than the model was trained for, as the voxels show it: another
    part of the body, or contrast medium. What they do not tell is left to histogram and features."""
    reasons = []
    if body_part_pixels and scope.shown not in body_part_pixels:
        reasons.append(
            Reason(
                "OTHER_EXAMINATION",
                f"The voxels show {body_part_pixels}, whatever the header says; this model was trained for "
                f"{scope.shown}.",
            )
        )
    # the voxels decide: what was injected for another series need not be in this one
    enhanced = contrast_header if contrast_pixels is None else contrast_pixels
    if enhanced and not scope.enhanced:
        seen = "The header states" if contrast_pixels is None else "The vessels show"
        reasons.append(
            Reason("CONTRAST_UNFAMILIAR", f"{seen} contrast medium; this model was trained without it.")
        )
    return tuple(reasons)


def cut_off_reasons(area_cm2: float) -> tuple[Reason, ...]:
    """Refusal of a scan that begins or ends within the lungs (`imaging.lungs.cut_off_cm2`)."""
    if area_cm2 <= CUT_OFF_CM2:
        return ()
    words = (
        f"The scan ends within the lungs: {area_cm2:.0f} cm2 of them lie on its last slices. Was a part of "
        "it sent as another series, or is it still on its way?"
    )
    return (Reason("LUNGS_CUT_OFF", words),)


def value_reasons(usual: Usual, share: float, histograms: Mapping[str, np.ndarray]) -> tuple[Reason, ...]:
    """Refusals that the values of the voxels justify, before the network runs: too little or too much lung
    or head, or values that are rare in familiar images. Arguments: those of imaging.values.Values."""
    low, high = usual.share
    if not low <= share <= high:  # NaN is unfamiliar too
        words = _share_words(100 * share, 100 * low, 100 * high, Modality.CT in histograms)
        return (Reason("HISTOGRAM_UNFAMILIAR", words),)
    return tuple(
        Reason("HISTOGRAM_UNFAMILIAR", _histogram_words(name, 100 * distance, 100 * usual.limits[name]))
        for name, distance in usual.distances(histograms).items()
        if not distance <= usual.limits[name]
    )


def _share_words(share: float, low: float, high: float, ct: bool) -> str:
    if ct:
        return (
            f"{share:.0f} % of the image has the density of lung; in the images that this model knows it is "
            f"{low:.0f} to {high:.0f} %."
        )
    return (
        f"{share:.0f} % of what was measured lies in the head; in the images that this model knows it is "
        f"{low:.0f} to {high:.0f} %."
    )


def _histogram_words(channel: str, distance: float, limit: float) -> str:
    if channel == Modality.CT:
        return (
            f"{distance:.0f} % of the image has other densities than the images that this model knows; the "
            f"limit is {limit:.0f} %."
        )
    return (
        f"{distance:.0f} % of the head is brighter or darker on {channel} than the images that this model "
        f"knows; the limit is {limit:.0f} %."
    )


def feature_reasons(calibration: Calibration, distance: float) -> tuple[Reason, ...]:
    """Refusal of an image whose features are unlike any of the training."""
    if distance <= calibration.feature_limit:  # NaN is not
        return ()
    words = (
        f"The image lies {distance:.1f} from what this model was trained on; the limit is "
        f"{calibration.feature_limit:.1f} (Mahalanobis distance of its features)."
    )
    return (Reason("FEATURES_UNFAMILIAR", words),)
