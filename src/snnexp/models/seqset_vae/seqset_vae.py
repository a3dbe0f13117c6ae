"""SeqSetVAE: a SetVAE encodes each set of a stay, and a causal transformer with a head for the outcome reads the sets in order."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.contracts import Model
from snnexp.errors import UserError
from snnexp.fp32 import at_least_fp32
from snnexp.models.seqset_vae.attention import Attention, split_heads
from snnexp.models.seqset_vae.latest_values import LatestValues
from snnexp.models.seqset_vae.set_vae import SetDecoder, SetVAE, SetVAEOutput
from snnexp.models.seqset_vae.statistics import StatisticsHeads

if TYPE_CHECKING:
    from snnexp.data.stays.medical import Stays

MINUTES_OF_A_DAY = 1440.0


class SeqSetVAE(nn.Module, Model):
    """A SetVAE for each set of a stay, a causal transformer of `layers` layers over the sets' latents, a head on the mean of its states.

    The transformer reads the means of the posterior, averaged over the levels. A state sees its own set and the sets before it. The time of
    a set enters through a small network of its minute; its position p enters as sin(p / 100) times a learned vector. With
    `context_decoder`, each state is decoded back to its set, in addition to the latents. The SetVAE is the submodule `set_vae`, so that a
    pre-trained one fits (init_from=RUN); `posterior` is that of the SetVAE.
    With `latest`, a linear function of the latest value of each variable enters beside the latent, with `dropout`. With `statistics`, more
    heads see plain statistics of the stay, with `statistics_dropout`: a linear head and four with a hidden layer. Each head learns the
    outcome by itself, and the logits are the mean of three votes: the head on the states, the linear head, and the mean of the four.
    `residual`, `events` and `decoder` are passed to the SetVAE, `residual` and `decoder` also to the context decoder. With the sizes named
    there, feed_forward 256, 2 layers and the context decoder it has 10,157,826 parameters.
    Raises: UserError for values that do not fit.
    """

    shapes_vary = True

    def __init__(
        self,
        *,
        num_variables: int,
        num_outputs: int = 2,
        width: int = 64,
        heads: int = 4,
        inducing: int = 4,
        levels: int = 2,
        decoder_layers: int = 1,
        layers: int = 2,
        feed_forward: int = 128,
        residual: bool = True,
        events: str = "split",
        decoder: str = "linear",
        context_decoder: bool = False,
        dropout: float = 0.2,
        latest: bool = False,
        statistics: bool = False,
        statistics_dropout: float = 0.4,
        embeddings: Tensor | None = None,
    ) -> None:
        super().__init__()
        if layers < 1 or feed_forward < 1:
            raise UserError(f"model.layers={layers}, model.feed_forward={feed_forward}: both must be at least 1.")
        for option, rate in (("dropout", dropout), ("statistics_dropout", statistics_dropout)):
            if not 0 <= rate < 1:
                raise UserError(f"model.{option}={rate}: allowed is 0 to below 1.")
        self.set_vae = SetVAE(
            num_variables=num_variables,
            width=width,
            heads=heads,
            inducing=inducing,
            levels=levels,
            decoder_layers=decoder_layers,
            residual=residual,
            events=events,
            decoder=decoder,
            embeddings=embeddings,
        )
        self.of_minute = nn.Sequential(nn.Linear(1, 64), nn.GELU(), nn.Linear(64, width))
        self.of_place = nn.Parameter(torch.zeros(width))
        self.transformer = nn.ModuleList(CausalLayer(width, heads, feed_forward, dropout) for _ in range(layers))
        self.decoder = SetDecoder(width, heads, inducing, decoder_layers, residual, decoder) if context_decoder else None
        self.head = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Dropout(dropout), nn.Linear(width // 2, num_outputs))
        self.latest = LatestValues(num_variables, width, dropout) if latest else None
        self.statistics = StatisticsHeads(num_variables, num_outputs, statistics_dropout) if statistics else None

    @property
    def posterior(self) -> tuple[Tensor, Tensor] | None:
        """Mean and log variance [L, M, D] of the latest forward pass, or None before the first."""
        return self.set_vae.posterior

    def forward(self, stays: "Stays") -> SetVAEOutput:
        """Return posterior, latents and reconstructions of the sets, and the logits of the stays."""
        output = self.set_vae(stays)
        states = self.states(output.mu.mean(0), stays)  # [M, W]
        if self.decoder is not None:
            output.decoded.append(self.decoder(states.unsqueeze(1), output.sets))
        with torch.autocast(states.device.type, enabled=False):
            states = at_least_fp32(states)
            total = states.new_zeros(len(stays.lengths), states.shape[1]).index_add(0, stays.stay, states)
            output.state = total / stays.lengths.unsqueeze(1)
            output.logits = self.head(output.state)
            output.heads = [output.logits]
            if self.statistics is not None:
                linear, members = self.statistics(stays)
                output.heads += [linear, *members]
                output.logits = torch.stack([output.logits, linear, members.mean(0)]).mean(0)
        return output

    def states(self, z: Tensor, stays: "Stays") -> Tensor:
        """Return the state [M, W] of the transformer at each set, from the latents [M, W]; it depends on the set and those before it."""
        day = (stays.minute.unsqueeze(1) / MINUTES_OF_A_DAY).to(self.of_place.dtype)
        time = self.of_minute(day) + torch.sin(stays.place / 100).unsqueeze(1) * self.of_place
        if self.latest is not None:
            time = time + self.latest(stays)
        rows = stays.stay * stays.longest + stays.place
        # The padding behind the end of a stay is seen by none of its sets, because a state never looks ahead.
        x = z.new_zeros(len(stays.lengths) * stays.longest, z.shape[1]).index_copy(0, rows, z + time.to(z.dtype))
        x = x.unflatten(0, (-1, stays.longest))
        for layer in self.transformer:
            x = layer(x)
        return x.flatten(0, 1)[rows]


class CausalLayer(nn.Module):
    """A transformer layer with the norms first (Xiong et al. 2020), in which a place sees itself and the places before it; x [N, S, W]."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(nn.Linear(width, feed_forward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feed_forward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return x after attention and feed-forward layer."""
        x = x + self.dropout(self.attend(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        """Return the causal attention of the places of x."""
        attention = self.attention
        q, k, v = (split_heads(layer(x), x.shape[1], attention.heads) for layer in (attention.query, attention.key, attention.value))
        return attention.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
