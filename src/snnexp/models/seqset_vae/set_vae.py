"""SetVAE: a variational autoencoder of sets of medical events, after Kim et al., "SetVAE" (CVPR 2021)."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.contracts import Model
from snnexp.errors import UserError, nearest
from snnexp.fp32 import at_least_fp32
from snnexp.models.seqset_vae.attention import AnySets, AttentionBlock, InducedAttention, repeat_for_members, share_first_rows
from snnexp.models.seqset_vae.padding import Padded, padded_if_better
from snnexp.published import Published

if TYPE_CHECKING:
    from snnexp.data.stays.medical import Stays

LARGEST_LOG_VARIANCE = 10.0
EVENTS = ("split", "scaled")
DECODERS = ("linear", "tanh")


@dataclass
class SetVAEOutput:
    """The output of a forward pass on a batch of M sets with E events in all.

    `mu`, `logvar` and `z` [L, M, D] are the posterior of each of the L levels and a draw from it (in evaluation its mean). `decoded` holds
    one or two reconstructions [E, W], in which a set has the same rows as its events; `target` [E, W] is what they should be. A model with
    a head gives `logits` [N, 2] and `state` [N, W] of the stays, and in `heads` the logits [N, 2] of each head that learns. `sets`: how the
    model took the sets, None if as they are.
    """

    mu: Tensor
    logvar: Tensor
    z: Tensor
    decoded: list[Tensor]
    target: Tensor
    logits: Tensor | None = None
    state: Tensor | None = None
    heads: list[Tensor] = field(default_factory=list)
    sets: AnySets | None = None


class SetVAE(nn.Module, Model):
    """Encoder, posterior at each of `levels` levels, and decoder of sets of events (variable, value).

    An event enters as a vector: one half names the variable, the other is the value times a direction that belongs to the variable. These
    vectors are learned, or a linear layer makes them from frozen `embeddings` [V, F] of the variables' names. Each level is an ISAB; one
    layer, shared by all levels, reads its posterior N(mu, exp(logvar)) from the mean over the members of the set. The decoder turns the
    latents of the levels and one fixed point for each event into as many events as the set has, in no particular order.
    Published weights (SeqSetVAE) need: `residual` false, no residual path around the feed-forward layers of the attention blocks; `events`
    "scaled", a unit vector of the variable times the value; `decoder` "tanh", which reconstructs those vectors (SetDecoder).

    The target of the reconstruction is fixed: the variable as one of V orthonormal codes (drawn once; unit vectors if V exceeds W - 1), and
    the standardised value. `posterior` is (mu, logvar) [L, M, D], fp32, of the latest forward pass, without gradient.
    With width 256, 16 inducing points, 2 heads, 2 levels, 2 decoder layers and embeddings of 768 it has 5,946,880 parameters.
    Raises: UserError for values that do not fit.
    """

    shapes_vary = True
    published = (
        Published(
            "SetVAE of SeqSetVAE",
            [
                (r"^dim_reducer\.", "names."),
                (r"^embed\.", "enter."),
                (r"^encoder_layers\.", "encoder."),
                (r"^mu_logvar\.4\.", "to_posterior.3."),
                (r"^mu_logvar\.", "to_posterior."),
                (r"^out\.0\.", "decoder.out."),
                (r"^decoder_layers\.(\d+)\.isab\.", r"decoder.exchange.\1."),
                (r"^decoder_layers\.(\d+)\.pma\.mab\.", r"decoder.expand.\1."),
                (r"^decoder_layers\.(\d+)\.pma\.ff\.", r"decoder.mix.\1.0."),
                (r"^decoder_layers\.(\d+)\.pma\.ln\.", r"decoder.mix.\1.1."),
                (r"\.mab1\.", ".gather."),
                (r"\.mab2\.", ".spread."),
                (r"\.inducing$", ".points"),
                (r"\.multihead\.out_proj\.", ".attention.out."),
                (r"\.multihead\.in_proj_(weight|bias)$", r".attention.query+key+value.\1"),
                (r"\.ln([12])\.", r".norm\1."),
                (r"\.ff\.", ".feed_forward."),
            ],
            lacks=r"^(codes|embeddings)$",
            form={"residual": False, "events": "scaled", "decoder": "tanh"},
        ),
    )

    def __init__(
        self,
        *,
        num_variables: int,
        width: int = 64,
        heads: int = 4,
        inducing: int = 4,
        levels: int = 2,
        decoder_layers: int = 1,
        residual: bool = True,
        events: str = "split",
        decoder: str = "linear",
        embeddings: Tensor | None = None,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "heads": heads, "inducing": inducing, "levels": levels, "decoder_layers": decoder_layers}
        for option, value in sizes.items():
            if value < 1:
                raise UserError(f"model.{option}={value}: must be at least 1.")
        if width % 2 or width % heads:
            raise UserError(f"model.width={width}: must be even, and a multiple of model.heads={heads}.")
        for option, value, known in (("events", events, EVENTS), ("decoder", decoder, DECODERS)):
            if value not in known:
                raise UserError(f"model.{option}: {value!r} is not known; allowed: {', '.join(known)}.{nearest(value, known)}")
        self.width, self.form = width, events
        if embeddings is None:
            self.names = nn.Embedding(num_variables, width)
        else:
            self.register_buffer("embeddings", embeddings.float())
            self.names = nn.Linear(embeddings.shape[1], width)
        self.enter = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU())
        self.encoder = nn.ModuleList(InducedAttention(width, heads, inducing, residual) for _ in range(levels))
        self.to_posterior = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 2 * width))
        self.decoder = SetDecoder(width, heads, inducing, decoder_layers, residual, decoder)
        self.register_buffer("codes", variable_codes(num_variables, width - 1))
        self.posterior: tuple[Tensor, Tensor] | None = None

    def forward(self, stays: "Stays") -> SetVAEOutput:
        """Encode each set, draw its latents (in evaluation: take their means) and decode them."""
        sets = padded_if_better(stays, stays.value)
        mu, logvar, z = self.encode(stays, sets)
        decoded = self.decoder(z.transpose(0, 1), sets)
        return SetVAEOutput(mu, logvar, z, [decoded], self.target(stays), sets=sets)

    def encode(self, stays: "Stays", sets: AnySets | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log variance of the posterior, and a draw from it, fp32 (fp64 in an fp64 model) [L, M, D]."""
        x, sets = self.enter(self.events(stays)), sets or padded_if_better(stays, stays.value)
        pooled = []
        for layer in self.encoder:
            x = layer(x, sets)
            pooled.append(mean_of_sets(x, sets))
        with torch.autocast(x.device.type, enabled=False):
            mu, logvar = self.to_posterior(at_least_fp32(torch.stack(pooled))).chunk(2, dim=-1)
            mu = mu.clone() if torch.compiler.is_compiling() else mu  # PyTorch 2.14 fails where a graph returns views of one tensor
            logvar = logvar.clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        kept = (mu.clone(), logvar.clone()) if torch.compiler.is_compiling() else (mu, logvar)
        self.posterior = kept[0].detach(), kept[1].detach()
        return mu, logvar, z

    def events(self, stays: "Stays") -> Tensor:
        """Return the vectors of events [E, W]: the value scales the second half of the vector of the variable; with "scaled", all of it."""
        names = F.normalize(self.names.weight if isinstance(self.names, nn.Embedding) else self.names(self.embeddings), dim=-1)
        if self.form == "scaled":
            return F.embedding(stays.variable, names) * stays.value.unsqueeze(1)
        name, direction = F.embedding(stays.variable, names * math.sqrt(self.width)).chunk(2, dim=-1)
        return torch.cat([name, direction * stays.value.unsqueeze(1)], dim=1)

    def target(self, stays: "Stays") -> Tensor:
        """Return the target of the reconstruction, fp32 [E, W]: code of the variable, then the value; with "tanh" the vectors of events."""
        if self.decoder.form == "tanh":
            return at_least_fp32(self.events(stays).detach())
        return torch.cat([F.embedding(stays.variable, self.codes), stays.value.unsqueeze(1)], dim=1)


class SetDecoder(nn.Module):
    """From latents [M, L, W] and sizes of sets to rows [E, W]; each layer is an ISAB, and attention of fixed points to its output.

    `form` "tanh" is the published decoder, with fixed points instead of random ones: it starts from the last latent alone, applies its
    layers from the last to the first, has residual paths around the layers but not around the ISABs, and ends in a tanh.
    """

    def __init__(self, width: int, heads: int, inducing: int, layers: int, residual: bool = True, form: str = "linear") -> None:
        super().__init__()
        self.form = form
        self.exchange = nn.ModuleList(InducedAttention(width, heads, inducing, residual) for _ in range(layers))
        self.expand = nn.ModuleList(AttentionBlock(width, heads, residual) for _ in range(layers))
        self.mix = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()) for _ in range(layers))
        self.out = nn.Linear(width, width)
        self.points = fixed_points(64, width)  # not a buffer: it grows with the largest set, and ranks exchange their buffers

    def forward(self, latents: Tensor, sets: AnySets) -> Tensor:
        """Return the decoded events; within a set their order is not that of the events."""
        self.provide_points(sets)
        if self.form == "tanh":
            return self.decode_as_published(latents[:, -1:], sets)
        x = latents
        for exchange, expand, mix in zip(self.exchange, self.expand, self.mix, strict=True):
            x = mix(expand(self.points, exchange(x, sets), sets, share=share_first_rows))
        return self.out(x)

    def decode_as_published(self, x: Tensor, sets: AnySets) -> Tensor:
        """Return the decoded events from one latent [M, 1, W] for each set."""
        points, before = share_first_rows(self.points, sets), repeat_for_members(x, sets)
        for exchange, expand, (linear, norm, activate) in reversed(list(zip(self.exchange, self.expand, self.mix, strict=True))):
            context = norm(activate(linear(exchange.exchange(x, sets))))
            x = before = before + points + expand(points, context, sets)
        return self.out(x).tanh()

    def provide_points(self, sets: AnySets) -> None:
        """Make points for the largest of the sets if there are too few, with the device and dtype of the weights."""
        largest = sets.largest
        if largest > len(self.points):
            self.points = fixed_points(2 * largest, self.points.shape[1])
        self.points = self.points.to(self.out.weight)


def mean_of_sets(x: Tensor, sets: AnySets) -> Tensor:
    """Return the mean over the members of each set, [M, W], from x [E, W]."""
    if isinstance(sets, Padded):
        return sets.mean(x)
    parts = x.split([n * k for n, k in sets.runs])
    return torch.cat([part.reshape(k, n, -1).mean(1) for part, (n, k) in zip(parts, sets.runs, strict=True)])


def variable_codes(count: int, width: int) -> Tensor:
    """Return fixed codes of `count` variables, fp32 [count, width]: orthonormal, or random unit vectors if `count` exceeds `width`."""
    if torch.empty(0).is_meta:  # only the shape is wanted
        return torch.empty(count, width)
    random = torch.randn(width, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0), device="cpu")
    codes = torch.linalg.qr(random).Q.T if count <= width else F.normalize(random, dim=0).T
    return codes.float().contiguous()


def fixed_points(count: int, width: int) -> Tensor:
    """Return the first `count` points of a sequence that fills a normal distribution evenly, fp32 [count, width].

    The quantiles of the i-th point are i sqrt(p_j) mod 1, with the primes p_j (Richtmyer 1951).
    """
    if torch.empty(0).is_meta:  # only the shape is wanted
        return torch.empty(count, width)
    primes: list[int] = []
    candidate = 2
    while len(primes) < width:
        if all(candidate % p for p in primes if p * p <= candidate):
            primes.append(candidate)
        candidate += 1
    steps = torch.tensor(primes, dtype=torch.float64, device="cpu").sqrt()
    quantiles = (torch.arange(1, count + 1, dtype=torch.float64, device="cpu").unsqueeze(1) * steps) % 1
    return (math.sqrt(2) * torch.erfinv(2 * quantiles - 1)).clamp(-4, 4).float()
