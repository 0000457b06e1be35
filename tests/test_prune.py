"""`mla-med prune` from checkpoint and corpus to checkpoint, on bodies of a few boxes."""

from __future__ import annotations

import json

import pytest
import torch
from small_world import examples_in, small_model, write_corpus

from dapt import prune
from dapt.finish import calibrate_on
from dapt.prune import Wish, prune_checkpoint
from mla_med.errors import ConfigError
from mla_med.model import pruning_plan
from mla_med.model.checkpoint import as_stored, load_checkpoint, save_checkpoint
from mla_med.model.gate import SCOPES

WISH = Wish(latency=1.0, studies=4, cubes=2, steps=4, batch=2, threads=1, precision="fp32")


def seconds_by_size(models, image_BCIJK, rounds=1):
    """In place of a clock: of bodies this small, a busy machine takes the smaller for the slower."""
    return [[float(sum(p.numel() for p in model.parameters()))] for model in models]


@pytest.fixture(autouse=True)
def timed_by_size(monkeypatch):
    monkeypatch.setattr(pruning_plan, "encode_s", seconds_by_size)
    monkeypatch.setattr(prune, "encode_s", seconds_by_size)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The corpus and a checkpoint, without the phantoms that sizes are measured on, which take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prune")
    corpus = write_corpus(folder / "corpus")
    sizes = {"widths": (16, 32, 32, 32), "units": (1, 2, 2, 1), "width": 32}
    model = as_stored(small_model(examples_in(corpus), fusion_type="full", **sizes))
    scope = SCOPES["chest_ct"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dapt.finish.size_differences_mm", lambda model, examination, phantoms: {})
        calibration, _, _ = calibrate_on(model, corpus)
        yield corpus, save_checkpoint(folder / "whole", model, calibration, scope, "boxes", "0", "# boxes\n")
    torch.set_num_threads(threads)


def test_a_killed_pruning_goes_on_and_what_comes_out_loads(world, tmp_path, monkeypatch):
    corpus, whole = world
    monkeypatch.setattr("dapt.recovery.SAVE_EVERY", 2)
    monkeypatch.setattr("dapt.prune.SHARES", (0.3,))
    out, said = tmp_path / "small", []

    def kill(words: str) -> None:
        said.append(words)
        if words.startswith("images: step 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(whole, corpus, out, WISH, kill)
    assert not out.exists()
    assert "measuring the curve" in said
    again: list[str] = []
    lost = prune_checkpoint(whole, corpus, out, WISH, again.append)
    assert [words.split(",")[0] for words in again] == [
        "teaching by cubes",
        "teaching by images",
        "images: step 3 of 4",
        "images: step 4 of 4",
        "calibrating",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    small = load_checkpoint(out)
    facts = json.loads((out / "pruned.json").read_text())
    assert small.model.config.pruned
    assert facts["parameters"][1] == sum(p.numel() for p in small.model.parameters()) < facts["parameters"][0]
    assert lost in (out / "README.md").read_text()
    with pytest.raises(ConfigError, match="was pruned before"):
        prune_checkpoint(out, corpus, tmp_path / "smaller", WISH)


def test_what_was_asked_otherwise_begins_anew(world, tmp_path):
    corpus, whole = world
    (tmp_path / ".small.unfinished").mkdir()
    (tmp_path / ".small.unfinished" / "choice.json").write_text('{"digest": "of another wish"}')
    said: list[str] = []

    def kill(words: str) -> None:
        said.append(words)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(whole, corpus, tmp_path / "small", WISH, kill)
    assert said == ["timing what a channel costs"]
