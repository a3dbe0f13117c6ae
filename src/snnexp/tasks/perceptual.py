"""The distance of frames in the features of a recognition network (Johnson et al., ECCV 2016)."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.untrusted.torch_files import load_plain

RELU3_3 = 16
"""The number of layers of VGG16 up to and including its seventh ReLU."""
ALL_LAYERS = {f"features.{i}.{part}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) for part in ("weight", "bias")}
"""The names of the convolutions of VGG16 in torchvision's files."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualLoss:
    """The mean absolute difference of two batches of frames after relu3_3 of VGG16 (Simonyan and Zisserman 2015), torchvision's weights.

    Raises: UserError if the file `weights` does not hold them.
    """

    def __init__(self, weights: str | Path) -> None:
        from torchvision.models import vgg16

        with torch.device("meta"):
            self.net = vgg16(weights=None).features[:RELU3_3]
        self.net.load_state_dict(load_features(Path(weights).expanduser(), list(self.net.state_dict())), assign=True)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.net.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.net.eval().requires_grad_(False)

    def __call__(self, frames: Tensor, truth: Tensor) -> Tensor:
        """Return the distance, a fp32 scalar, of frames [F, C, H, W] (0 to 1); grey frames count as three equal channels."""
        self.net.to(frames.device)
        first = self.net((frames - self.net.mean) / self.net.std)
        with torch.no_grad():
            second = self.net((truth - self.net.mean) / self.net.std)
        return F.l1_loss(first.float(), second.float())


def load_features(path: Path, names: list[str]) -> dict[str, Tensor]:
    """Load the entries `names` of VGG16's layers from a file of torchvision's.

    Raises: UserError if the file is missing or does not hold them.
    """
    try:
        saved = load_plain(path)
        if extra := sorted(name for name in saved if name.startswith("features.") and name not in ALL_LAYERS):
            raise ValueError(f"{extra[0]} is no layer of it; VGG19 begins with the same")
        if odd := next((name for name in names if not saved[f"features.{name}"].isfinite().all()), None):
            raise ValueError(f"features.{odd} holds NaN or infinite numbers")
        return {name: saved[f"features.{name}"].float() for name in names}
    except FileNotFoundError as error:
        raise UserError(f"task.vgg_weights={path}: no such file.") from error
    except Exception as error:  # a file may be wrong in any way
        raise UserError(f"task.vgg_weights={path}: not torchvision's weights of VGG16 ({type(error).__name__}: {error}).") from error
