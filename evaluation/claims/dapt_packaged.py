"""The packaged chest CT model at the second site, on its own grid: `dapt` on the site's archive before few
labels, beside equal steps without it, and beside the model as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evaluation.claims.dapt import BLEU, TEMPLATED
from evaluation.claims.row import Job, Measured, Row, Target, gain
from evaluation.claims.second_site import SecondSite, best_of, facts_of, steps_to
from evaluation.claims.world import fine_site
from mla_med.files import write_text
from mla_med.model import CHECKPOINTS

if TYPE_CHECKING:
    from dapt.stages import Shelf
    from mla_med.model.mla import MLAModel

ABOVE = Target("finding F1 above the control's", 0, "points", strictly=True)


class PackagedSite(SecondSite):
    """One seed of the experiment. No first site has to be learnt: the packaged model knows it."""

    kept = "packaged_site"

    def read_shelves(self) -> dict[str, Shelf]:
        from dapt.site import CorporaPlan
        from dapt.stages import read_shelf

        site = fine_site(self.job)
        return {"site": read_shelf("site", site, CorporaPlan(str(site), labelled=self.sizes["labelled"]))}

    def first_site(self) -> MLAModel:
        from mla_med.model.checkpoint import read_model

        return read_model(CHECKPOINTS["chest_ct"])

    def as_it_is(self) -> dict[str, float]:
        """Nothing was learnt at the site: it knows neither its scanner nor how it writes."""
        path = self.folder / "start" / "scores.json"
        if not path.is_file():
            from mla_med.model.checkpoint import read_model

            f1 = self.f1(read_model(self.start() / "model"), self.shelves["site"].labelled)
            write_text(path, json.dumps({"BLEU-4": self.bleu("start"), "F1": f1}) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


def measure(job: Job) -> Measured:
    site = PackagedSite(job)
    arms = {"as it is": site.as_it_is()}
    job.say(f"as it is: BLEU-4 {arms['as it is']['BLEU-4']:.3f}, F1 {arms['as it is']['F1']:.1f} %")
    ours, control = site.with_archive(), site.without()
    for name, folder, done in (("with DAPT", "with", ours), ("without, equal steps", "without", control)):
        arms[name] = site.written(name, folder, done) | {
            "best F1": best_of(done["curve"])[0],
            "steps to the control's best F1": steps_to(done["curve"], best_of(control["curve"])[0]),
        }
    for name, value in site.floors().items():
        arms[f"floor: {name} report of the labelled"] = {"BLEU-4": value}
    with_it, without = arms["with DAPT"], arms["without, equal steps"]
    values = {
        BLEU.name: gain(with_it["BLEU-4"], without["BLEU-4"]),
        TEMPLATED.name: with_it["BLEU-4"],
        ABOVE.name: with_it["F1"] - without["F1"],
    }
    return Measured(values, arms, facts_of(site))


def _sizes(quick: bool) -> Mapping[str, Any]:
    if quick:
        return {
            **{"labelled": 4, "extend": 8, "positions": 64, "draft_tokens": 16},
            **{"lr": 3e-4, "ema": 0.8, "batch": 2, "queue": 0, "every": 1, "tested": 4, "drafts": 2},
            **{"steps_archive": 2, "steps_texts": 1, "steps_labelled": 1},
        }
    return {
        **{"phantoms_b": 180, "labelled": 64, "extend": 1024, "positions": 512, "draft_tokens": 320},
        **{"lr": 8e-4, "ema": 0.95, "batch": 4, "queue": 0, "every": 20, "tested": 60, "drafts": 60},
        **{"steps_archive": 280, "steps_texts": 200, "steps_labelled": 80, "precision": "bf16"},
    }


ROW = Row(
    "dapt_packaged",
    "DAPT: BLEU-4 0.67, +29 %, of a model that can read",
    "the packaged chest CT model at the second site of phantoms, 64 labelled studies",
    "the same start and steps on the site, all of them on the labelled studies; and the model as it is",
    (BLEU, TEMPLATED, ABOVE),
    _sizes,
    measure,
)
