"""A training step of video and stays gives the device all its work at once: nothing is asked of it, nothing copied to it in between."""

import pytest
import torch

from models.fake_cuda import Waits, put_on_fake_cuda, waits
from snnexp.data.video.clips import Clips
from snnexp.models.seqset_vae.seqset_vae import SeqSetVAE
from snnexp.models.svrt.flow import resize_flow, sampling_grid
from snnexp.models.svrt.vrt import VRT
from snnexp.tasks.deblurring import Deblurring
from snnexp.tasks.image_quality import luma
from snnexp.tasks.set_vae import StayOutcome
from snnexp.tasks.tiling import restore_in_tiles
from stays import batch_of, made_stays

PUBLISHED = {"residual": False, "events": "scaled", "decoder": "tanh", "decoder_layers": 2}


class FirstOfTwo(torch.nn.Module):
    def forward(self, blurry, spikes):
        return blurry


def test_the_instrument_sees_a_wait():
    with waits() as found:
        x = torch.empty(3, 2, device="cuda")
        x.new_tensor([1.0, 2.0])
        assert found.pop() == "_to_copy between cpu and cuda"
        x[x[:, 0].long()], x.sum(), x + 1, torch.arange(3, device="cuda")
        assert not found
        with pytest.raises(Exception, match="_local_scalar_dense"):
            x.sum().item()
        assert found == ["_local_scalar_dense"]


@pytest.mark.parametrize("form", [{}, PUBLISHED], ids=["ours", "published"])
def test_a_step_on_stays(form):
    batch = batch_of(made_stays(4, 7))
    y = torch.tensor([0, 1, 1, 0])
    task = StayOutcome(positive_weight=3.0)
    model = SeqSetVAE(num_variables=7, width=16, heads=2, inducing=3, context_decoder=True, latest=True, statistics=True, **form)
    with waits() as found:
        model, stays, y = put_on_fake_cuda(model), batch.to("cuda"), y.to("cuda")
        task.loss(model, (stays, y), 0)  # the points of the decoders are brought to the device once
        found.clear()
        loss, output = task.loss(model, (stays, y), 1)
        task.counts(loss, output, (stays, y))
        task.predict(output, (stays, y))
        assert loss.device.type == "cuda" and not found


@pytest.mark.parametrize("encoder", ["conv", "lif"])
def test_a_step_on_video(encoder):
    sizes = {"width": 8, "last_width": 8, "depth": 2, "last_depth": 1, "groups": 1, "still_groups": 0, "heads": 2, "window": (2, 4, 4)}
    task = Deblurring()
    model = VRT(**sizes, deform_groups=2, flow_width=8, encoder=encoder, spike_channels=3, spike_heads=2)
    # cuDNN's sampling along a flow has no fake form; PyTorch's own does the same.
    with waits() as found, torch.device("cuda"), torch.backends.cudnn.flags(enabled=False):
        put_on_fake_cuda(model)
        found.clear()
        frames = torch.empty(1, 3, 3, 40, 56)  # sides of two lengths, which no level of the flow halves evenly
        known, video = torch.empty(1, 3, dtype=torch.bool), torch.empty(1, dtype=torch.int64)
        batch = Clips(frames, frames, torch.empty(1, 3, 3, 40, 56), known, video)
        loss, output = task.loss(model, batch, 0)
        task.counts(loss, output, batch)
        assert loss.device.type == "cuda" and not found


def test_of_whole_clips_no_frame_is_looked_for_and_the_features_ask_once():
    torch.manual_seed(0)
    frames, video = torch.rand(2, 3, 3, 16, 16), torch.arange(2)
    task = Deblurring(loss="charbonnier_eps")
    some, every = torch.tensor([[True, False, True]] * 2), torch.ones(2, 3, dtype=torch.bool)
    for known, expected in ((every, 0), (some, 2 * 3)):
        batch = Clips(frames, frames.flip(1), frames, known, video)
        with Waits() as mode:
            *_, scores = task.predict(frames, batch)
        assert mode.found == ["index"] * expected and scores[:, 1].tolist() == [known[0].sum()] * 2
    whole = task.predict(frames, Clips(frames, frames.flip(1), frames, every, video))[-1]
    parts = [task.predict(frames, Clips(frames, frames.flip(1), frames, every & one, video))[-1] for one in (some, ~some)]
    assert torch.allclose(whole[:, 1:], sum(parts)[:, 1:])

    task.perceptual, asked = torch.nn.functional.l1_loss, []
    for known in (every, some):
        with Waits() as mode:
            loss, _ = task.loss(FirstOfTwo(), Clips(frames, frames.flip(1), frames, known, video), 0)
        asked.append(mode.found)
    assert asked == [["nonzero"]] * 2


def test_pictures_and_tiles():
    with waits() as found, torch.device("cuda"):
        assert luma(torch.empty(2, 3, 4, 4)).shape == (2, 1, 4, 4)
        clips, spikes = torch.empty(1, 4, 3, 8, 8), torch.empty(1, 4, 2, 8, 8)
        assert restore_in_tiles(FirstOfTwo(), clips, spikes, [3, 6, 6], [1, 2, 2]).shape == clips.shape
        assert not found


def test_the_factors_of_both_axes_are_those_of_a_copied_tensor():
    torch.manual_seed(0)
    flow = torch.randn(2, 2, 6, 10)
    for size in ((3, 5), (9, 7)):
        copied = torch.nn.functional.interpolate(flow, size, mode="bilinear", align_corners=False)
        assert torch.equal(resize_flow(flow, size), copied * flow.new_tensor([size[1] / 10, size[0] / 6]).view(2, 1, 1))
    for shown in (flow, flow[..., :6]):
        h, w = shown.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        copied = (torch.stack([columns, rows]) + shown) * shown.new_tensor([2 / (w - 1), 2 / (h - 1)]).view(2, 1, 1) - 1
        assert torch.equal(sampling_grid(shown), copied.movedim(1, -1))
    frames = torch.rand(2, 3, 4, 4)
    assert torch.equal(luma(frames), (frames * frames.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True))


def test_the_sizes_of_sets_follow_from_their_runs_and_are_given_with_the_batch():
    batch = batch_of(made_stays(5, 7))
    assert batch.sizes.tolist() == [n for n, k in batch.runs for _ in range(k)] and batch.sizes.dtype == torch.int64
    assert batch.sizes.sum() == len(batch.value)
