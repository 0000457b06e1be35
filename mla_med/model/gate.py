"""What is known of a study -> Gate: may this model draft it? Every refusal has a code.

Plain values in, no DICOM: the header part runs before pixels are read, the pixel part before findings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_med.model.calibrate import Calibration
from mla_med.types import Reason

LUNG_HU = (-990.0, -650.0)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a checkpoint was trained for."""

    examination: str = "chest_ct"
    modality: str = "CT"
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "LUNG", "TORSO")
    orientation: str = "axial"
    coverage_mm: float = 180.0
    """Least extent along the patient's length: apices to bases."""
    in_plane_mm: float = 200.0
    """Least width and depth of the field of view."""
    thickness_mm: float = 5.5
    """Largest distance between slices."""
    tilt_deg: float = 2.0


def header_reasons(
    scope: Scope, modality: str, body_part: str, orientation: str, tilt_deg: float, shape, spacing_mm
) -> tuple[Reason, ...]:
    """Refusals that the header alone justifies. An empty body part is left to the pixels."""
    reasons = []
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
    if orientation != scope.orientation:
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


def lung_share(hu: np.ndarray) -> float:
    """Share of the voxels of a placed image (I, J, K) in HU that have the density of lung."""
    return float(((hu > LUNG_HU[0]) & (hu < LUNG_HU[1])).mean())


def pixel_reasons(calibration: Calibration, share: float, distance: float | None) -> tuple[Reason, ...]:
    """Refusals that the image justifies: no lungs, or features unlike any of the training."""
    low, high = calibration.lung_range
    reasons = []
    if not low <= share <= high:
        reasons.append(
            Reason(
                "HISTOGRAM_UNFAMILIAR",
                f"{100 * share:.0f} % of the image has the density of lung; in the images that this model "
                f"knows it is {100 * low:.0f} to {100 * high:.0f} %.",
            )
        )
    if distance is not None and not distance <= calibration.feature_limit:  # NaN is unfamiliar too
        reasons.append(
            Reason(
                "FEATURES_UNFAMILIAR",
                f"The image lies {distance:.1f} from what this model was trained on; the limit is "
                f"{calibration.feature_limit:.1f} (Mahalanobis distance of its features).",
            )
        )
    return tuple(reasons)
