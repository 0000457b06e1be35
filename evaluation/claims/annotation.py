"""Which studies of the second site to label next: chosen beside drawn."""

from __future__ import annotations

import numpy as np

from evaluation.claims.row import Job, Measured, Row, Target
from evaluation.claims.second_site import SecondSite, best_of, facts_of, sizes

BETTER = Target("F1 with labels chosen, above labels drawn", 0, "points", strictly=True)


def measure(job: Job) -> Measured:
    """Half of the labels are drawn; the other half is drawn too, or chosen by who learnt the first."""
    from dapt.annotate import choose_next
    from mla_med.model.checkpoint import read_model

    site, shelf = SecondSite(job), SecondSite(job).shelves["site"]
    steps, budget = site.sizes["steps_labelled"], site.sizes["labelled"]
    order = np.random.default_rng([job.seed, 64]).permutation(len(shelf.train))
    pool = [shelf.train[n] for n in order]
    first = pool[: budget // 2]
    begun = site.labelled("chosen-first", site.adapted(), steps, first)
    model = read_model(site.folder / "chosen-first" / "model")
    choices = choose_next(model, pool[budget // 2 :], first, budget - len(first), shelf.settings)
    by_id = {e.id: e for e in pool}
    orders = {"drawn": pool[:budget], "chosen": [*first, *(by_id[choice.id] for choice in choices)]}
    arms: dict[str, dict[str, float]] = {
        f"{len(first)} labels, drawn": {"F1": begun["curve"][-1][1], "best F1": best_of(begun["curve"])[0]}
    }
    for count in (budget * 3 // 4, budget):
        for name, examples in orders.items():
            done = site.labelled(f"{name}-{count}", site.adapted(), steps, examples[:count])
            f1, best = done["curve"][-1][1], best_of(done["curve"])[0]
            arms[f"{count} labels, {name}"] = {"F1": f1, "best F1": best}
            job.say(f"{count} labels, {name}: F1 {f1:.1f} %")
    ours, control = (arms[f"{budget} labels, {name}"]["F1"] for name in ("chosen", "drawn"))
    return Measured({BETTER.name: ours - control}, arms, facts_of(site))


ROW = Row(
    "annotation",
    "ours: labels chosen by uncertainty and diversity are worth more than labels drawn",
    "second site of phantoms (12 mm): F1 with 64 labels, the second half of them chosen or drawn",
    "as many labels drawn at random, the same start and steps",
    (BETTER,),
    sizes,
    measure,
)
