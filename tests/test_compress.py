"""What is removed is gone and only that: the model is smaller, loads like any other, and says what it
lost."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from dapt.recovery import Course, distillation_loss, hint_loss, imitate, patch_loss, recover, settle
from mla_med.errors import ConfigError
from mla_med.model import pruning_plan
from mla_med.model.compress import Group, coupled, masked, remove, weigh
from mla_med.model.config import tiny
from mla_med.model.findings import FindingTargets
from mla_med.model.mla import MLAModel
from mla_med.model.pruning_plan import choose, measure, plan_for, share_of

SIZES = {"widths": (16, 32, 32, 32), "units": (1, 2, 2, 1), "depth": 2, "width": 32}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batches_of(model, count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    findings = len(model.config.finding_keys)
    for _ in range(count):
        yield {
            "image_BCIJK": torch.rand(2, 3, 32, 32, 32, generator=generator),
            "text": ["cough", "fever"],
            "present_BC": torch.ones(2, 3, dtype=torch.bool),
            "affine_B44": torch.eye(4).expand(2, 4, 4) * 3,
            "targets": FindingTargets((torch.rand(2, findings, generator=generator) < 0.3).float()),
        }


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(0)
    model = MLAModel(tiny(**SIZES))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):  # as after training: no channel is like another
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    model.eval()
    image = torch.rand(1, 3, 32, 32, 32)
    groups = coupled(model, image, least_share=0)
    weigh(groups, model, batches_of(model, 2))
    return model, groups, image


def said(model, image):
    with torch.no_grad():
        fused = model.encode(image, "cough")
        return fused, model.find(fused)


def test_groups_are_stages_between_units_heads_and_pairs(world):
    _, groups, _ = world
    names = {group.name for group in groups}
    assert {"fusion.blocks.0.heads", "fusion.blocks.1.feed_forward"} <= names
    assert any(name.startswith("image_encoder.stages.1.refine.conv.unit0") for name in names)
    stage = next(g for g in groups if g.name.startswith("image_encoder.stages.1.halve"))
    # with a stage go its norms, its gate, the next stage, the pyramid and the lesion map
    assert len(stage.parts) >= 8
    assert not any("pyramid.lateral" in name or "lesion_map" in name for name in names)


def test_removed_equals_masked(world):
    model, groups, image = world
    plan = choose(groups, 0.5)
    assert {"heads", "pairs", "channels"} == {g.kind for g in groups if g.name in plan}
    fused, found = said(remove(model, groups, plan), image)
    fused_masked, found_masked = said(masked(model, groups, plan), image)
    assert (found.presence_logits_BF - found_masked.presence_logits_BF).abs().max() <= 1e-5
    assert (fused.tokens_BSD - fused_masked.tokens_BSD).abs().max() <= 1e-5
    assert (fused.lesions.logits_BFN - fused_masked.lesions.logits_BFN).abs().max() <= 1e-5
    # and it is not as if nothing had been removed
    assert (found.presence_logits_BF - said(model, image)[1].presence_logits_BF).abs().max() > 1e-3


def test_nothing_removed_is_the_same_model(world):
    model, groups, image = world
    smaller = remove(model, groups, {})
    assert not smaller.config.pruned
    assert torch.equal(said(smaller, image)[1].presence_logits_BF, said(model, image)[1].presence_logits_BF)


def test_a_pruned_model_loads_like_any_other(world, tmp_path):
    model, groups, image = world
    smaller = remove(model, groups, choose(groups, 0.6))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    smaller.save_pretrained(tmp_path)
    loaded, told = MLAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    wanted = said(smaller, image)[1].presence_logits_BF
    assert torch.allclose(said(loaded.eval(), image)[1].presence_logits_BF, wanted, atol=1e-6)


def test_every_group_keeps_its_floor_and_its_steps(world):
    _, groups, _ = world
    plan = choose(groups, 1.0)
    for group in groups:
        left = group.channels - len(plan.get(group.name, ()))
        assert left >= group.floor
        assert len(plan.get(group.name, ())) % {"channels": 8, "pairs": 16, "heads": 1}[group.kind] == 0


def test_what_is_worth_least_for_its_price_goes_first(world):
    _, groups, _ = world
    one = next(g for g in groups if g.kind == "pairs")
    worth, one.worth_C = one.worth_C, torch.zeros(one.channels)
    try:
        assert one.name in choose(groups, 0.01)
    finally:
        one.worth_C = worth


def test_what_fits_into_the_wished_time_comes_back(world, monkeypatch):
    """A clock that counts: one group of little worth is cheap, one of most worth is dear and goes last."""
    image = world[2]
    cheap, dear = (Group(name, "channels", 32, []) for name in ("cheap", "dear"))
    cheap.cost, dear.cost = 1.0, 8.0
    cheap.worth_C, dear.worth_C = torch.arange(32.0), 1e3 + torch.arange(32.0)

    def seconds(models, image, rounds):
        return [[1000.0], [1000.0 - models[1]]]

    def removed(model, groups, plan):
        return sum(len(gone) * {"cheap": 1.0, "dear": 8.0}[name] for name, gone in plan.items())

    monkeypatch.setattr(pruning_plan, "encode_s", seconds)
    monkeypatch.setattr(pruning_plan, "remove", removed)
    own = [cheap, dear]
    # 64 of a step of the dear group alone are enough for 0.94; the cheap one comes back, all of it
    assert plan_for(None, own, 0.94, image) == {"dear": tuple(range(8))}
    # 70 want a step of the cheap one too: that which is worth least, the other comes back
    assert plan_for(None, own, 0.93, image) == {"cheap": tuple(range(8)), "dear": tuple(range(8))}
    assert share_of(own, {"dear": tuple(range(8))}) == pytest.approx(64 / 288)
    assert plan_for(None, own, 1.0, image) == {"cheap": tuple(range(8))}  # one step goes at least
    with pytest.raises(ConfigError, match="at its floor"):
        plan_for(None, own, 0.5, image)


def test_recovery_brings_the_small_model_nearer_to_the_whole(world):
    model, groups, _ = world
    torch.manual_seed(1)
    smaller = remove(model, groups, choose(groups, 0.6))
    (batch,) = batches_of(model, 1, seed=9)
    del batch["targets"]  # made up, so nothing to learn from
    with torch.no_grad():
        before = distillation_loss(smaller, model, batch)
    recover(smaller, model, Course(lambda step: batch, 30, lr=3e-3))
    with torch.no_grad():
        assert distillation_loss(smaller, model, batch) < 0.95 * before


def test_cubes_bring_the_levels_nearer_to_those_of_the_whole_model(world, monkeypatch):
    monkeypatch.setattr("dapt.recovery.EDGE", 16)
    model, groups, _ = world
    smaller = remove(model, groups, choose(groups, 0.6)).eval()
    untaught = {name: p.clone() for name, p in smaller.named_parameters()}
    (batch,) = batches_of(model, 1, seed=9)

    def loss() -> float:
        with torch.no_grad():
            return float(hint_loss(smaller, model, batch, np.random.default_rng(7)))

    before = loss()
    imitate(smaller, model, Course(lambda number: batch, 24, lr=2e-3))
    assert loss() < 0.9 * before
    changed = {name for name, p in smaller.named_parameters() if not torch.equal(p, untaught[name])}
    assert {name.split(".")[0] for name in changed} <= {"image_encoder", "fusion"}
    assert not [name for name in changed if name.startswith("fusion.") and "pyramid" not in name]


def test_patches_bring_the_map_nearer_to_that_of_the_whole_model(world):
    model, groups, _ = world
    smaller = remove(model, groups, choose(groups, 0.6)).eval()
    (batch,) = batches_of(model, 1, seed=9)
    truth = FindingTargets(
        torch.zeros(2, len(model.config.finding_keys)),
        lesion_boxes_BFL23=torch.full((2, len(model.config.finding_keys), 1, 2, 3), torch.nan),
    )
    pieces = {
        **{name: batch[name] for name in ("image_BCIJK", "present_BC", "affine_B44")},
        **{"whole_B44": batch["affine_B44"], "shape": (64, 64, 64), "targets": truth},
    }
    with torch.no_grad():
        assert patch_loss(model, model, pieces) < patch_loss(smaller, model, pieces)
        before = patch_loss(smaller, model, pieces)
    untaught = {name: p.clone() for name, p in smaller.named_parameters()}
    course = Course(lambda number: batch, 24, lr=2e-3, patches=lambda number: pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dapt.recovery.EDGE", 16)
        imitate(smaller, model, course)
    with torch.no_grad():
        assert patch_loss(smaller, model, pieces) < 0.95 * before
    changed = {name for name, p in smaller.named_parameters() if not torch.equal(p, untaught[name])}
    assert any(name.startswith("fusion.lesion_map.") for name in changed)
    assert not any(name.startswith(("findings", "decoder", "text_encoder")) for name in changed)


@pytest.mark.parametrize("teach", [imitate, recover])
def test_a_killed_recovery_goes_on_to_the_same_weights(world, tmp_path, monkeypatch, teach):
    monkeypatch.setattr("dapt.recovery.CUBES", 1)
    model, groups, _ = world
    monkeypatch.setattr("dapt.recovery.SAVE_EVERY", 2)
    small = remove(model, groups, choose(groups, 0.6))
    each = list(batches_of(model, 6))
    unbroken = teach(deepcopy(small), model, Course(each.__getitem__, 6))

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return each[step]

    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        teach(deepcopy(small), model, Course(killed, 6, state=state))
    steps = []
    course = Course(each.__getitem__, 6, log=lambda step, loss: steps.append(step), state=state)
    resumed = teach(deepcopy(small), model, course)
    assert steps == [4, 5]
    for (name, ours), theirs in zip(resumed.named_parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_what_is_left_has_the_statistics_that_it_now_has(world):
    model, groups, _ = world
    smaller = remove(model, groups, choose(groups, 0.6))
    momenta = [m.momentum for m in smaller.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    settle(smaller, batches_of(model, 3))
    norms = [m for m in smaller.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert momenta == [m.momentum for m in norms]
    assert not any(m.training for m in smaller.modules())
    means = [m.running_mean.clone() for m in norms]
    settle(smaller, batches_of(model, 3))
    for norm, mean in zip(norms, means, strict=True):
        torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-4)
    stage = smaller.image_encoder.stages[0]
    seen = []
    stage.norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for batch in batches_of(model, 3):  # with gradients: the norm is called by itself
        smaller.encode(batch["image_BCIJK"], batch["text"], batch["present_BC"], batch["affine_B44"])
    mean = torch.stack([x.mean(dim=(0, 2, 3, 4)) for x in seen]).mean(0)
    torch.testing.assert_close(stage.norm.running_mean, mean.detach(), atol=1e-4, rtol=1e-3)


def test_a_channel_costs_the_time_that_it_takes(world):
    model, groups, image = world
    own = deepcopy((model, groups))[1]
    measure(own, model, image, rounds=3)
    assert all(0 < group.cost < 1 for group in own if group.floor < group.channels)
    assert choose(own, 0.3)


def test_other_encoders_are_not_pruned():
    model = MLAModel(tiny(fusion_type="concat"))
    with pytest.raises(ConfigError, match="Only models with the encoder"):
        coupled(model, torch.rand(1, 3, 32, 32, 32))
