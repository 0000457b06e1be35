"""Where a phantom is examined and reported: the two sites between which models are adapted.

They differ in what adaptation has to bridge: scanner and kernel, dose, how often a disease comes, and
the style and the language of the reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mla_med.errors import ConfigError
from mla_med.phantom.scanner.ct import SITE_A, SITE_B, ScanSite
from mla_med.phantom.scanner.mr import MR_SITE_A, MR_SITE_B, MrSite


@dataclass(frozen=True, slots=True)
class Site:
    key: str
    language: str
    style: str
    """A packaged style of that language."""
    ct: ScanSite
    mr: MrSite
    odds: Mapping[str, float] = field(default_factory=dict)
    """What comes here more or less often, as odds ratios by finding code."""


SITES: dict[str, Site] = {
    site.key: site
    for site in (
        Site("a", "en", "prose", SITE_A, MR_SITE_A),
        Site(
            "b",
            "zh",
            "template",
            SITE_B,
            MR_SITE_B,
            {
                **{"lung_nodule": 1.8, "bronchiectasis": 2.5, "fibrotic_sequela": 2.5, "emphysema": 0.6},
                **{"coronary_calcification": 0.5, "aortic_aneurysm": 0.5, "hiatal_hernia": 0.5},
                **{"white_matter_hyperintensity": 1.5, "haemorrhage": 2.0, "brain_mass": 0.6},
            },
        ),
    )
}


def site_of(key: str) -> Site:
    """The site by its key; ConfigError names those that exist."""
    if key not in SITES:
        raise ConfigError(f"No site '{key}'; there are: {', '.join(SITES)}.", code="SITE_UNKNOWN")
    return SITES[key]
