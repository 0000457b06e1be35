"""Pre-training on the archive of a second site of phantoms, then few labels: the words of the drafts."""

from __future__ import annotations

from evaluation.claims.row import Job, Measured, Row, Target, gain
from evaluation.claims.second_site import SecondSite, facts_of, sizes

BLEU = Target("BLEU-4, relative", 29, "%")
TEMPLATED = Target("BLEU-4 on the templated site", 0.67)


def measure(job: Job) -> Measured:
    site = SecondSite(job)
    ours, control = site.with_archive(), site.without()
    arms = {}
    for name, folder, done in (("with DAPT", "with", ours), ("without, equal steps", "without", control)):
        arms[name] = site.written(name, folder, done)
    for name, value in site.floors().items():
        arms[f"floor: {name} report of the labelled"] = {"BLEU-4": value}
    ours_bleu, control_bleu = arms["with DAPT"]["BLEU-4"], arms["without, equal steps"]["BLEU-4"]
    values = {BLEU.name: gain(ours_bleu, control_bleu), TEMPLATED.name: ours_bleu}
    return Measured(values, arms, facts_of(site))


ROW = Row(
    "dapt",
    "DAPT: BLEU-4 0.67, +29 %",
    "second site of phantoms (12 mm), 64 labelled studies: greedy drafts against the templated references",
    "the same start and steps on the site, all of them on the labelled studies",
    (BLEU, TEMPLATED),
    sizes,
    measure,
)
