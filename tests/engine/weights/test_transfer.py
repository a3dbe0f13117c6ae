"""How much of a file must find a place in a model, and what is said of it; by names, shapes and numbers, not by hope."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from snnexp.contracts import DataSet
from snnexp.engine import checkpoint
from snnexp.engine.weights import transfer
from snnexp.errors import UserError
from snnexp.models.resnet19 import ResNet19
from snnexp.models.seqset_vae.seqset_vae import SeqSetVAE
from snnexp.models.seqset_vae.set_vae import SetVAE
from snnexp.models.spikformer import Spikformer
from snnexp.models.spiking_gnn import SpikingGNN
from snnexp.models.svrt.vrt import VRT
from snnexp.published import Published, split_name


class Net(nn.Module):
    """Two convolutions with norms, a hidden layer and a head."""

    def __init__(self, channels: int = 8, outputs: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, channels, 3), nn.BatchNorm2d(channels), nn.Conv2d(channels, 16, 3), nn.BatchNorm2d(16))
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, outputs)


def entries(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """Other numbers for the entries of a model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for name, value in model.state_dict().items()
    }


def taken(model: nn.Module, weights: dict[str, Tensor], folder: Path, partial: bool = False, **arguments: object) -> tuple[str, dict]:
    torch.save(weights, folder / "weights.pth")
    return transfer.transfer(model, str(folder / "weights.pth"), DataSet(), partial, arguments)


def refused(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> str:
    """The message; the model is as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        taken(model, weights, folder)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(error.value)


def test_all_of_it(tmp_path):
    model, weights = Net(), entries(Net())
    message, record = taken(model, weights, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    count = sum(value.numel() for value in weights.values())
    assert message == f"Weights from {tmp_path}/weights.pth: {count:,} of {count:,} numbers of the file, 100 % of the model's."
    assert record["file_entries"] == {"all": 18, "placed": 18, "without_counterpart": 0}
    assert record["model_numbers"] == {"all": count, "filled": count} and record["names"] == "snnexp"
    assert record["not_placed"] == record["as_initialised"] == [] and len(record["sha256"]) == 64


def test_an_average_is_said(tmp_path):
    own, plain = entries(Net()), {name: torch.zeros_like(value) for name, value in entries(Net()).items()}
    torch.save({"model": plain, "ema": own}, tmp_path / "x.pth")
    model = Net()
    message, record = transfer.transfer(model, str(tmp_path / "x.pth"), data=DataSet(), partial=False, arguments={})
    assert message.startswith(f"Weights from {tmp_path}/x.pth, the average under ema: ") and record["kept_under"] == "ema"
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.module.", "_orig_mod.module.model.backbone."]
)
def test_whatever_stands_before_the_names(prefix, tmp_path):
    model, weights = Net(), entries(Net())
    taken(model, {f"{prefix}{name}": value for name, value in weights.items()} | {"n_averaged": torch.tensor(3)}, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_wrappers_within_the_names(tmp_path):
    model, weights = Net(), entries(Net())
    inner = {name.replace("body.", "body._orig_mod.module."): value for name, value in weights.items()}
    taken(model, inner, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (["body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var"], "only a part of body"),
        (["body.3.running_var"], "only a part of body"),
        (["hidden.bias"], "only a part of hidden"),
        (["head.weight"], "only a part of head"),
    ],
)
def test_a_layer_or_a_part_of_the_model_is_there_as_a_whole(missing, reason, tmp_path):
    weights = {name: value for name, value in entries(Net()).items() if name not in missing}
    message = refused(Net(), weights, tmp_path)
    assert reason in message and all(name in message for name in missing) and "init_partial=true" in message
    model = Net()
    message, record = taken(model, weights, tmp_path, partial=True)
    assert record["as_initialised"] == missing and "left as initialised: " + ", ".join(missing) in message
    assert torch.equal(model.body[0].weight, weights["body.0.weight"])


def test_names_that_nobody_knows_on_either_side(tmp_path):
    weights = {name.replace("body.1.", "bn1.").replace("body.3.", "bn2."): value for name, value in entries(Net()).items()}
    message = refused(Net(), weights, tmp_path)  # norms hold a twentieth of the numbers
    assert "it has only a part of body" in message
    assert "In the file without a place (10 of 18 entries): bn1.weight (no such name)" in message
    assert "In the model and not in the file (8 of 18): body.1.weight, body.1.bias" in message
    weights = {name.replace("head.", "fc."): value for name, value in entries(Net()).items()}
    assert "it has no head, but entries of such shapes under names that are not known here" in refused(Net(), weights, tmp_path)
    without = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    _, record = taken(Net(), without | {"loss.weight": torch.ones(10)}, tmp_path)  # a new head on a body without one
    assert record["as_initialised"] == ["head.weight", "head.bias"] and record["not_placed"] == ["loss.weight"]


def test_most_of_the_file_must_have_a_place(tmp_path):
    weights = entries(Net())
    count = sum(value.numel() for value in weights.values())
    taken(Net(), weights | {"aux.weight": torch.zeros(count // 10, 1)}, tmp_path)
    message = refused(Net(), weights | {"aux.weight": torch.zeros(count // 8, 1)}, tmp_path)
    assert f"only 88.9 % of its {count + count // 8:,} numbers" in message and "aux.weight (no such name)" in message


def test_counters_that_old_files_lack_do_not_matter(tmp_path):
    weights = {name: value for name, value in entries(Net()).items() if not name.endswith("num_batches_tracked")}
    _, record = taken(Net(), weights, tmp_path)
    assert record["as_initialised"] == []


def test_a_head_for_other_outputs_stays_as_initialised(tmp_path):
    model, weights = Net(outputs=3), entries(Net(outputs=500))  # most numbers of the file are in its head
    before = model.head.weight.clone()
    message, record = taken(model, weights, tmp_path)
    assert "head is of another size there; left as initialised: head.weight, head.bias" in message
    assert record["head_of_another_size"] == "head" and record["not_placed"] == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, before) and torch.equal(model.hidden.weight, weights["hidden.weight"])


def test_another_size_elsewhere_is_none_of_a_head(tmp_path):
    assert "have a place in this model" in refused(Net(), entries(Net(channels=16)), tmp_path)
    stem = entries(Net()) | {"body.0.weight": torch.zeros(8, 3, 3, 3)}
    assert "body.0.weight ([8, 3, 3, 3] there, [8, 2, 3, 3] here)" in refused(Net(), stem, tmp_path)
    inputs = entries(Net()) | {"hidden.weight": torch.zeros(16, 32)}
    assert "hidden.weight ([16, 32] there, [16, 16] here)" in refused(Net(), inputs, tmp_path)


def test_a_head_for_images_of_another_size(tmp_path):
    model = Net()
    weights = entries(model) | {"head.weight": torch.zeros(10, 64)}
    before = model.head.bias.clone()
    _, record = taken(model, weights, tmp_path)
    assert record["head_of_another_size"] == "head" and record["as_initialised"] == ["head.weight", "head.bias"]
    assert torch.equal(model.head.bias, before)  # a bias without its weight is of no use


def test_nothing_that_fits(tmp_path):
    message = refused(Net(), {"another": torch.ones(2, 2)}, tmp_path)
    assert "no weight there has a name and shape of this model" in message and "In the file: another [2, 2]" in message
    with pytest.raises(UserError, match="no weight there"):
        taken(Net(), {"head.bias": torch.ones(10)}, tmp_path, partial=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_number(dtype, tmp_path):
    model = Net()
    weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in entries(model).items()}
    message, _ = taken(model, weights, tmp_path)
    assert f"kept there as {str(dtype).removeprefix('torch.')}" in message
    assert all(torch.equal(value, weights[name].to(value.dtype)) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_numbers_that_are_no_weights(tmp_path):
    weights = entries(Net())
    for value, reason in ((float("nan"), "NaN or infinite"), (float("inf"), "NaN or infinite")):
        weights["hidden.weight"] = torch.full((16, 16), value)
        assert f"hidden.weight holds {reason}" in refused(Net(), weights, tmp_path)
    weights["hidden.weight"] = torch.full((16, 16), 1e300, dtype=torch.float64)
    assert "hidden.weight holds NaN or infinite" in refused(Net(), weights, tmp_path)  # in fp32 it is
    weights["hidden.weight"] = torch.ones(16, 16, dtype=torch.int8)
    assert "hidden.weight is of int8 there" in refused(Net(), weights, tmp_path)
    weights["hidden.weight"] = torch.quantize_per_tensor(torch.ones(16, 16), 0.1, 0, torch.qint8)
    assert "hidden.weight is no plain tensor there (qint8" in refused(Net(), weights, tmp_path)
    weights["hidden.weight"] = torch.eye(16).to_sparse()
    assert "hidden.weight is no plain tensor there (float32, sparse_coo" in refused(Net(), weights, tmp_path)


def test_a_directory_that_is_no_run(tmp_path):
    torch.save(entries(Net()), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="is a directory, and no run; name the file in it: weights.pth"):
        transfer.read(str(tmp_path))


# ---- published names


def theirs(model: nn.Module, table: Published, names: list[str]) -> dict[str, Tensor]:
    """Entries under names that a table knows, with the shapes of the model's."""
    own, out = model.state_dict(), {}
    for name, new in table.renamed(names).items():
        parts = [own[part] for part in split_name(new)]
        out[name] = torch.randn(sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].dim() else torch.tensor(3)
    return out


def test_a_network_that_is_a_small_part_of_its_file(tmp_path):
    weights = {f"generator.{name}": value for name, value in entries(Net()).items()} | {"perceptual.weight": torch.ones(300, 300)}
    model = Net()
    _, record = taken(model, weights, tmp_path, partial=True)
    assert record["model_numbers"]["filled"] == record["model_numbers"]["all"] and record["prefix"] == "generator."


def test_of_what_a_file_may_mean_that_is_taken_which_fits(tmp_path):
    weights = entries(Net())
    for wrapped in (
        {"weights": {"class": torch.ones(10)}, "encoder": weights},
        {"state_dict": weights, "ema": {"decay": torch.ones(3)}},
        {"params": {"other": torch.ones(99)}, "generator": {"net": weights}},
    ):
        _, record = taken(Net(), wrapped, tmp_path)
        assert record["model_numbers"]["filled"] == record["model_numbers"]["all"]
    sparse = {"masks": {"layer": torch.eye(3).to_sparse()}, "network": weights}  # which is not what was meant
    assert taken(Net(), sparse, tmp_path)[1]["model_numbers"]["filled"] == record["model_numbers"]["all"]
    parameters = dict(Net().named_parameters())
    average = {name: value + 1 for name, value in weights.items() if name in parameters}
    model = Net()
    message, record = taken(model, {"model": weights, "ema": {"shadow": average}}, tmp_path)
    assert "the average under ema.shadow with what it lacks of model" in message and record["completed_from"] == "model"
    for name, value in model.state_dict().items():
        assert torch.equal(value, average.get(name, weights[name])), name


def test_other_dynamics_than_the_published_ones_are_said(tmp_path):
    model = Spikformer(in_channels=3, num_classes=4, size=8, T=2, depth=1, dim=16, heads=2, pools=1)
    given = {"_target_": "snnexp.models.spikformer.Spikformer", "in_channels": 3, "num_classes": 4, "size": 8, "T": 2}
    names = [f"block.0.attn.{q}_linear.weight" for q in ("q", "k", "v", "proj")] + ["head.weight"]
    weights = theirs(model, Spikformer.published[0], names)
    message, _ = taken(model, weights, tmp_path, partial=True, **given)
    assert "they were made for" not in message
    other = {"lif": {"tau": 4.0, "alpha": "preset", "detach_reset": True}, "scale": 0.25}  # the authors detach the reset, too
    message, record = taken(model, weights, tmp_path, partial=True, **given, **other)
    assert record["other_form"] == {"lif.tau": 2.0, "scale": 0.125} and "model.lif.tau=2.0" in message


@pytest.mark.parametrize("layers", [2, 3, 7, 12])
@pytest.mark.parametrize("conv_type", ["gcn", "gin"])
def test_sgt_of_any_number_of_layers(conv_type, layers, tmp_path):
    model = SpikingGNN(num_features=3, num_outputs=1, T=2, conv_type=conv_type, num_layers=layers, width=4)
    names = []
    for name in model.state_dict():
        words = name.split(".")
        kind, number = words[1].rstrip("0123456789"), words[1].lstrip("abcdefghijklmnopqrstuvwxyz")
        if conv_type == "gcn" and kind in ("conv", "norm"):
            part = {"conv": "conv", "norm": "bn"}[kind]
            words[1] = f"final_{part}" if int(number) == layers else f"blocks.{int(number) - 1}.{part}"
        elif kind == "norm":
            words[1] = f"convs.{(int(number) - 1) // 2}.nn.{1 if int(number) % 2 else 4}"
        elif kind == "linear":
            words[1] = f"convs.{int(number) - 1}.nn.3"
        elif kind == "conv":
            words[1] = f"convs.{int(number) - 1}"
            words[2] = "nn.0" if words[2] == "nn" else words[2]
        elif kind == "output":
            words[1] = "lin"
        names.append(".".join(words))
    weights = theirs(model, SpikingGNN.published[0], names)
    _, record = taken(model, weights, tmp_path)
    assert record["names"] == "SGT" and record["model_numbers"]["filled"] == record["model_numbers"]["all"]
    other = SpikingGNN(num_features=3, num_outputs=1, T=2, conv_type=conv_type, num_layers=layers + 2, width=4)
    assert "init_partial=true" in refused(other, weights, tmp_path)


def test_spikformer_of_any_depth_and_a_convolution_of_one_tap(tmp_path):
    model = Spikformer(in_channels=3, num_classes=4, size=8, T=2, depth=3, dim=16, heads=2, pools=1)
    names = []
    for name in model.state_dict():
        words = name.split(".")
        if words[0] == "blocks":
            part = {"attention": "attn", "mlp": "mlp"}[words[2]]
            names.append(f"block.{words[1]}.{part}.{words[3]}_{'conv' if words[4] == '0' else 'bn'}.{words[5]}")
        elif words[0] == "sps":
            kind = "conv" if words[-2] == "0" else "bn"
            place = "rpe_" + kind if words[1] == "rpe" else f"proj_{kind}{words[2] if words[2] != '0' else ''}"
            names.append(f"patch_embed.{place}.{words[-1]}")
        else:
            names.append(name)
    weights = theirs(model, Spikformer.published[1], names)  # convolutions of one tap, as for events
    weights = {name: value.unsqueeze(-1) if name.startswith("block") and value.dim() == 2 else value for name, value in weights.items()}
    _, record = taken(model, weights | {"block.0.norm1.weight": torch.ones(900), "pos_embed": torch.ones(1, 64, 16)}, tmp_path)
    assert record["file_entries"]["without_counterpart"] == 2 and record["model_numbers"]["filled"] == record["model_numbers"]["all"]
    shorter = Spikformer(in_channels=3, num_classes=4, size=8, T=2, depth=2, dim=16, heads=2, pools=1)
    assert "block.2.attn" in refused(shorter, weights, tmp_path)


def test_resnet_with_a_head_of_its_own(tmp_path):
    model = ResNet19(in_channels=3, num_classes=10, size=8, T=1, width=0.125)
    names = []
    for name in model.state_dict():
        words = name.split(".")
        if words[0] == "blocks":
            index = int(words[1])
            stage, place = (1, index) if index < 3 else (2, index - 3) if index < 6 else (3, index - 6)
            if words[2] == "shortcut":
                part = ["downsample.layer.module", "downsample.bn.bn"][int(words[3])]
            else:
                part = f"conv{words[2][-1]}" if words[3] == "0" else f"bn{words[2][-1]}.bn"
            names.append(f"layer{stage}.{place}.{part}.{words[-1]}")
        elif words[0] == "stem":
            names.append(f"{'conv1' if words[1] == '0' else 'bn1.bn'}.{words[-1]}")
        else:
            names.append(f"{words[0]}.{words[-1]}")
    weights = theirs(model, ResNet19.published[0], names)
    again = {name.replace("conv1.", "conv1_s.layer.module."): value for name, value in weights.items() if "conv1." in name}
    _, record = taken(ResNet19(in_channels=3, num_classes=100, size=8, T=1, width=0.125), weights | again, tmp_path)
    assert record["head_of_another_size"] == "fc2.0" and record["file_entries"]["without_counterpart"] == len(again) == 9


def test_a_published_set_vae_goes_into_a_seqset_vae(tmp_path):
    small = SetVAE(num_variables=5, width=8, heads=2, embeddings=torch.zeros(5, 6), residual=False, events="scaled")
    names = [name for name in small.state_dict() if name not in ("codes", "embeddings")]
    split = (".attention.query.", ".attention.key.", ".attention.value.")
    old = dict.fromkeys(name.replace(split[0], ".multihead.in_proj_") for name in names if not any(part in name for part in split[1:]))
    replaced = (
        ("names.", "dim_reducer."), ("enter.", "embed."), ("encoder.", "encoder_layers."), ("to_posterior.3", "mu_logvar.4"),
        ("to_posterior", "mu_logvar"), ("decoder.out.", "out.0."), ("decoder.exchange.0.", "decoder_layers.0.isab."),
        ("decoder.expand.0.", "decoder_layers.0.pma.mab."), ("decoder.mix.0.0.", "decoder_layers.0.pma.ff."),
        ("decoder.mix.0.1.", "decoder_layers.0.pma.ln."), (".gather.", ".mab1."), (".spread.", ".mab2."), (".points", ".inducing"),
        (".attention.out.", ".multihead.out_proj."), (".norm1.", ".ln1."), (".norm2.", ".ln2."), (".feed_forward.", ".ff."),
    )  # fmt: skip
    for new, their in replaced:
        old = {name.replace(new, their): None for name in old}
    weights = theirs(small, SetVAE.published[0], list(old))
    whole = SeqSetVAE(num_variables=5, width=8, heads=2, embeddings=torch.zeros(5, 6))
    lightning = {f"setvae.setvae.{name}": value for name, value in weights.items()} | {"setvae.loss.weight": torch.ones(2)}
    message, record = taken(whole, lightning, tmp_path, residual=True, events="split", decoder="linear")
    assert record["into"] == "set_vae" and record["prefix"] == "setvae.setvae." and record["file_entries"]["placed"] == len(weights)
    assert torch.equal(
        whole.set_vae.encoder[0].gather.attention.key.weight, weights["encoder_layers.0.mab1.multihead.in_proj_weight"][8:16]
    )
    assert "made for model.residual=false model.events=scaled model.decoder=tanh, and this model computes something else" in message
    assert record["other_form"] == {"residual": False, "events": "scaled", "decoder": "tanh"}
    message, record = taken(small, weights, tmp_path, residual=False, events="scaled", decoder="tanh")
    assert record["other_form"] == {} and "something else" not in message


TINY = {
    "width": 8, "last_width": 8, "depth": 2, "last_depth": 1, "groups": 1, "still_groups": 0, "heads": 2, "window": (2, 4, 4),
    "deform_groups": 2, "flow_width": 4,
}  # fmt: skip


def test_a_run_of_ours_whose_network_was_made_otherwise_is_said_to_be(tmp_path):
    node = {"_target_": "snnexp.models.svrt.vrt.VRT", "width": 8, "neuron": "tet", "lif": {"v_threshold": 0.5}}
    model, path = Net(), tmp_path / "checkpoint_best.pth"
    saved = dict.fromkeys(checkpoint.REQUIRED) | {"state_dict": entries(model), "args": {"model": node}, "data": {}}
    torch.save(saved, path)
    message, record = transfer.transfer(model, str(path), DataSet(), False, node | {"encoder_relu": True, "lif": {"v_threshold": 1.0}})
    # A run that does not name them is from before there were ReLUs, and other rates and first weights.
    wanted = {"lif.v_threshold": 0.5, "encoder_relu": False, "drop_path_restarts": False, "linear_init": "small"}
    assert record["other_form"] == wanted
    assert "; that run has model." in message and " model.encoder_relu=false" in message
    saved["args"] = {"model": node | {"encoder_relu": True, "drop_path_restarts": True, "linear_init": "torch"}}
    torch.save(saved, path)
    message, record = transfer.transfer(model, str(path), DataSet(), False, node)
    assert record["other_form"] == {} and "that run has" not in message


def test_vrt_goes_into_svrt_and_svrt_not_into_vrt(tmp_path):
    vrt, svrt = VRT(**TINY), VRT(**TINY, encoder="conv", spike_channels=3, spike_heads=2)
    message, record = taken(svrt, entries(vrt) | {"stage1.attn.relative_position_index": torch.zeros(99, 99)}, tmp_path)
    assert "left as initialised: spikes." in message and record["file_entries"]["without_counterpart"] == 1
    assert "spikes." in refused(vrt, entries(svrt), tmp_path)


def test_names_of_joined_entries():
    assert split_name("a.q+kv.weight") == ["a.q.weight", "a.kv.weight"]
    assert split_name("a.b.weight") == ["a.b.weight"] and split_name("points") == ["points"]
