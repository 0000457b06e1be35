"""A chain of trainings by one command: it goes to its end, goes on after a kill, and says what is wrong."""

from __future__ import annotations

import json

import pytest

import dapt.recipe
from dapt.chain import RECIPES, made_small, read_recipe
from dapt.corpus import settings_of
from dapt.recipe import follow, main
from mla_med.errors import ConfigError
from mla_med.imaging.grid import Preprocessing
from mla_med.model.checkpoint import load_checkpoint, read_model
from mla_med.report.schema import schema_of

SHORT = """
examination = "chest_ct"

[corpora.coarse]
n = 10
seed = 3991
spacing_mm = 12.0

[corpora.fine]
n = 10
seed = 3993
spacing_mm = 6.0

[[steps]]
name = "first"
corpus = "coarse"
rounds = 0
epochs = 1
patches = 2

[[steps]]
name = "half the voxels"
corpus = "fine"
hessian = [0]
epochs = 1
patches = 0
"""


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return path


def test_a_chain_goes_to_its_end_and_on_after_a_kill(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dapt.finish.size_differences_mm", lambda *_: {})
    one_corpus = SHORT[: SHORT.index("[corpora.fine]")] + SHORT[SHORT.index("[[steps]]") :]
    one_corpus = one_corpus.replace('corpus = "fine"', 'corpus = "coarse"')
    short.write_text(one_corpus)
    work, recipe = tmp_path / "work", read_recipe(short)
    with monkeypatch.context() as patch:

        def kill(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(dapt.recipe, "train_checkpoint", kill)
        with pytest.raises(KeyboardInterrupt):
            follow(recipe, work)
    first = work / "steps" / "1-first" / "checkpoint"
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert tuple(read_model(first).config.hessian) == ()
    monkeypatch.setattr("sys.argv", ["recipe", str(short), "--work", str(work), "--workers", "1"])
    assert main() == 0
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    made = load_checkpoint(work / "steps" / "2-half-the-voxels" / "checkpoint")
    assert tuple(made.model.config.hessian) == (0,)
    assert set(made.calibration.answers) == set(schema_of("chest_ct"))
    card = (work / "steps" / "2-half-the-voxels" / "checkpoint" / "README.md").read_text()
    assert f"| command | `python -m dapt.recipe {short} --work" in card
    assert "| trained on | 8 phantoms of site a, from cohort 3991 (" in card
    said = capsys.readouterr().out
    assert "step 2 of 2: half the voxels" in said
    assert said.endswith("checkpoint written\n")
    # what is done is not done again, by a later version either
    monkeypatch.setattr(dapt.recipe, "train_checkpoint", None)
    told = json.loads((work / "recipe.json").read_text())
    del told["steps"][0]["training"]["hessian"]
    (work / "recipe.json").write_text(json.dumps(told))
    assert main() == 0
    short.write_text(one_corpus.replace("n = 10", "n = 11"))
    with pytest.raises(ConfigError, match="begun with another recipe"):
        follow(read_recipe(short), work)


@pytest.mark.parametrize("name", ["chest_ct", "brain_mr"])
def test_the_packaged_recipes_end_in_models_like_the_packaged(name):
    from mla_med.model import CHECKPOINTS

    recipe = read_recipe(RECIPES / f"{name}.toml")
    config = load_checkpoint(CHECKPOINTS[name]).model.config
    assert recipe.examination == name
    last = recipe.corpora[recipe.steps[-1].corpus]
    assert (
        settings_of(name, last.spacing_mm).to_dict()
        == Preprocessing.from_dict(config.preprocessing).to_dict()
    )
    for wanted in ("widths", "units", "hessian"):
        told = [getattr(step.training, wanted) for step in recipe.steps if getattr(step.training, wanted)]
        assert not told or tuple(told[-1]) == tuple(getattr(config, wanted))
    # nobody of whom the calibration is a promise is learnt from
    seeds = [config.seed for config in recipe.corpora.values()]
    assert len(set(seeds)) == len(seeds)
    small = made_small(recipe)
    assert [step.name for step in small.steps] == [step.name for step in recipe.steps]
    assert all(step.training.rounds <= 1 for step in small.steps)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("chest_ct", "knee_mr", "examination is one of chest_ct, brain_mr"),
        ('examination = "chest_ct"', 'examination = ["chest_ct"]', "examination is one of"),
        ('examination = "chest_ct"', 'examination = "chest_ct"\nretest = 5', "nothing is called retest"),
        ("epochs = 1", "epoch = 1", "step first: nothing is called epoch"),
        ("epochs = 1", "epochs = 1.5", "epochs is a int, not 1.5"),
        ("epochs = 1", "epochs = -1", "0 or more"),
        ("epochs = 1", "epochs =", "is no TOML"),
        ("seed = 3991", "sead = 3991", "corpus coarse: nothing is called sead"),
        ("seed = 3991", 'form = "dicom"', "corpus coarse: form is that of the recipe"),
        ("n = 10", "n = 1", "10 patients or more"),
        ("[corpora.coarse]", "[coarse]", "nothing is called coarse"),
        ("[[steps]]", "[[stairs]]", "nothing is called stairs"),
        ("hessian = [0]", 'rich = ["poor"]', "step half the voxels: no corpus 'poor'; there are coarse"),
        ("hessian = [0]", "hessian = [7]", "step half the voxels: The image has the channels 0 to 2"),
        ("hessian = [0]", "hessian = 0", "hessian is a tuple, not 0"),
        ("hessian = [0]", "widths = [8, 8]", "step half the voxels: The stages have"),
        ("hessian = [0]", "units = [1, 1, 1]", "step half the voxels: The stages have"),
        ("hessian = [0]", 'backbone = "resnet10"', "backbone and fusion_type are of the first step"),
        ("hessian = [0]", 'rich = ["coarse"]', "corpus coarse has other voxels than fine"),
        ("hessian = [0]", 'unseen = ["fine"]', "patients of a corpus that is learnt from"),
        ("seed = 3993", "seed = 3993\nodds = 6.0", "findings at the usual odds"),
        ("spacing_mm = 6.0", "spacing_mm = 5.0", "neither those that the model reads nor half as large"),
        ("rounds = 0", 'rounds = 0\nunseen = ["fine"]', "only the last step is calibrated"),
        ("rounds = 0", "rounds = 0\nhessian = [0]", "Halve first"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_before_anything_is_made(
    short, tmp_path, old, new, words, capsys, monkeypatch
):
    short.write_text(SHORT.replace(old, new))
    monkeypatch.setattr("sys.argv", ["recipe", str(short), "--work", str(tmp_path / "work")])
    assert main() == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_who_was_learnt_from_in_an_earlier_step_is_not_calibrated_on(short, tmp_path):
    again = SHORT.replace(
        "[corpora.fine]", "[corpora.others]\nn = 10\nseed = 3991\nspacing_mm = 6.0\n\n[corpora.fine]"
    )
    short.write_text(again.replace("hessian = [0]", 'unseen = ["others"]'))
    with pytest.raises(ConfigError, match="patients of a corpus that is learnt from"):
        read_recipe(short)


def test_a_recipe_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigError, match="There are brain_mr, chest_ct"):
        read_recipe(RECIPES / "knee_mr.toml")
    with pytest.raises(ConfigError, match="or give a file"):
        read_recipe(RECIPES)
