"""From a checkpoint back to a run, in this process; whole commands are in test_resume.py."""

import json
import re
import signal

import pytest
import torch

from conftest import GRAPHS, assert_same, load
from snnexp import config
from snnexp.engine import checkpoint, loop, restart
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.errors import UserError
from snnexp.rundir import RunDir, write_json


def train(x) -> None:
    with StopFlag() as stop:
        loop.train(x, stop)


def test_a_checkpoint_holds_what_the_design_promises(make):
    x = make("epochs=1", "limit_train=16", "ema=0.9")
    train(x)
    saved = load(x.run.checkpoint("latest"))
    assert saved["model"] == "vggsnn" and saved["args"] == x.settings and (saved["epoch"], saved["step"]) == (1, 1)
    assert saved["state_dict"].keys() == x.model.state_dict().keys() == saved["ema"].keys()
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in saved["state_dict"])
    assert set(saved["data"]) == {"classes", "mean", "std", "split", "normalise", "centred"} and len(saved["ranks"]) == 1
    assert saved["best_acc1"] == saved["state"]["best"]["value"]
    assert {"optimizer", "scheduler", "scaler", "sampler", "circumstances"} <= saved.keys()


def test_what_is_restored_is_saved_again_the_same(make):
    x = make("epochs=1", "limit_train=32", "ema=0.9", "optimizer=sgd", "scheduler=plateau")
    train(x)
    before = load(x.run.checkpoint("latest"))
    again = make("epochs=1", "limit_train=32", "ema=0.9", "optimizer=sgd", "scheduler=plateau")
    restart.save(again, restart.restore(again), "latest")
    after = load(again.run.checkpoint("latest"))
    for part in (before, after):
        part["state"].pop("wall_seconds")
    assert_same(before, after)


def test_the_wall_time_of_an_earlier_end_counts(make):
    x = make("epochs=1", "limit_train=16")
    train(x)
    (x.run.resumes / "1").mkdir(parents=True)
    write_json(x.run.resumes / "1/result.json", {"wall_time_s": 1000.0})  # with its tests, of which the checkpoint knows nothing
    (x.run.resumes / "2").mkdir()
    (x.run.resumes / "2/result.json").write_text("{")
    assert restart.restore(make("epochs=1", "limit_train=16")).wall_seconds >= 1000
    assert load(x.run.checkpoint("latest"))["state"]["wall_seconds"] < 1000


def test_a_run_without_a_checkpoint_begins(make):
    x = make()
    x.run.metrics_log.write_text('{"epoch": 1}\n')  # of a run that was killed before its first checkpoint
    assert restart.restore(x).step == 0
    assert x.run.metrics_log.read_text() == ""


def test_weights_that_do_not_fit_are_named(make):
    x = make()
    own = {name: value.clone() for name, value in x.model.state_dict().items()}
    name, other, *_ = own
    wrong = {k: v for k, v in own.items() if k != name} | {other: torch.ones(3), "more": torch.ones(1)}
    with pytest.raises(UserError, match=f"a.pth does not fit the model: {re.escape(name)} is missing; more is not in the model; .*there"):
        checkpoint.load_into(x.model, wrong, "a.pth")
    assert all(torch.equal(value, own[key]) for key, value in x.model.state_dict().items())


def test_settings_of_the_optimizer_come_from_the_command_line_and_moments_from_the_file():
    weight = torch.nn.Parameter(torch.ones(2))
    old = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    old.step()
    new = torch.optim.SGD([weight], lr=0.5, momentum=0.8)
    new.load_state_dict(restart.with_current_settings(old.state_dict(), new.state_dict()))
    assert new.param_groups[0]["momentum"] == 0.8
    assert torch.equal(new.state[weight]["momentum_buffer"], torch.ones(2))


def test_what_ends_exactness_is_said(make):
    x = make("epochs=1", "limit_train=16")
    train(x)
    assert restart.changes(make("epochs=1", "limit_train=16"), load(x.run.checkpoint("latest"))) == []
    lines = restart.changes(make("epochs=4", "limit_train=16", "lr=0.1", "workers=1"), load(x.run.checkpoint("latest")))
    assert lines == [
        "From here the run is not the one it would have been: lr 0.001 -> 0.1, optimizer.lr 0.001 -> 0.1.",
        "epochs 1 -> 4: the learning rate follows the new curve from here.",
    ]


def test_another_batch_size_goes_on_at_the_same_sample(make):
    x = make("batch_size=8")
    x.start_loggers(State())
    restart.save(x, State(epoch=0, batch=6), "latest")
    assert restart.restore(make("batch_size=16")).batch == 3


def test_a_kill_between_latest_and_best_is_mended(make):
    x = make("epochs=2", "limit_train=16")
    train(x)
    latest, best = x.run.checkpoint("latest"), x.run.checkpoint("best")
    saved = checkpoint.load(latest)
    saved["state"]["best"] |= {"epoch": 2, "step": saved["step"]}
    checkpoint.save(latest, saved)
    stale = checkpoint.load(best) | {"epoch": 1, "step": 0}
    checkpoint.save(best, stale)
    restart.restore(make("epochs=2", "limit_train=16"))
    assert load(best)["epoch"] == 2


def test_a_run_from_before_there_was_a_key_goes_on(make):
    x = make("epochs=2", "limit_train=16")
    train(x)
    saved = checkpoint.load(x.run.checkpoint("latest"))
    old = json.loads(x.run.config.read_text())
    del old["prefetch"]
    write_json(x.run.config, old)
    assert config.read_saved(x.run.config)["prefetch"] == 2
    assert restart.restore(make("epochs=3", "limit_train=16")).best["epoch"] == saved["state"]["best"]["epoch"]
    assert x.run.checkpoint("best").exists()


def test_a_best_epoch_whose_weights_are_gone_is_chosen_anew(make):
    x = make("epochs=2", "limit_train=16")
    train(x)
    saved = checkpoint.load(x.run.checkpoint("latest"))
    saved["state"]["best"] |= {"epoch": 1, "step": 1}
    checkpoint.save(x.run.checkpoint("latest"), saved)
    x.run.checkpoint("best").unlink()
    again = make("epochs=2", "limit_train=16")
    state = restart.restore(again)
    assert state.best is None and state.ranking == [] and state.stale == 0
    assert "chosen anew" in again.run.train_log.read_text()


def test_a_stop_in_a_validation_does_not_count_its_forwards_twice(make, monkeypatch):
    x = make("tracker=lif_full", "tracker.lif_full.splits=[val]", "batch_size=4", "epochs=1", base=GRAPHS)
    flag, seen = StopFlag(), []
    real = x.trackers["lif_full"].observe

    def stop_in_the_middle(split: str) -> None:
        real(split)
        seen.append(split)
        if seen.count("val") == 3:
            flag.signum = signal.SIGTERM

    monkeypatch.setattr(x.trackers["lif_full"], "observe", stop_in_the_middle)
    with pytest.raises(Stopped):
        loop.train(x, flag)
    y = make("tracker=lif_full", "tracker.lif_full.splits=[val]", "batch_size=4", "epochs=1", base=GRAPHS)
    loop.train(y, StopFlag())
    assert json.loads((y.run.root / "lif_activation_stats_val.json").read_text())["total_forward_count"] == 32 // 4


def test_checkpoints_of_epochs_are_known_by_their_names(tmp_path):
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    for name in ("epoch2", "epoch2.5", "epoch12.3333", "best", "epoch", "epoch2.", "epoch1.2.3", "epochs2"):
        run.checkpoint(name).touch()
    assert run.epoch_checkpoints() == {epoch: run.checkpoint(f"epoch{epoch:g}") for epoch in (2, 2.5, 12.3333)}


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # other names of the file keep its content
    path.write_bytes(data)


def test_a_damaged_best_counts_as_missing(make, capfd):
    words = ("epochs=2", "limit_train=32", "save_freq=1")
    x = make(*words)
    train(x)
    best, epochs = x.run.checkpoint("best"), x.run.epoch_checkpoints()
    held = load(best)
    flip_a_bit(best)
    state = restart.restore(make(*words))
    assert state.best["step"] == held["step"] and "checkpoint_best.pth counts as missing: " in capfd.readouterr().out
    assert_same(load(best)["state_dict"], held["state_dict"])  # from the checkpoint of its epoch
    for path in (best, *epochs.values()):
        flip_a_bit(path)
    last = {**load(x.run.checkpoint("latest"))}
    if last["step"] == held["step"]:  # then the latest is the best
        assert restart.restore(make(*words)).best["step"] == held["step"]
    else:
        assert restart.restore(make(*words)).best is None and "chosen anew" in capfd.readouterr().out


def test_a_lost_latest_cuts_no_log(make):
    x = make("epochs=1", "limit_train=16", "save_freq=1")
    train(x)
    x.run.checkpoint("latest").unlink()
    log = x.run.metrics_log.read_bytes()
    with pytest.raises(UserError, match="(?s)checkpoint_latest.pth is lost.*snnexp resume .*checkpoint_(final|best|epoch1).pth"):
        restart.restore(make("epochs=1", "limit_train=16", "save_freq=1"))
    assert x.run.metrics_log.read_bytes() == log != b""


def test_an_error_while_an_error_is_saved_does_not_hide_the_first(make, monkeypatch, capfd):
    x = make("epochs=1", "limit_train=16")

    def fail(*arguments) -> None:
        raise ValueError("the first")

    monkeypatch.setattr(loop, "update", fail)
    monkeypatch.setattr(checkpoint, "save", lambda path, content: fail() if path.stem != "checkpoint_error" else 1 / 0)
    with pytest.raises(ValueError, match="the first"):
        train(x)
    assert "checkpoint_error.pth, for inspection, was not written either: division by zero" in capfd.readouterr().out


def test_a_run_goes_on_with_the_samples_that_it_recorded_or_with_those_that_are_named(make, capfd):
    words = ("epochs=1", "limit_train=16")
    x = make(*words)
    train(x)
    latest, own = x.run.checkpoint("latest"), x.data.samples_digest
    saved = load(latest)
    assert saved["samples_digest"] == own
    checkpoint.save(latest, saved | {"samples_digest": "dother"})
    with pytest.raises(UserError, match=rf"digest {own}, but the run expects dother.*bit for bit.*samples_digest={own}$"):
        restart.restore(make(*words))
    restart.restore(make(*words, f"samples_digest={own}"))
    assert f"the digest of the samples dother -> {own}" in capfd.readouterr().out
    with pytest.raises(UserError, match=f"expects dthird.*samples_digest={own}$"):
        restart.restore(make(*words, "samples_digest=dthird"))
    del saved["samples_digest"]  # a run made before
    checkpoint.save(latest, saved)
    restart.restore(make(*words))
    assert "not the one" not in capfd.readouterr().out


def test_samples_of_another_size_are_named_as_the_change_that_they_are(make, capfd):
    words = ("epochs=1", "limit_train=16", "model=vggsnn_woap")
    x = make(*words, "dataset.framing=count")
    train(x)
    restart.restore(make(*words, "dataset.framing=time"))
    assert re.search("not the one it would have been: dataset.framing count -> time, .*the digest of the samples d", capfd.readouterr().out)
