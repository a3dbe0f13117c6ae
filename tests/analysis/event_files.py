"""TensorBoard event files, written without torch."""

from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def write(folder: Path, scalars: dict[str, list[tuple[int, float]]]) -> Path:
    """One event file with the (step, value) of each tag."""
    writer = EventFileWriter(str(folder))
    for tag, points in scalars.items():
        for step, value in points:
            writer.add_event(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[{"tag": tag, "simple_value": value}])))
    writer.close()
    return folder


def lightning(steps=500, epochs=4) -> dict[str, list[tuple[int, float]]]:
    """Tags as PyTorch Lightning logs them: each step, and means over epochs."""
    every = range(0, steps, max(1, steps // 100))
    ends = [steps // epochs * n - 1 for n in range(1, epochs + 1)]
    falling = {"loss": 12.0, "recon": 9.0, "pred": 0.6}
    scalars = {f"train_{name}_step": [(n, value / (1 + 4 * n / steps)) for n in every] for name, value in falling.items()}
    scalars |= {f"train_{name}_epoch": [(n, value / (1 + 4 * n / steps)) for n in ends] for name, value in falling.items()}
    scalars |= {f"val_{name}": [(n, 1.1 * value / (1 + 4 * n / steps)) for n in ends] for name, value in falling.items()}
    scalars["train_kl_step"] = [(n, max(25.6, 60 - 60 * n / steps)) for n in every]
    scalars["val_kl"] = [(n, 25.6) for n in ends]
    scalars |= {"val_auc": [(n, 0.6 + 0.1 * k) for k, n in enumerate(ends)], "val_auprc": [(n, 0.3) for n in ends]}
    scalars |= {"val_accuracy": [(n, 0.86) for n in ends], "train_beta": [(n, 0.1 * n / steps) for n in every]}
    scalars |= {"train_recon_weight_step": [(n, 1.0) for n in every], "train_pred_weight_step": [(n, 2.0) for n in every]}
    return scalars | {"epoch": [(n, n * epochs // steps) for n in every], "lr-AdamW": [(n, 1e-4) for n in every]}
