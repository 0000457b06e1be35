"""HU of the tissues of the chest. Knows no shapes.

Without contrast medium: Kalender, Computed Tomography, 3rd ed. 2011, table 1.2; Lamba et al., AJR
2014;203:W431 (parenchymal organs, blood); Pickhardt et al., Ann Intern Med 2013;158:588 (trabecular
bone by age); Iodine: Bae, Radiology 2010;256:32 (enhancement of blood and organs by phase).
"""

from __future__ import annotations

AIR, GAS = -1000.0, -985.0
TRACHEA = -992.0
LUNG = -886.0
"""Aerated lung in inspiration, its smallest vessels included (Hoffman, J Appl Physiol 1985;59:468)."""
LUNG_PER_MM = 0.42
"""How much denser per mm towards the back of a supine patient (same)."""
FAT, FLUID, SKIN = -103.0, 6.0, 15.0
MUSCLE, BLOOD, MYOCARDIUM = 54.0, 42.0, 48.0
LIVER, SPLEEN, KIDNEY, ADRENAL, PANCREAS, STOMACH_WALL, CHYME = 60.0, 49.0, 32.0, 22.0, 38.0, 38.0, 22.0
GALL, THYROID, OESOPHAGUS, NODE, GLAND = 8.0, 102.0, 36.0, 34.0, 32.0
CARTILAGE, DISC, CORD, DURAL_SAC = 98.0, 82.0, 38.0, 16.0
CORTEX, RIB_CORTEX, RIB_MARROW, STERNAL_MARROW = 880.0, 780.0, 190.0, 130.0
AIRWAY_WALL, FISSURE, LUNG_VESSEL = 20.0, -480.0, 42.0


def trabecular(age_years: float) -> float:
    """Vertebral trabecular bone: about 250 HU at 25 years, losing 2 to 2.5 a year (Pickhardt 2013)."""
    return max(60.0, 262.0 - 2.2 * (age_years - 22))
