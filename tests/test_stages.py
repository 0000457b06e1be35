"""Token selection in three stages: fewer and fewer tokens, nothing lost, every scorer taught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mla_med.errors import ConfigError
from mla_med.model.attention import choose_kept
from mla_med.model.config import tiny
from mla_med.model.findings import FindingTargets, coverage_loss
from mla_med.model.mla import MLAModel

STAGES = {"depth": 3, "keep_ratio": 0.7, "keep_stages": (0.49, 0.34), "token_budget": 512}


def a_model(**changes) -> MLAModel:
    torch.manual_seed(0)
    return MLAModel(tiny(**{**STAGES, **changes})).eval()


def images(batch: int = 2, size=(48, 40, 32)) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def kept_per_stage(model: MLAModel) -> list[list[int]]:
    selection = model.encode(images(), ["cough", ""]).selection
    return [stage.keep_BN.sum(1).tolist() for stage in selection.stages]


def test_each_stage_keeps_its_share_of_all_tokens():
    # 6 x 5 x 4 cells of stride 8
    assert kept_per_stage(a_model()) == [[84, 84], [59, 59], [41, 41]]


def test_what_a_stage_dropped_never_comes_back():
    fused = a_model().encode(images(), ["cough", ""])
    first, *later = (stage.keep_BN for stage in fused.selection.stages)
    places = [set(torch.nonzero(first[0])[:, 0].tolist())]
    kept = (fused.strides_BS[0] == 8) & fused.located_BS[0]
    assert set(fused.index_BS[0, kept].tolist()) <= places[0]
    assert int(kept.sum()) == int(later[-1][0].sum()) == 41


def test_kept_tokens_keep_their_place_through_all_stages():
    fused = a_model().encode(images(size=(32, 32, 32)), ["cough", ""])
    kept = (fused.strides_BS[0] == 8) & fused.located_BS[0]
    places = fused.index_BS[0, kept]
    expected = torch.stack([places // 16, places // 4 % 4, places % 4], 1) * 8 + 3.5
    assert torch.equal(fused.positions_BS3[0, kept], expected)


@pytest.mark.parametrize(("per_slice", "least"), [(0, 0), (5, 5), (10, 10)])
def test_no_slice_is_left_to_the_fused_rest_alone(per_slice, least):
    """Scores that want the lowest slices alone, and how many of each of the four are kept all the same."""
    model = a_model(keep_per_slice=per_slice)
    lowest_first = torch.arange(120) % 4 * -50.0
    for scorer in (model.fusion.scorer, *model.fusion.later_scorers):
        scorer.forward = lambda x_BND, mask_BN: lowest_first[: x_BND.shape[1]].expand(len(x_BND), -1)
    fused = model.encode(images(), ["cough", ""])
    kept = (fused.strides_BS[0] == 8) & fused.located_BS[0]
    assert int(kept.sum()) == 41
    counts = torch.bincount(fused.index_BS[0, kept] % 4, minlength=4)
    assert int(counts.min()) == least


@pytest.mark.parametrize("per_slice", [0, 4])
@pytest.mark.parametrize("present", [[1, 1], [1, 0]])
def test_masked_and_gathered_agree_through_all_stages(monkeypatch, present, per_slice):
    # the noise of training would choose others
    monkeypatch.setattr(
        "mla_med.model.fusion.choose_kept", lambda *a, noisy=False, **more: choose_kept(*a, **more)
    )
    changes = {"masked_training": True, "modality_dropout": (0.0, 0.0), "keep_per_slice": per_slice}
    gathered, masked = a_model(**changes), a_model(**changes)
    masked.fusion.train()
    present_BC = torch.tensor(present)[:, None].expand(2, 3)
    one, other = (m.find(m.encode(images(), ["a", "bc"], present_BC)) for m in (gathered, masked))
    assert (one.presence_logits_BF - other.presence_logits_BF).abs().max() < 1e-5
    assert (one.size_mm_BF - other.size_mm_BF).abs().max() < 1e-4


@pytest.mark.parametrize("masked", [True, False])
def test_every_scorer_is_taught(masked):
    model = a_model(masked_training=masked).train()
    output = model(["cough", ""], images())
    output.findings.presence_logits_BF.sum().backward()
    for scorer in (model.fusion.scorer, *model.fusion.later_scorers):
        assert scorer.score.weight.grad.abs().sum() > 0


def test_a_patient_never_changes_another_through_all_stages():
    model, image = a_model(), images()
    changed = image.clone()
    changed[1] += 1
    one, other = (model(["a", "b"], x).findings.presence_logits_BF for x in (image, changed))
    torch.testing.assert_close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-4


def test_every_stage_must_want_the_cells_of_a_lesion():
    model = a_model()
    selection = model.encode(images(1), "cough").selection
    presence = torch.zeros(1, len(model.config.finding_keys))
    presence[0, 0] = 1
    box = torch.full((*presence.shape, 2, 3), torch.nan)
    box[0, 0] = torch.tensor([[4.0, 4.0, 4.0], [30.0, 30.0, 20.0]])
    targets = FindingTargets(presence, lesion_boxes_BFL23=box.unsqueeze(2))
    eager = replace(
        selection,
        scores_BN=selection.scores_BN * 0 + 20,
        later=tuple(replace(stage, scores_BN=stage.scores_BN * 0 + 20) for stage in selection.later),
    )
    assert coverage_loss(eager, targets) < 1e-6
    one_unwilling = replace(
        eager, later=(eager.later[0], replace(eager.later[1], scores_BN=eager.later[1].scores_BN - 30))
    )
    assert coverage_loss(one_unwilling, targets) > 1


@pytest.mark.parametrize(
    "wrong", [{"keep_stages": (0.8, 0.3)}, {"keep_stages": (0.49, 0.34), "depth": 2}, {"keep_ratio": 1.5}]
)
def test_shares_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="Shares of kept tokens"):
        tiny(**{**STAGES, **wrong})
