"""WavLM (Chen et al., 2021), cut in pieces, with every layer's output.

transformers' attention returns weights and so materialises [B * H, F, F] several times, its front end all
samples of a clip at 512 channels; here both walk through the clip. Tested equal to its WavLMModel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.pieces import (
    FRAME_MULTIPLE,
    Pieces,
    add_linear,
    convolve,
    join,
    joined,
    linear,
    linear_gelu,
    pauses,
    round_up,
    rows_of_a_piece,
)
from model.prepacked import gelu_planless
from model.wavlm_modules import Attention, Layer, WavLM, position_buckets

Statistics = tuple[Tensor, Tensor]
"""Mean and variance, [channels] each."""
TOGETHER = 4
"""Convolutions that a piece computes one after the other, so that their many samples stay in a CPU's cache.
Of the later ones' frames a piece takes more: products of few rows are slow.
"""
QUERY_CHUNK = 128
"""Rows of attention at a time: its bias is one number per head and pair of frames, 1.7 GB at once for a clip
of two minutes. On a CPU small chunks stay in its cache."""
SHORT_FRAMES = 768
"""15 s: up to there torch's attention of a whole clip is faster on a CPU than products and softmax are."""
GPU_BIAS_BYTES = 2**28
"""Of the bias of one chunk on a GPU, where a chunk is as large as that allows."""


class WavLMFrontEnd:
    """Convolutions and feature projection of one clip, some frames at a time.

    Neighbouring pieces both compute what both their frames see. The base variant's GroupNorm alone looks at
    the whole clip: its mean and variance follow from those of the samples under the kernel.
    """

    def __init__(self, wavlm: WavLM) -> None:
        self._layers: list[Any] = list(wavlm.feature_extractor.layers)
        self._rows = [layer.rows() for layer in self._layers]
        self._projection = wavlm.feature_projection
        self._is_base = wavlm.config.feat_extract_norm == "group"
        self._kernels = wavlm.config.conv_kernel
        self._strides = wavlm.config.conv_stride

    def __call__(self, wave: Tensor) -> Pieces[Tensor]:
        """[T] -> [F, C]."""
        last = len(self._layers)
        frames = _outputs(len(wave), self._kernels, self._strides)
        if frames <= rows_of_a_piece(self._flops_per_frame(0, last), wave.device):
            return self._later(0, wave[:, None])
        norm = self._statistics(wave) if self._is_base else None
        together = min(TOGETHER, last)
        middle = _outputs(len(wave), self._kernels[:together], self._strides[:together])
        wave = F.pad(wave, (0, max(0, self._needed(middle, 0, together) - len(wave))))
        room = self._needed(frames, together, last)
        x = yield from self._pieces(wave, middle, 0, together, lambda part: self._first(part, norm), room)
        x = yield from self._pieces(x, frames, together, last, lambda part: self._later(together, part))
        return x[:frames]

    def _needed(self, frames: int, first: int, last: int) -> int:
        """Inputs that layers first:last see for so many frames and those that are computed with them."""
        computed = round_up(frames, FRAME_MULTIPLE)
        stop: int = _inputs(0, computed, self._kernels[first:last], self._strides[first:last]).stop
        return stop

    def _pieces(
        self,
        x: Tensor,
        frames: int,
        first: int,
        last: int,
        compute: Callable[[Tensor], Tensor],
        room: int = 0,
    ) -> Pieces[Tensor]:
        """Layers first:last over [t, ...] -> [at least frames and room, ...], in pieces of about equal size.

        x: all that is needed. Rows after the frames mean nothing, but are numbers.
        """
        kernels, strides = self._kernels[first:last], self._strides[first:last]
        computed = round_up(frames, FRAME_MULTIPLE)
        num_pieces = -(-computed // rows_of_a_piece(self._flops_per_frame(first, last), x.device))
        step = round_up(-(-computed // num_pieces), FRAME_MULTIPLE)
        spans = ((start, min(start + step, computed)) for start in range(0, computed, step))
        parts = (compute(x[_inputs(start, stop, kernels, strides)]) for start, stop in spans)
        return (yield from joined(parts, max(computed, room)))

    def _flops_per_frame(self, first: int, last: int) -> float:
        """Of layers first:last; each has as many outputs a frame as the later ones' strides multiply to.
        After the last layer comes the projection.
        """
        strides = self._strides[first:last]
        counts: list[int] = [layer.conv.weight.numel() for layer in self._layers[first:last]]
        counts = [count * math.prod(strides[i + 1 :]) for i, count in enumerate(counts)]
        if last == len(self._layers):
            counts.append(self._projection.projection.weight.numel())
        return 2.0 * sum(counts)

    def _first(self, wave: Tensor, norm: Statistics | None) -> Tensor:
        """[t] -> [f, channels], the layers that go together. norm: the first one's mean and variance."""
        if norm is None:
            return self._convolve(0, TOGETHER, wave[:, None])
        return self._convolve(1, TOGETHER, self._first_normalised(wave, norm))

    def _later(self, first: int, x: Tensor) -> Tensor:
        """[t, channels] -> [f, C]: the layers from `first` on, and the projection."""
        rows: Tensor = self._projection(self._convolve(first, len(self._layers), x))
        return rows

    def _convolve(self, first: int, last: int, x: Tensor) -> Tensor:
        x = x[None]
        for layer, rows in zip(self._layers[first:last], self._rows[first:last], strict=True):
            x = layer(x, rows)
        return x[0]

    def _first_normalised(self, wave: Tensor, norm: Statistics) -> Tensor:
        """[t] -> [f, channels]: the first layer, its convolution and norm as one matrix product."""
        first = self._layers[0]
        mean, variance = norm
        strength = first.layer_norm.weight * (variance + first.layer_norm.eps).rsqrt()
        weight = self._rows[0].plain * strength[:, None]
        samples = wave.unfold(0, self._kernels[0], self._strides[0])
        shift = first.layer_norm.bias - mean * strength
        return gelu_planless(torch.addmm(shift, samples, weight.t()))

    def _statistics(self, wave: Tensor) -> Statistics:
        """Mean and variance [channels] over the clip of the first convolution, its bias left out, as the norm
        takes it away: w m and w C w of the mean m and the covariance C of the samples under the kernel.
        """
        samples = wave.unfold(0, self._kernels[0], self._strides[0]).double()
        average = samples.mean(0)
        apart = samples - average
        covariance = apart.t() @ apart / len(samples)
        weight = self._rows[0].plain.double()
        variance = ((weight @ covariance) * weight).sum(1)
        return (weight @ average).to(wave.dtype), variance.to(wave.dtype)


def _outputs(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Frames that unpadded convolutions leave of so many samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def _inputs(start: int, stop: int, kernels: Sequence[int], strides: Sequence[int]) -> slice:
    """The samples that output frames start:stop see."""
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        start, stop = start * stride, (stop - 1) * stride + kernel
    return slice(start, stop)


class WavLMTransformer:
    """The transformer over padded clips, with every layer's output."""

    def __init__(self, wavlm: WavLM) -> None:
        self._encoder: Any = wavlm.encoder
        self._config = wavlm.config
        self._stable = wavlm.config.do_stable_layer_norm

    def __call__(self, hidden: Tensor, lengths: Sequence[int]) -> Pieces[list[Tensor]]:
        """hidden: [B, F, C] after the feature projection, rows padded to F. lengths: frames of each row.

        Gives the layers' inputs and the last output, num_layers + 1 tensors [B, F, C].
        """
        encoder = self._encoder
        frames = hidden.shape[1]
        padding = None
        if min(lengths) < frames:
            ends = torch.tensor(lengths, device=hidden.device)
            padding = torch.arange(frames, device=hidden.device) >= ends[:, None]
            hidden = hidden.masked_fill(padding[:, :, None], 0.0)
        hidden = hidden + (yield from self._positions(hidden))
        if not self._stable:
            hidden = encoder.layer_norm(hidden)
        bias = self._relative_bias(frames)
        states = [hidden]
        for layer in encoder.layers:
            hidden = yield from self._layer(layer, hidden, bias, padding)
            yield from pauses(hidden)
            states.append(hidden)
        if self._stable:
            states[-1] = encoder.layer_norm(hidden)
        return states

    def _positions(self, hidden: Tensor) -> Pieces[Tensor]:
        """The positional convolution. [B, F, C] -> the same; an even kernel gives a frame too many."""
        embed = self._encoder.pos_conv_embed
        convolved = yield from convolve(embed.conv, hidden.transpose(1, 2), FRAME_MULTIPLE)
        positions: Tensor = F.gelu(convolved[..., : hidden.shape[1]]).transpose(1, 2)
        return positions

    def _layer(self, layer: Layer, hidden: Tensor, bias: Tensor, padding: Tensor | None) -> Pieces[Tensor]:
        """One transformer layer; normalisation after (base) or before (large) each block."""
        read = layer.layer_norm(hidden) if self._stable else hidden
        attended = yield from self._attend(layer.attention, read, bias, padding)
        hidden = yield from add_linear(hidden, layer.attention.out_proj, attended)
        if self._stable:
            return (yield from _add_feed_forward(hidden, layer, layer.final_layer_norm(hidden)))
        hidden = layer.layer_norm(hidden)
        out: Tensor = layer.final_layer_norm((yield from _add_feed_forward(hidden, layer, hidden)))
        return out

    def _relative_bias(self, frames: int) -> Tensor:
        """[H, 2 * frames - 1]: the bias of relative positions 1 - frames .. frames - 1 (key minus query)."""
        table = self._encoder.layers[0].attention.rel_attn_embed
        offsets = torch.arange(1 - frames, frames, device=table.weight.device)
        config = self._config
        bias: Tensor = table(position_buckets(offsets, config.num_buckets, config.max_bucket_distance)).t()
        return bias

    def _attend(
        self, attention: Attention, x: Tensor, bias: Tensor, padding: Tensor | None
    ) -> Pieces[Tensor]:
        """Gated relative attention (WavLM paper, section 3.1), without the output projection.

        x: [B, F, C] -> [B, F, C]. bias: [H, 2 F - 1]. padding: [B, F] bool, keys to leave out, or None.
        """
        batch, frames, _ = x.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, frames, attention.num_heads, -1).transpose(1, 2)

        query = split((yield from linear(attention.q_proj, x)))
        key = split((yield from linear(attention.k_proj, x)))
        value = split((yield from linear(attention.v_proj, x)))
        # From the last query to the first, the rows of the bias are slices of one view.
        query, gate = query.flip(2), self._gate(attention, split(x)).flip(2)
        toeplitz = bias.unfold(1, frames, 1)
        if x.is_cuda:
            weigh, clips = _weigh_fused, [slice(None)]
            chunk = max(QUERY_CHUNK, GPU_BIAS_BYTES // (gate[:, :, :1].numel() * frames * x.itemsize))
        else:
            weigh, chunk = _weigh_fused, frames
            if frames > SHORT_FRAMES:
                weigh, chunk = _weigh, QUERY_CHUNK
                key, value = key.contiguous(), value.contiguous()
            clips = [slice(clip, clip + 1) for clip in range(batch)]
        attended = []
        for clip in clips:
            parts = []
            left_out = None if padding is None else padding[clip]
            for start in range(0, frames, chunk):
                some = slice(start, start + chunk)
                asked, strength = query[clip, :, some], gate[clip, :, some]
                parts.append(weigh(asked, key[clip], value[clip], strength, toeplitz[:, some], left_out))
                if not x.is_cuda:
                    yield
            attended.append(join(parts, 2))
        return join(attended).transpose(1, 2).flip(1).reshape(batch, frames, -1)

    @staticmethod
    def _gate(attention: Attention, x: Tensor) -> Tensor:
        """[B, H, F, 1]: how strongly each query takes the position bias. x: [B, H, F, d]."""
        pairs = attention.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = pairs[..., :1], pairs[..., 1:]
        gate: Tensor = update * (reset * attention.gru_rel_pos_const - 1.0) + 2.0
        return gate


def _add_feed_forward(hidden: Tensor, layer: Layer, x: Tensor) -> Pieces[Tensor]:
    """[B, F, C] each -> hidden + what the two linear layers make of x."""
    wide = yield from linear_gelu(layer.feed_forward.intermediate_dense, x)
    return (yield from add_linear(hidden, layer.feed_forward.output_dense, wide))


def _weigh(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor, padding: Tensor | None
) -> Tensor:
    """Attention of queries [B, H, n, d] to all F keys, scores raised by gate * bias -> [B, H, n, d].

    gate: [B, H, n, 1]. bias: [H, n, F]. padding: [B, F] bool, keys to leave out, or None.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    scores.addcmul_(gate, bias)
    if padding is not None:
        scores.masked_fill_(padding[:, None, None], float("-inf"))
    out: Tensor = scores.softmax(-1) @ value
    return out


def _weigh_fused(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor, padding: Tensor | None
) -> Tensor:
    """The same by torch's kernel, which keeps scores in float32 on a GPU. On a CPU it is faster with short
    clips and slower by half with long ones.
    """
    mask = gate * bias
    if padding is not None:
        mask = mask.masked_fill(padding[:, None, None], float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
