"""The LIF factory: presets and errors, hand-worked traces, SpikingJelly's state handling, and its known traps."""

import copy
import itertools

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor, neuron
from torch import nn

from snnexp.errors import UserError
from snnexp.models import neurons
from snnexp.models.neurons import PRESETS, SURROGATES, LIFNode, lif_implementation, make_lif

pytestmark = pytest.mark.usefixtures("implementation")


def reference(lif: LIFNode) -> neuron.LIFNode:
    return neuron.LIFNode(
        tau=lif.tau,
        decay_input=lif.decay_input,
        v_threshold=lif.v_threshold,
        v_reset=lif.v_reset,
        surrogate_function=lif.surrogate_function,
        detach_reset=lif.detach_reset,
        step_mode="m",
    )


def trace(lif: LIFNode, values: list[float]) -> torch.Tensor:
    return lif(torch.tensor(values).view(-1, 1)).view(-1)


# Traces by hand.


def test_tet_trace_and_membrane():
    lif = make_lif("tet")
    membranes = []
    for x in (0.6, 0.6):  # the membrane is carried over from call to call
        assert trace(lif, [x]).tolist() == [0]
        membranes.append(lif.v.item())
    assert membranes == pytest.approx([0.6, 0.9])
    assert trace(lif, [0.6]).tolist() == [1] and lif.v.item() == 0  # 1.05 fires and is reset
    lif.reset()
    assert trace(lif, [0.6] * 6).tolist() == [0, 0, 1, 0, 0, 1]


def test_spikingjelly_trace():
    lif = make_lif("spikingjelly")
    assert trace(lif, [1.5] * 4).tolist() == [0, 1, 0, 1]
    lif.reset()
    assert trace(lif, [1.5]).item() == 0 and lif.v.item() == 0.75
    lif.reset()
    assert trace(lif, [0.999] * 300).sum() == 0


def test_soft_reset_subtracts_the_threshold():
    lif = make_lif("tet", v_reset=None)
    assert trace(lif, [1.5]).item() == 1 and lif.v.item() == 0.5


def test_fires_on_an_exact_tie():
    # SpikingJelly's v >= threshold; the code of TET asks for more than the threshold.
    assert trace(make_lif("tet"), [1.0]).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("v_threshold", [1.0, 0.6])
def test_strict_fires_above_the_threshold_and_not_on_it(dtype, v_threshold):
    tie = torch.tensor(v_threshold, dtype=torch.promote_types(dtype, torch.float32))  # the membrane's own type
    below, above = (torch.nextafter(tie, tie + side) for side in (-1, 1))
    for strict, fires in ((False, [0, 1, 1]), (True, [0, 0, 1])):
        lif = make_lif("tet", strict=strict, v_threshold=v_threshold)
        lif.v = 2 * torch.stack([below, tie, above])  # of which a half is left
        assert lif(torch.zeros(1, 3, dtype=dtype)).tolist() == [fires]
        assert lif.v.tolist() == [0.0 if fired else u for fired, u in zip(fires, [below, tie, above], strict=True)]


def by_definition(x, tau, decay_input, v_threshold, v_reset, detach_reset):
    """A strict LIF with the triangle's derivative, by autograd, as the equations have it."""
    v, spikes, rest = torch.full_like(x[0], v_reset or 0.0), [], v_reset or 0.0
    for current in x:
        v = v + (current - (v - rest)) / tau if decay_input else v - (v - rest) / tau + current
        z = v - v_threshold
        smooth = z.clamp(-1, 1) - z.clamp(-1, 1).abs() * z.clamp(-1, 1) / 2  # its derivative is max(0, 1 - |z|)
        spike = (z > 0).to(x) + smooth - smooth.detach()
        spikes.append(spike)
        through = spike.detach() if detach_reset else spike
        v = v - through * v_threshold if v_reset is None else (1 - through) * v + through * v_reset
    return torch.stack(spikes), v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["fast", "spikingjelly", "compiled"])
def test_strict_is_the_definition_forward_and_backward_where_many_tie(path, dtype, monkeypatch, implementation):
    if path != "fast" and implementation == "torch":
        pytest.skip("this path has one implementation")
    torch.manual_seed(0)
    if path == "spikingjelly":
        monkeypatch.setattr(LIFNode, "_has_fast_form", lambda self, x: False)
    for decay_input, v_reset, detach_reset in itertools.product((True, False), (0.0, None, -0.25), (True, False)):
        options = {"tau": 2.0, "decay_input": decay_input, "v_threshold": 1.0, "v_reset": v_reset, "detach_reset": detach_reset}
        lif = make_lif("tet", strict=True, **options)
        if path == "compiled" and (decay_input or detach_reset):
            continue  # each is compiled anew, which takes seconds
        torch.compiler.reset()
        run = torch.compile(lif, backend="eager", dynamic=False) if path == "compiled" else lif
        x = (torch.randint(-4, 13, (4, 2, 1500)) / 4).to(dtype).requires_grad_()  # quarters: every membrane is exact, and many are 1
        z = x.detach().float().requires_grad_()
        spikes, (expected, v) = run(x), by_definition(z, **options)
        loose = make_lif("tet", **options)(x.detach())
        assert (loose != expected).sum() > 50 and torch.equal(spikes.float(), expected.detach()) and torch.equal(lif.v, v)
        g = torch.randn_like(expected).to(dtype)
        spikes.backward(g)
        expected.backward(g.float())
        torch.testing.assert_close(x.grad.float(), z.grad, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=5e-6)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_strict_has_the_derivative_of_its_surrogate_on_a_tie(surrogate, monkeypatch):
    grads = []
    for strict, fast in itertools.product((False, True), (True, False)):
        with monkeypatch.context() as patch:
            if not fast:
                patch.setattr(LIFNode, "_has_fast_form", lambda self, x: False)
            x = torch.ones(1, 4, requires_grad=True)
            make_lif("tet", surrogate=surrogate, strict=strict)(x).sum().backward()
            grads.append(x.grad)
    assert grads[0].min() > 0.1
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "x, overrides, expected",
    [
        ([0.6, 0.6, 0.6], {}, [0.91688, 0.99025, 0.95]),
        ([1.2, 0.6, 0.6], {}, [0.37376, 0.888, 0.9]),  # through the reset: dv1/du1 = -1.2 * 0.8
        ([1.2, 0.6, 0.6], {"detach_reset": True}, [0.8, 1.05, 0.9]),
        # soft: dv1/du1 = 1 - 0.8, v1 = 0.2, u2 = 0.7; dv2/du2 = 1 - 0.7, v2 = 0.7, u3 = 0.95
        ([1.2, 0.6, 0.6], {"v_reset": None}, [0.8 + 0.1 * (0.7 + 0.15 * 0.95), 0.7 + 0.15 * 0.95, 0.95]),
    ],
)
def test_gradient_of_three_steps_by_hand(x, overrides, expected):
    x = torch.tensor(x).view(3, 1).requires_grad_()
    make_lif("tet", **overrides)(x).sum().backward()
    assert x.grad.view(-1).tolist() == pytest.approx(expected, abs=1e-6)


def test_tet_is_the_papers_recurrence():
    x = torch.randn(6, 50) + 0.3
    u, spikes = torch.zeros(50), []
    for current in x:
        u = 0.5 * u + current
        spikes.append((u > 1).float())
        u = (1 - spikes[-1]) * u
    assert torch.equal(make_lif("tet")(x), torch.stack(spikes))


# Equality with SpikingJelly's node.


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_equals_spikingjelly(surrogate):
    torch.manual_seed(0)
    for decay_input, v_reset, detach_reset, (tau, v_threshold) in itertools.product(
        (True, False), (0.0, None, -0.3), (True, False), ((2.0, 1.0), (3.7, 0.6))
    ):
        lif = make_lif(
            "tet",
            tau=tau,
            decay_input=decay_input,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            v_threshold=v_threshold,
        )
        other = reference(lif)
        x = (torch.randn(5, 3, 7, 11) * 1.5 + 0.3).requires_grad_()
        z = x.detach().clone().requires_grad_()
        spikes, expected = lif(x), other(z)
        assert 0 < expected.mean() < 1
        assert torch.equal(spikes, expected) and torch.equal(lif.v, other.v)
        g_spikes, g_v = torch.randn_like(spikes), torch.randn_like(other.v)
        torch.autograd.backward((spikes, lif.v), (g_spikes, g_v))
        torch.autograd.backward((expected, other.v), (g_spikes, g_v))
        torch.testing.assert_close(x.grad, z.grad, rtol=1e-5, atol=5e-6)


def test_second_call_carries_the_membrane_and_its_gradient():
    lif = make_lif("tet", tau=3.0)
    other = reference(lif)
    x = torch.randn(4, 2, 9).requires_grad_()
    z = x.detach().clone().requires_grad_()
    first, second = lif(x[:2]), lif(x[2:])
    expected = other(z[:2]), other(z[2:])
    assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])
    weight = torch.randn_like(second)
    (second * weight).sum().backward()
    (expected[1] * weight).sum().backward()
    assert x.grad[:2].abs().sum() > 0
    torch.testing.assert_close(x.grad, z.grad)


def test_changed_batch_size_starts_at_rest_as_in_spikingjelly():
    lif = make_lif("tet", v_reset=-0.2)
    other = reference(lif)
    for n in (4, 3, 3):
        x = torch.rand(2, n, 5)
        assert torch.equal(lif(x), other(x)) and torch.equal(lif.v, other.v)


def test_a_membrane_set_by_hand_is_used():
    lif = make_lif("tet")
    other = reference(lif)
    lif.v = other.v = 1.5
    x = torch.rand(2, 3, 4)
    assert torch.equal(lif(x), other(x)) and torch.equal(lif.v, other.v)


def test_reset_net_resets():
    net = nn.Sequential(make_lif("tet"))
    x = torch.full((1, 1, 1), 0.9)
    functional.reset_net(net)
    assert net(x).item() == 0 and net(x).item() == 1
    functional.reset_net(net)
    assert net[0].v == 0.0 and net(x).item() == 0


# Traps.


def test_forgotten_reset_in_training_is_an_error():
    lif = make_lif("tet")
    x = torch.rand(2, 3, 4, requires_grad=True)
    lif(x).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        lif(x).sum().backward()


def test_deepcopy_after_reset_and_state_dict_without_membrane():
    net = nn.Sequential(nn.Linear(4, 4), make_lif("tet"))
    net(torch.rand(2, 3, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    functional.reset_net(net)
    twin = copy.deepcopy(net)
    x = torch.rand(2, 3, 4)
    assert torch.equal(net(x), twin(x))
    assert set(net.state_dict()) == {"0.weight", "0.bias"}


def test_reset_cache_is_stale_after_surgery_until_invalidated():
    net = nn.Sequential(make_lif("tet"))
    functional.reset_net(net)
    net.append(make_lif("tet"))
    net(torch.full((1, 1, 1), 0.9))
    functional.invalidate_reset_cache(net)
    functional.reset_net(net)
    assert all(v == 0.0 for v in base.memories(net))


def test_membrane_stays_fp32_in_bf16():
    lif = make_lif("spikingjelly", tau=100, v_threshold=2)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = lif(torch.ones(400, 1, 1, dtype=torch.bfloat16))
    assert spikes.dtype == torch.bfloat16 and lif.v.dtype == torch.float32
    assert lif.v.item() == pytest.approx(1 - 0.99**400, abs=1e-4)  # 0.982; a bf16 membrane stops at 0.805


def test_bf16_equals_the_fp32_node_on_the_same_values():
    lif = make_lif("tet", surrogate="atan")
    other = reference(lif)
    x = (torch.randn(6, 4, 33) + 0.3).bfloat16().requires_grad_()
    z = x.detach().float().requires_grad_()
    g = torch.randn(6, 4, 33).bfloat16()
    spikes, expected = lif(x), other(z)
    assert torch.equal(spikes.float(), expected) and torch.equal(lif.v, other.v)
    spikes.backward(g)
    expected.backward(g.float())
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad.float(), z.grad, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_take_spikingjellys_path(dtype):
    lif = make_lif("tet")
    x = torch.randn(3, 2, 5, dtype=dtype, requires_grad=True)
    spikes = lif(x)
    assert spikes.dtype == dtype and lif.v.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    spikes.sum().backward()
    assert torch.equal(spikes.float(), reference(lif)(x.float() if dtype == torch.float16 else x).float())


def test_single_step_functional_and_recorded_membranes_agree():
    x = torch.rand(4, 2, 3)
    spikes = make_lif("tet")(x)
    single = make_lif("tet")
    single.step_mode = "s"
    assert torch.equal(torch.stack([single(frame) for frame in x]), spikes)
    functional_form = base.to_functional_forward(make_lif("tet"))
    assert torch.equal(functional_form((x,), (0.0,))[0][0], spikes)
    recorder = make_lif("tet")
    recorder.store_v_seq = True
    assert torch.equal(recorder(x), spikes) and torch.equal(recorder.v_seq[-1], single.v)


def test_monitor_hooks_see_the_spikes():
    net = nn.Sequential(make_lif("tet"))
    with monitor.OutputMonitor(net, neuron.BaseNode, lambda s: s.mean()) as seen:
        net(torch.full((3, 1, 1), 0.6))
    assert seen["0"][0].item() == pytest.approx(1 / 3)


def test_traces_under_dynamo_without_a_graph_break_and_keeps_the_state(implementation):
    if implementation == "torch":
        pytest.skip("under torch.compile there is one implementation")
    lif, compiled = make_lif("tet"), make_lif("tet")
    fast = torch.compile(compiled, backend="eager", fullgraph=True, dynamic=False)
    for _ in range(2):
        x = torch.randn(3, 2, 5).bfloat16().requires_grad_()
        z = x.detach().clone().requires_grad_()
        expected, spikes = lif(x), fast(z)
        assert torch.equal(spikes, expected) and torch.equal(compiled.v, lif.v) and spikes.dtype == torch.bfloat16
        lif.reset(), compiled.reset()
        expected.sum().backward()
        spikes.sum().backward()
        torch.testing.assert_close(z.grad, x.grad)


def test_sync_batch_norm_inside_the_container_reads_channels_as_channels():
    net = nn.Sequential(layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), make_lif("tet")).train()
    x = torch.randn(3, 4, 2, 6, 6)  # N == C of the norm: the wrong axis would go unnoticed
    net(x)
    functional.reset_net(net)
    net.eval()
    expected = net(x)
    functional.reset_net(net)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted[0][1], nn.SyncBatchNorm)
    assert torch.equal(converted(x), expected)


# The factory.


def test_presets():
    tet, jelly = make_lif(), make_lif("spikingjelly")
    assert (tet.decay_input, jelly.decay_input) == (False, True)
    assert tet.step_mode == "m" and tet.tau == 2.0 and tet.v_reset == 0.0 and not tet.detach_reset
    assert type(tet.surrogate_function) is SURROGATES["triangle"] and tet.surrogate_function.alpha == 1.0
    assert type(jelly.surrogate_function) is SURROGATES["sigmoid"] and jelly.surrogate_function.alpha == 4.0
    assert repr(make_lif("tet", **dict.fromkeys(PRESETS["tet"], "preset"))) == repr(tet)


def test_integers_of_a_yaml_file_are_cast():
    lif = make_lif("tet", tau=3, v_threshold=2, v_reset=0, alpha=2)
    assert (lif.tau, lif.v_threshold, lif.v_reset, lif.surrogate_function.alpha) == (3.0, 2.0, 0.0, 2.0)
    assert all(isinstance(v, float) for v in (lif.tau, lif.v_threshold, lif.v_reset, lif.surrogate_function.alpha))


def test_another_surrogate_comes_with_its_own_sharpness():
    assert make_lif("tet", surrogate="atan").surrogate_function.alpha == 2.0
    assert make_lif("tet", surrogate="atan", alpha=3).surrogate_function.alpha == 3.0


@pytest.mark.parametrize(
    "preset, overrides, message",
    [
        ("tett", {}, ["model.neuron", "'tett'", "spikingjelly", "Did you mean 'tet'?"]),
        ("tet", {"surrogate": "triangel"}, ["model.lif.surrogate", "'triangel'", "atan", "Did you mean 'triangle'?"]),
        ("tet", {"v_treshold": 1.0}, ["'v_treshold'", "Did you mean 'v_threshold'?"]),
        ("tet", {"tau": 1}, ["model.lif.tau", "1", "above 1"]),
        ("tet", {"tau": "slow"}, ["model.lif.tau", "'slow'", "number"]),
        ("tet", {"tau": True}, ["model.lif.tau", "True"]),
        ("tet", {"tau": None}, ["model.lif.tau", "None"]),
        ("tet", {"v_threshold": float("nan")}, ["model.lif.v_threshold", "nan"]),
        ("tet", {"v_threshold": 0.5, "v_reset": 0.5}, ["model.lif.v_threshold", "0.5", "above"]),
        ("tet", {"alpha": 0}, ["model.lif.alpha", "above 0"]),
        ("tet", {"detach_reset": 1}, ["model.lif.detach_reset", "true or false"]),
    ],
)
def test_errors_name_value_choice_and_nearest(preset, overrides, message):
    with pytest.raises(UserError) as error:
        make_lif(preset, **overrides)
    assert all(part in str(error.value) for part in message), str(error.value)


def test_implementation_is_reported(implementation):
    assert lif_implementation("cpu").startswith("C kernel" if implementation == "c" else "plain torch")
    assert "compiled" in lif_implementation("cpu", compiled=True)


def test_on_cuda_what_runs_is_asked(monkeypatch):
    monkeypatch.setattr(neurons, "why_no_triton", lambda: "")
    assert lif_implementation("cuda:0") == "Triton kernel"
    monkeypatch.setattr(neurons, "why_no_triton", lambda: "no C compiler")
    asked = []

    def answer(kind, device, execution):
        asked.append((kind, str(device), execution))
        return {"implementation": "torch", "unavailable": {}}

    monkeypatch.setattr(neurons, "neuron_implementation", answer)
    assert lif_implementation("cuda:0", compiled=True) == "spikingjelly, torch (no Triton: no C compiler)"
    assert asked == [("lif", "cuda:0", "compile")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs where there is a GPU")
def test_triton_that_cannot_start_is_told_in_words():
    assert neurons.why_no_triton() != "" and "\n" not in neurons.why_no_triton()
