"""The same archive: how many steps and labels it spares."""

from __future__ import annotations

import math

from evaluation.claims.row import Job, Measured, Row, Target
from evaluation.claims.second_site import SecondSite, best_of, facts_of, sizes, steps_to

NEVER = "never reached"
SOONER = Target("steps to the control's best F1, fewer", 2.4, "x", missing=NEVER)
LABELS = Target("labels for the control's best F1", 42, "%", at_least=False, missing=NEVER)


def measure(job: Job) -> Measured:
    site = SecondSite(job)
    ours, control = site.with_archive(), site.without()
    best, at = best_of(control["curve"])
    reached = steps_to(ours["curve"], best)
    arms = {
        "with pre-training": {"best F1": best_of(ours["curve"])[0], "steps to the control's best": reached},
        "without": {"best F1": best, "steps to its best": at},
        "by chance": {"best F1": site.chance()},
    }
    labelled = site.shelves["site"].labelled
    enough = 100.0 if reached == reached else math.nan
    for share in site.sizes["shares"]:
        some = labelled[: max(2, round(share * len(labelled)))]
        done = site.labelled(f"with-{len(some)}", site.adapted(), site.sizes["steps_labelled"], some)
        arms[f"with pre-training, {len(some)} labels"] = {"best F1": best_of(done["curve"])[0]}
        if best_of(done["curve"])[0] >= best:
            enough = 100 * len(some) / len(labelled)
    values = {SOONER.name: at / reached, LABELS.name: enough}
    return Measured(
        values, arms, {**facts_of(site), "counted": "steps of s3; those on the archive stand apart"}
    )


ROW = Row(
    "ppt",
    "progressive pre-training: 2.4 x faster few-shot convergence, -58 % labels",
    "second site of phantoms (12 mm): steps and labels of s3 to the best F1 of the control",
    "the same start without the archive; its best F1 over as many steps as all of the chain's",
    (SOONER, LABELS),
    sizes,
    measure,
)
