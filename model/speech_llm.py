"""SpeechLLM: the one object that the server calls. Holds weights and nothing of any request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.audio_encoder import AudioEncoder
from model.audio_features import AudioFeatures, ClipFeatures
from model.config import SpeechLLMConfig
from model.kv_cache import KVCache
from model.llama import FlatBatch, Llama, PrefillSpan
from model.prepacked import LARGE, pack_linears
from model.prompt_adapter import PromptAdapter


class SpeechLLM(nn.Module):
    """Dual-encoder WavLLM: audio encoder, prompt adapter, language model with LoRA."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        self.config = config
        self.features = AudioFeatures(config)
        self.audio_encoder = AudioEncoder(config)
        self.prompt_adapter = PromptAdapter(config.llama.hidden_size, config.prompt_adapter)
        self.llama = Llama(config.llama, config.lora)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.llama.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.llama.norm.weight.dtype

    @property
    def num_parameters(self) -> int:
        """Weights of the whole assembly."""
        return sum(parameter.numel() for parameter in self.parameters())

    def new_cache(self, num_pages: int, page_size: int) -> KVCache:
        """An empty KV cache that fits this model."""
        return KVCache(self.config.llama, num_pages, page_size, self.dtype, self.device)

    def clip_features(self, waveform: Tensor) -> ClipFeatures:
        """[T] float32 at 16 kHz -> what the encoders read, on the weights' device."""
        return self.features(waveform.to(self.device))

    @torch.inference_mode()
    def encode_audio(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Clips [T] float32 at 16 kHz -> audio embeddings [num_audio_tokens(T), D] each."""
        clips = [self.clip_features(waveform) for waveform in waveforms]
        embeddings: list[Tensor] = self.audio_encoder(clips)
        return embeddings

    @torch.inference_mode()
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[N] int64 -> [N, D]."""
        embeddings: Tensor = self.llama.embed_tokens(ids)
        return embeddings

    @torch.inference_mode()
    def forward(self, batch: FlatBatch, cache: KVCache) -> Tensor:
        """Hidden states [N, D] of a flat batch, before the final norm."""
        hidden: Tensor = self.llama(batch, cache)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] of `forward` -> [R, V]."""
        return self.llama.logits(hidden)

    @torch.inference_mode()
    def scale_from_hidden(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, D] of a whole instruction, read with the LoRA off -> its scale [D]."""
        scale: Tensor = self.prompt_adapter(hidden)
        return scale

    @torch.inference_mode()
    def prompt_scale(self, ids: Sequence[int]) -> Tensor:
        """The scale [D] of one instruction's adapter ids, in a pass of its own (used to merge at load)."""
        cache = self.new_cache(num_pages=1, page_size=len(ids))
        tokens = torch.tensor(ids, device=self.device)
        steps = torch.arange(len(ids), device=self.device)
        page = torch.zeros(1, dtype=torch.long, device=self.device)
        span = PrefillSpan(0, len(ids), page, len(ids))
        batch = FlatBatch(self.embed_tokens(tokens), steps, steps, None, (span,), None)
        return self.scale_from_hidden(self(batch, cache))

    @torch.inference_mode()
    def merge(self, scale: Tensor) -> None:
        """Fold the LoRA at `scale` [D] into the language model, for good."""
        self.llama.merge(scale)

    @torch.inference_mode()
    def prepack(self, max_bytes: float) -> None:
        """Copy weights into the order in which a CPU multiplies them fastest, as far as `max_bytes` go.

        The decoder's first, then the encoders'. To be called once they are loaded and merged, for good.
        """
        left = pack_linears(self.audio_encoder.whisper, self.llama.prepack(max_bytes))  # its rows are windows
        left = pack_linears(self.audio_encoder, left, min_size=LARGE)
        for layer in self.audio_encoder.wavlm.feature_extractor.layers:
            left = layer.prepack(left)
