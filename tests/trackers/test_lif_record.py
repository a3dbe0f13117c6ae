"""The record behind the LIF statistics: what a kill and a resume make of it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from snnexp.errors import UserError
from snnexp.models.neurons import make_lif
from snnexp.trackers.lif import LIFTracker
from trackers.watched import Twice, constant, forward, random, read


@pytest.mark.parametrize("flush_every", [1, 4, 100])
def test_a_killed_run_goes_on_without_a_gap_or_a_repeat(tmp_path, flush_every):
    torch.manual_seed(0)
    inputs = [random(n) for n in (4, 4, 4, 4, 4, 4, 4, 4, 4, 2)]
    model = Twice()

    def tracker(folder: Path, every: bool) -> LIFTracker:
        return LIFTracker(model=model, every_forward=every, flush_every=flush_every, folder=folder, splits=["train", "val"])

    def epoch(*trackers: LIFTracker, first: int = 0) -> list[dict]:
        for x in inputs[first:]:
            forward(model, x, *trackers)
        forward(model, inputs[0], *trackers, split="val")
        return [each.close_epoch(1) for each in trackers]

    for every in (False, True):
        folder = tmp_path / f"{every}"
        for name in ("whole", "broken"):
            (folder / name).mkdir(parents=True)
        whole = tracker(folder / "whole", every)
        expected = epoch(whole) + epoch(whole)
        broken = tracker(folder / "broken", every)
        assert epoch(broken) == expected[:1]
        for x in inputs[:3]:
            forward(model, x, broken)
        state = broken.state_dict()
        for x in inputs[3:8]:  # past the checkpoint, some of it on the disk: then a kill
            forward(model, x, broken)
        forward(model, inputs[5], broken, split="val")
        torch.save(state, tmp_path / "state.pth")

        again = tracker(folder / "broken", every)
        again.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
        assert epoch(again, first=3) == expected[1:], "sums of the epoch survive"
        assert [path.name for path in whole.finish()] == [path.name for path in again.finish()]
        for path in whole.finish():
            assert path.read_bytes() == (folder / "broken" / path.name).read_bytes()
        if every:
            assert read(folder / "broken" / "lif_activation_stats.json")["total_forward_count"] == 20
            assert read(folder / "broken" / "lif_activation_stats_val.json")["total_forward_count"] == 2
        assert whole.rows() == again.rows() != []


def test_a_state_is_loaded_again_in_the_same_process(tmp_path):
    # A validation that was stopped is forgotten: it will be done again.
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=True, splits=["train", "val"], folder=tmp_path)
    forward(model, constant(), tracker)
    before = tracker.state_dict()
    forward(model, constant(), tracker, split="val")
    tracker.load_state_dict(before)
    assert tracker.state_dict() == before
    forward(model, constant(), tracker, split="val")
    tracker.finish()
    assert read(tmp_path / "lif_activation_stats_val.json")["total_forward_count"] == 1
    assert read(tmp_path / "lif_activation_stats.json")["total_forward_count"] == 1


def test_a_split_may_be_added_on_resume(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=True, splits=["val"], folder=tmp_path)
    forward(model, constant(), tracker)
    again = LIFTracker(model=model, every_forward=True, splits=["train", "val"], folder=tmp_path)
    again.load_state_dict(tracker.state_dict())
    forward(model, constant(value=3.0), again)
    assert again.close_epoch(1)["Spikes/gnn_model.lif1"] == [0.5, 1.0, 0.5, 1.0], "the sums of the epoch know both"
    again.finish()
    assert read(tmp_path / "lif_activation_stats.json")["total_forward_count"] == 1


def test_a_record_that_was_cut_or_of_other_layers_is_refused(tmp_path):
    model = Twice()
    tracker = LIFTracker(model=model, every_forward=True, folder=tmp_path)
    for _ in range(3):
        forward(model, constant(), tracker)
    state = tracker.state_dict()
    path = tmp_path / "logs" / "lif_full_train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"lif_full_train\.bin has 239 bytes.* 240 of them"):
        LIFTracker(model=model, every_forward=True, folder=tmp_path).load_state_dict(state)
    with pytest.raises(UserError, match=r"tracker=lif_full: .*gnn_model\.lif1, gnn_model\.lif2.*layers are 0\."):
        LIFTracker(model=nn.Sequential(make_lif()), every_forward=True, folder=tmp_path).load_state_dict(state)


def test_a_new_run_starts_the_record_over(tmp_path):
    for _ in range(2):
        model = Twice()
        tracker = LIFTracker(model=model, every_forward=True, folder=tmp_path, flush_every=1)
        forward(model, constant(), tracker)
        forward(model, constant(), tracker)
    tracker.finish()
    assert read(tmp_path / "lif_activation_stats.json")["total_forward_count"] == 2
