"""The perceptual distance is that of VGG16's own layers, with weights from a file or not at all."""

import pytest
import torch
from torchvision.models import vgg16

from snnexp.errors import UserError
from snnexp.tasks.perceptual import PerceptualLoss


def weights() -> dict[str, torch.Tensor]:
    """Random weights of the first layers, by torchvision's names."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in vgg16(weights=None).features[:16].state_dict().items()}
    return {f"features.{name}": 0.05 * torch.randn(shape) for name, shape in shapes.items()}


def test_it_is_the_mean_difference_after_relu3_3(tmp_path):
    values = weights()
    torch.save(values | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    loss = PerceptualLoss(tmp_path / "vgg16.pth")
    seen, truth = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16)

    def through(x):
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        for index, pool in ((0, False), (2, True), (5, False), (7, True), (10, False), (12, False), (14, False)):
            x = torch.relu(torch.nn.functional.conv2d(x, values[f"features.{index}.weight"], values[f"features.{index}.bias"], padding=1))
            x = torch.nn.functional.max_pool2d(x, 2) if pool else x
        return x

    expected = (through(seen) - through(truth)).abs().mean()
    assert loss(seen, truth).item() == pytest.approx(expected.item(), rel=1e-5) and expected > 0
    loss(seen, truth).backward()
    assert seen.grad.abs().sum() > 0 and not any(p.requires_grad for p in loss.net.parameters())
    grey = torch.rand(1, 1, 16, 16)
    assert loss(grey, truth[:, :1]) == loss(grey.expand(-1, 3, -1, -1), truth[:, :1].expand(-1, 3, -1, -1))


def test_a_file_that_is_not_there_or_not_vgg16(tmp_path):
    with pytest.raises(UserError, match="vgg_weights=.*no such file"):
        PerceptualLoss(tmp_path / "nowhere.pth")
    torch.save(weights() | {"features.34.weight": torch.zeros(1)}, tmp_path / "vgg19.pth")  # whose first layers have the same names
    with pytest.raises(UserError, match="not torchvision's weights of VGG16.*features.34.weight is no layer of it"):
        PerceptualLoss(tmp_path / "vgg19.pth")
    torch.save(weights() | {"features.5.bias": torch.full((128,), torch.nan)}, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="features.5.bias holds NaN"):
        PerceptualLoss(tmp_path / "broken.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not torchvision's weights of VGG16"):
        PerceptualLoss(tmp_path / "other.pth")
