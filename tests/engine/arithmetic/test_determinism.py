"""deterministic=true on CUDA: what is refused before a run, and whether what models say of themselves agrees with what a step computes."""

import pytest
import torch
from torch import nn

from conftest import CLIPS, GRAPHS, STAYS, TINY, composed
from models.fake_cuda import Operations
from snnexp import check as module
from snnexp.composing.conf import conf_dir
from snnexp.contracts import optional_member
from snnexp.errors import UserError

WITHOUT_ORDER = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_deform_conv2d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "kthvalue", "nll_loss2d_forward", "put_",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
}  # fmt: skip
"""Operations that have no deterministic form on CUDA, from the list in the documentation of torch.use_deterministic_algorithms."""

FRAMES = [word for word in TINY if not word.startswith("model.width")]
VIDEO = [word for word in CLIPS if not word.startswith("model")] + [
    "model.width=8", "model.last_width=8", "model.depth=2", "model.last_depth=1", "model.groups=1", "model.still_groups=0", "model.heads=2",
    "model.deform_groups=2", "model.flow_width=4", "precision=fp32", "batch_size=2",
]  # fmt: skip

MODELS = {
    "vggsnn": TINY,
    "vggsnn_woap": [*TINY, "model=vggsnn_woap"],
    "resnet19": [*TINY, "model=resnet19"],
    "spikformer": [*FRAMES, "model=spikformer", "model.depth=1", "model.dim=48"],
    "spikformer_dvs": [*FRAMES, "model=spikformer_dvs", "model.depth=1", "model.dim=64"],
    "spiking_gnn": GRAPHS,
    "spiking_gnn, gin": [*GRAPHS, "model.conv_type=gin"],
    "spiking_gnn, gatv2": [*GRAPHS, "model.conv_type=gatv2"],
    "seqset_vae": STAYS,
    "set_vae": ["model=set_vae", *STAYS[1:]],
    "svrt": ["model=svrt", *VIDEO],
    "svrt_small": CLIPS,
    "vrt": ["model=vrt", *VIDEO],
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_whether_its_step_is_deterministic_on_cuda(name, make):
    x = make(base=MODELS[name])
    batch = x.data.prepare(next(iter(x.train_loader)))
    with Operations() as step:
        loss, _ = x.task.loss(x.model, batch, 0)
        loss.backward()
    assert "native_batch_norm_backward" in step.names or "native_layer_norm_backward" in step.names, "the gradient was seen"
    assert (not step.names & WITHOUT_ORDER) == optional_member(x.model, "deterministic_on_cuda"), step.names & WITHOUT_ORDER


def test_every_model_is_asked():
    assert {name.partition(",")[0] for name in MODELS} == {path.stem for path in (conf_dir() / "model").glob("*.yaml")}


# ---- what is refused


@pytest.fixture
def on_cuda(monkeypatch):
    """A CUDA device as far as the check can see."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(module, "choose_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(module, "check_precision", lambda *_: None)


def test_a_model_without_deterministic_gradients_is_refused_on_cuda(on_cuda, data_dir, monkeypatch):
    settings = composed(*CLIPS, f"data_dir={data_dir}", "deterministic=true")
    with pytest.raises(UserError, match="model=svrt_small has no deterministic form on CUDA.*deterministic=false or device=cpu"):
        module.check(settings)
    monkeypatch.setattr(module, "choose_device", lambda *_: torch.device("cpu"))
    module.check(settings)


def test_what_is_only_evaluated_needs_no_gradient(on_cuda):
    model = nn.Linear(1, 1)
    model.deterministic_on_cuda = False
    settings = {"epochs": 1, "choices": {"model": "own"}}
    with pytest.raises(UserError, match="model=own"):
        module.check_determinism(settings, model)
    module.check_determinism(settings | {"epochs": 0}, model)


@pytest.mark.parametrize("workspace", [":4096:8", ":16:8", ":0:0"])
def test_a_workspace_without_an_order_is_refused_on_cuda(workspace, on_cuda, data_dir, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    module.check(composed(*TINY, f"data_dir={data_dir}"))
    settings = composed(*TINY, f"data_dir={data_dir}", "deterministic=true")
    if workspace != ":0:0":
        module.check(settings)
        return
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:0:0.*Unset it, or set :4096:8 or :16:8"):
        module.check(settings)
