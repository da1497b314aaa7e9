"""Sizes of the whole assembly as frozen dataclasses, one JSON file on disk (`config.json`).

Symbols used in every docstring of this package:
    T  samples of a clip at 16 kHz          F  encoder frames (20 ms each)
    N  tokens of a flat batch               D  hidden size of the language model
    H  attention heads                      d  head size, D / H
    r  rank of the LoRA                     V  vocabulary size
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
FORMAT_VERSION = 1
SAMPLE_RATE = 16_000
"""Hz; both encoders and both feature extractors are made for it."""
MEL_HOP = 160
"""Samples per log-mel frame (Whisper's front end)."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections that carry LoRA, in the order in which the fused weights hold them."""


class ConfigError(ValueError):
    """A configuration that no model can be built from; the message names the field."""


@dataclass(frozen=True, slots=True)
class WhisperEncoderConfig:
    """Sizes of the semantic encoder, in the names of transformers' WhisperConfig."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int = 80
    max_source_positions: int = 1500


@dataclass(frozen=True, slots=True)
class WavLMEncoderConfig:
    """Sizes of the acoustic encoder, in the names of transformers' WavLMConfig."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_buckets: int = 320
    max_bucket_distance: int = 800
    do_stable_layer_norm: bool = False
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _one_of("wavlm.feat_extract_norm", self.feat_extract_norm, ("group", "layer"))
        _one_of("wavlm.feat_extract_activation", self.feat_extract_activation, ("gelu",))


@dataclass(frozen=True, slots=True)
class BranchConfig:
    """What follows an encoder: two strided convolutions with GLU, a bottleneck adapter, a projector.

    subsample_channels: channels before the GLU of the first convolution (its output is half of that).
    channels: output of the subsampler, which is the width of the bottleneck's input and output.
    bottleneck_size: inner width of the adapter. output_size: width after the projector.
    """

    subsample_channels: int
    channels: int
    bottleneck_size: int
    output_size: int


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of the language model, in the names of transformers' LlamaConfig."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    bos_token_id: int = 1
    eos_token_id: int = 2
    suppress_token_ids: tuple[int, ...] = (0,)
    """Ids the search never takes; the published one bans 0 (unknown, fairseq's padding)."""

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.num_key_value_heads != self.num_attention_heads:
            raise ConfigError(
                "llama.num_key_value_heads: grouped-query attention is not supported; the adapter's scale "
                "has one entry per channel of q, k, v and o, so all four must have hidden_size channels"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError("llama.hidden_size: must be an even multiple of num_attention_heads")

    @property
    def head_dim(self) -> int:
        """d, the size of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Rank and place of the LoRA; projections that are not named here carry none."""

    r: int
    target_modules: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        unknown = sorted(set(self.target_modules) - set(PROJECTIONS))
        if unknown:
            raise ConfigError(f"lora.target_modules: {', '.join(unknown)} not among {', '.join(PROJECTIONS)}")


@dataclass(frozen=True, slots=True)
class PromptAdapterConfig:
    """Inner width of the prompt-aware weight adapter, and the clamp on its output."""

    hidden_size: int
    max_scale: float = 3.0


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What answers of these weights keep to beside what a request asks for. Nothing, unless it is said here.

    max_repeats: an answer ends once it has said one thing so many times in a row; None leaves it alone.
    longest_repeat: tokens of the longest thing whose repeats are counted.
    """

    max_repeats: int | None = None
    longest_repeat: int = 32

    def __post_init__(self) -> None:
        if self.max_repeats is not None and self.max_repeats < 2:
            raise ConfigError("generation.max_repeats: must be at least 2")
        if self.longest_repeat < 1:
            raise ConfigError("generation.longest_repeat: must be at least 1")


@dataclass(frozen=True, slots=True)
class SpeechLLMConfig:
    """The whole assembly. `SpeechLLMConfig.load(dir)` and `.save(dir)` are the JSON on disk.

    generation: rules for answers; a converted checkpoint has none.
    window_seconds: length of the semantic encoder's window; longer clips take several.
    wavlm_do_normalize: whether WavLM's input is brought to zero mean and unit variance (not by default).
    random_weights: true if nobody trained these weights; the server says so aloud.
    """

    whisper: WhisperEncoderConfig
    wavlm: WavLMEncoderConfig
    whisper_branch: BranchConfig
    wavlm_branch: BranchConfig
    llama: LlamaConfig
    lora: LoraConfig
    prompt_adapter: PromptAdapterConfig
    name: str = "wavllm"
    window_seconds: int = 30
    wavlm_do_normalize: bool = False
    random_weights: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(f"format_version: {self.format_version} is not {FORMAT_VERSION}")
        if self.whisper.max_source_positions != 50 * self.window_seconds:
            raise ConfigError(
                f"whisper.max_source_positions: {self.whisper.max_source_positions} does not fit "
                f"window_seconds {self.window_seconds} (50 positions a second)"
            )

    @property
    def fusion_size(self) -> int:
        """Width of the two branches side by side, which the fusion layer maps to D."""
        return self.whisper_branch.output_size + self.wavlm_branch.output_size

    @property
    def window_samples(self) -> int:
        """Samples in one window of the semantic encoder."""
        return self.window_seconds * SAMPLE_RATE

    def num_audio_tokens(self, num_samples: int) -> int:
        """Audio embeddings that a clip of `num_samples` at 16 kHz becomes; 0 if it is too short for any."""
        return min(self._num_whisper_tokens(num_samples), self._num_wavlm_tokens(num_samples))

    def _num_whisper_tokens(self, num_samples: int) -> int:
        """Windows are cut to the longest of the clip, so all but a lone first window are full."""
        if num_samples <= 0:
            return 0
        num_windows = -(-num_samples // self.window_samples)
        longest = min(num_samples, self.window_samples)
        frames = (-(-longest // MEL_HOP) - 1) // 2 + 1
        return num_windows * subsampled_length(frames)

    def _num_wavlm_tokens(self, num_samples: int) -> int:
        frames = num_samples
        for kernel, stride in zip(self.wavlm.conv_kernel, self.wavlm.conv_stride, strict=True):
            frames = (frames - kernel) // stride + 1 if frames >= kernel else 0
        return subsampled_length(frames)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, as `config.json` holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SpeechLLMConfig:
        """Inverse of `to_json`. Raises ConfigError that names an unknown, missing or mistyped field."""
        config: SpeechLLMConfig = _build(cls, data, "")
        return config

    def save(self, directory: Path) -> None:
        """Write `config.json` into `directory`."""
        (directory / CONFIG_FILE).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> SpeechLLMConfig:
        """Read `config.json` from `directory`. Raises ConfigError with the path and the reason."""
        path = directory / CONFIG_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError as error:
            raise ConfigError(f"{path}: is nested too deeply") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from error
        try:
            return cls.from_json(data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def released(cls) -> SpeechLLMConfig:
        """The released model's sizes: Whisper large-v2, WavLM base, LLaMA-2-7B, LoRA rank 32."""
        return cls(
            whisper=WhisperEncoderConfig(1280, 32, 20, 5120),
            wavlm=WavLMEncoderConfig(768, 12, 12, 3072),
            whisper_branch=BranchConfig(1280, 1024, 512, 2048),
            wavlm_branch=BranchConfig(512, 1024, 512, 2048),
            llama=LlamaConfig(4096, 32, 32, 11008, 32000),
            lora=LoraConfig(32),
            prompt_adapter=PromptAdapterConfig(1024),
        )

    @classmethod
    def tiny(cls, vocab_size: int = 512, name: str = "wavllm-tiny-random") -> SpeechLLMConfig:
        """Small enough for tests: well under a million weights."""
        return cls(
            whisper=WhisperEncoderConfig(64, 2, 4, 128),
            wavlm=WavLMEncoderConfig(
                48,
                3,
                4,
                96,
                conv_dim=(32,) * 7,
                num_conv_pos_embeddings=32,
                num_conv_pos_embedding_groups=4,
            ),
            whisper_branch=BranchConfig(64, 48, 24, 64),
            wavlm_branch=BranchConfig(32, 48, 24, 64),
            llama=LlamaConfig(128, 3, 4, 352, vocab_size),
            lora=LoraConfig(8),
            prompt_adapter=PromptAdapterConfig(32),
            name=name,
            random_weights=True,
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}: {value!r} is not one of: {', '.join(allowed)}")


def subsampled_length(frames: int) -> int:
    """Length after two convolutions of stride 2, kernel 3 and padding 1 (0 stays 0)."""
    for _ in range(2):
        frames = (frames - 1) // 2 + 1 if frames > 0 else 0
    return frames


def _build(cls: Any, data: Any, path: str) -> Any:
    """Build dataclass `cls` from plain values, checking names and types; `path` names the place in errors."""
    if not isinstance(data, dict):
        raise ConfigError(f"{path or 'config'}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{path}." if path else ""
    for key in data:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown field")
    values = {key: _convert(hints[key], value, prefix + key) for key, value in data.items()}
    for key, spec in fields.items():
        if key not in values and spec.default is spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{key}: missing")
    return cls(**values)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """One field's value as `hint` wants it: nested dataclass, tuple, optional or scalar."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a list, got {type(value).__name__}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, element, f"{path}[{i}]") for i, element in enumerate(value))
    allowed = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    if float in allowed and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{path}: is {value}")
    if type(value) not in allowed and not (value is None and type(None) in allowed):
        names = " or ".join(t.__name__ for t in allowed)
        raise ConfigError(f"{path}: expected {names}, got {type(value).__name__}")
    return value
