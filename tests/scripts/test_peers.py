"""VGGSNN around the LIF of another library."""

import torch

from snnexp.models.vggsnn import VGGSNN


def test_the_folded_network_is_ours_with_the_same_weights(load):
    peers = load("peers")
    torch.manual_seed(0)
    model = VGGSNN(in_channels=2, num_classes=10, size=16, T=2, width=0.25)
    net = peers.Folded(peers.ours, 2, 10, 16, 0.25)
    net.load_weights(dict(model.named_parameters()))
    x = torch.poisson(torch.full((2, 3, 2, 16, 16), 0.3))
    assert torch.equal(net(x), model(x)) and model(x).abs().sum() > 0


def test_every_peer_is_said_to_agree_with_settings_of_ours_or_to_differ(load):
    peers = load("peers")
    assert [peer.name for peer in peers.PEERS] == ["spikingjelly", "snntorch", "sinabs", "norse", "jaxpike", "spyx"]
    for peer in peers.PEERS:
        assert not (peer.settings and peer.differs)
        peers.ours(**peer.settings)
