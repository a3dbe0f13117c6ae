"""Event files of others and of our own, read into curves."""

import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.scalar import metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from analysis.event_files import lightning, write
from snnexp.analysis import tensorboard
from snnexp.analysis.posterior.curves import MEANS
from snnexp.errors import UserError


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    return tensorboard.read(write(tmp_path_factory.mktemp("events"), lightning()))


def test_tags_of_lightning(read):
    curves, made = read.curves, lightning()
    assert curves.unit == "optimizer step" and not curves.from_snnexp and read.unknown == ["lr-AdamW"]
    for name, tag in {
        "Train/KL": "train_kl_step", "Val/KL": "val_kl", "Train/Loss": "train_loss_step", "Val/CE": "val_pred", "Val/AUROC": "val_auc",
        "Beta": "train_beta", "Weight/CE": "train_pred_weight_step", "Epoch": "epoch", f"Train/Recon{MEANS}": "train_recon_epoch",
    }.items():  # fmt: skip
        assert read.tags[name] == tag
        assert curves.by_name[name][0].tolist() == [step for step, _ in made[tag]]
        assert curves.by_name[name][1].tolist() == pytest.approx([value for _, value in made[tag]])
    assert curves.by_name["Val/Accuracy"][1].tolist() == pytest.approx([86] * 4)  # percent
    assert curves.best == (499, "best Val/AUROC, 0.9")


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("train_kl_epoch", "Train/KL" + MEANS), ("train/kl", "Train/KL"), ("kl_loss/val", "Val/KL"), ("validation_auroc", "Val/AUROC"),
        ("loss", "Train/Loss"), ("beta", "Beta"), ("recon_weight", "Weight/Recon"), ("Val/AUPRC", "Val/AUPRC"), ("hp_metric", None),
        ("train_grad_norm", None), ("", None), ("step", None), ("test_accuracy", "Test/Accuracy"),
    ],
)  # fmt: skip
def test_names(tag, name):
    assert tensorboard.foreign_curve_name(tag) == name


def test_our_own_tags_are_over_epochs_and_raw(tmp_path):
    from_snnexp = {tag: [(1, 3.0), (2, 2.0)] for tag in ("Train/Loss", "Train/KL", "Train/Beta", "LR", "Val/Acc1", "Val/Loss")}
    read = tensorboard.read(write(tmp_path, from_snnexp | {"Posterior/KL": [(200, 5.0)]}))
    assert read.curves.unit == "epoch" and read.curves.from_snnexp and not read.unknown
    assert set(read.curves.by_name) == {"Train/Loss", "Train/KL", "Beta", "LR", "Val/Accuracy", "Val/Loss", "Posterior/KL"}
    assert read.curves.by_name["Val/Accuracy"][1].tolist() == [3, 2] and read.curves.best == (1, "best Val/Accuracy, 3, epoch 1")


def test_means_alone_are_the_curve_and_the_longer_of_two_stays(tmp_path):
    read = tensorboard.read(write(tmp_path, {"train_loss_epoch": [(1, 1.0)], "val_kl": [(1, 1.0)], "val/kl_loss": [(1, 2.0), (2, 3.0)]}))
    assert read.curves.by_name["Train/Loss"][1].tolist() == [1] and read.curves.by_name["Val/KL"][1].tolist() == [2, 3]
    assert read.unknown == ["val_kl"] and read.tags["Val/KL"] == "val/kl_loss"


def test_scalars_as_tensors(tmp_path):
    writer = EventFileWriter(str(tmp_path))
    for step in (1, 2):
        value = {"tag": "val_auc", "tensor": make_tensor_proto(0.7 + 0.1 * step), "metadata": metadata.create_summary_metadata("", "")}
        writer.add_event(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))
    writer.close()
    assert tensorboard.read(tmp_path).curves.by_name["Val/AUROC"][1].tolist() == pytest.approx([0.8, 0.9])


def many(*sizes: int) -> TensorProto:
    tensor = TensorProto(dtype=1, float_val=[1.5])
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        many(10**12),
        many(3),
        many(0),
        many(-1),
        make_tensor_proto(b"abc"),
        make_tensor_proto([]),
        TensorProto(dtype=99),
        TensorProto(dtype=1),
    ],
)
def test_tensors_that_are_no_scalars_are_left_out(tmp_path, tensor):
    """One number can stand for a tensor of any size, which is never written out."""
    writer = EventFileWriter(str(tmp_path))
    for value in (
        {"tag": "val_kl", "simple_value": 2.0},
        {"tag": "val_auc", "tensor": tensor, "metadata": metadata.create_summary_metadata("", "")},
    ):
        writer.add_event(event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[value])))
    writer.close()
    read = tensorboard.read(tmp_path)
    assert list(read.curves.by_name) == ["Val/KL"] and read.unknown == ["val_auc"]


def test_where_events_lie(tmp_path):
    for name in ("version_10", "version_2/checkpoints/deep", "version_2"):
        write(tmp_path / "logs" / name, {"a": [(1, 1.0)]})
    found = [str(path.relative_to(tmp_path / "logs")) for path in tensorboard.find(tmp_path)]
    assert found == ["version_2", "version_2/checkpoints/deep", "version_10"]
    with pytest.raises(UserError, match="no such directory"):
        tensorboard.find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no event file"):
        tensorboard.find(tmp_path / "empty")


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path):
    write(tmp_path, {"val_kl": [(n, 1.0) for n in range(50)]})
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    assert len(tensorboard.read(tmp_path).curves.by_name["Val/KL"][0]) == 49
    path.write_bytes(b"nothing of the kind")
    assert not tensorboard.read(tmp_path).tags
