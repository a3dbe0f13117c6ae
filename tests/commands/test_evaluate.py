"""What evaluate takes for a checkpoint of a run."""

from pathlib import Path

from snnexp.commands.evaluate import is_in_run


def test_a_checkpoint_lies_in_a_folder_of_its_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert not is_in_run(tmp_path / "checkpoints" / "checkpoint_best.pth")
    (tmp_path / "config.json").write_text("{}")
    assert is_in_run(tmp_path / "checkpoints" / "checkpoint_best.pth")
    assert not is_in_run(tmp_path / "checkpoints" / "model.safetensors")
    (tmp_path / "published/weights").mkdir(parents=True)
    (tmp_path / "published/config.json").write_text("{}")
    assert not is_in_run(tmp_path / "published/weights/model.pth")  # whose config.json is another program's
    assert not is_in_run(Path("/model.pth"))  # above whose folder there is none
