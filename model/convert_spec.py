"""Reads model sizes that are given in the names of the Hugging Face configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.config import PROJECTIONS, ConfigError
from model.convert_rules import (
    LLAMA,
    LORA,
    PROMPT_ADAPTER,
    WAVLM,
    WAVLM_FEATURES,
    WHISPER,
    WHISPER_FEATURES,
    Fields,
    Rules,
)

DEFAULT_WINDOW_SECONDS = 30
"""WhisperFeatureExtractor's chunk_length where it is left out."""
NUM_CONVOLUTIONS = 7
"""Of WavLM's front end where the specification lists none."""
DEFAULT_ROPE = "default"
SECTIONS = frozenset(("whisper", "wavlm", "llama", "lora", "prompt_adapter", "feature_extractors"))


def read_spec(path: Path) -> Fields:
    """A specification file as fields of SpeechLLMConfig, without those that it leaves out.

    Raises ConfigError that names the file and the field.
    """
    spec = read_json(path)
    try:
        return _spec_fields(spec)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_json(path: Path) -> Fields:
    """A JSON object. Raises ConfigError with the path if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def llama_fields(section: Any, place: str) -> Fields:
    """Fields of LlamaConfig from those of transformers' one, of any of its versions.

    Raises ConfigError for what would change the mathematics: biases, rotary scaling, odd head sizes.
    """
    if not isinstance(section, dict):
        raise ConfigError(f"{place}: expected an object, got {type(section).__name__}")
    plain = dict(section)
    head_dim = plain.pop("head_dim", None)
    rope = {name: plain.pop(name, None) for name in ("rope_parameters", "rope_scaling")}
    fields = LLAMA.pick(plain, place)
    for name, value in rope.items():
        fields |= _rope_theta(value, fields, f"{place}.{name}")
    heads, hidden = fields.get("num_attention_heads"), fields.get("hidden_size")
    if head_dim is not None and isinstance(heads, int) and head_dim * heads != hidden:
        raise ConfigError(f"{place}.head_dim: {head_dim} is not hidden_size / num_attention_heads")
    return fields


def _rope_theta(rope: Any, fields: Fields, place: str) -> Fields:
    """The base frequency that transformers 5 keeps in `rope_parameters`."""
    if rope is None:
        return {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{place}: expected an object, got {type(rope).__name__}")
    for name, value in rope.items():
        if name in ("rope_type", "type") and value != DEFAULT_ROPE:
            raise ConfigError(f"{place}.{name}: {value!r} is not supported, only {DEFAULT_ROPE!r}")
        if value is not None and name not in ("rope_type", "type", "rope_theta"):
            raise ConfigError(f"{place}.{name}: unknown field")
    theta = rope.get("rope_theta")
    if theta is None:
        return {}
    if theta != fields.get("rope_theta", theta):
        raise ConfigError(f"{place}.rope_theta: {theta!r} contradicts rope_theta {fields['rope_theta']!r}")
    return {"rope_theta": theta}


def _spec_fields(spec: Fields) -> Fields:
    unknown = sorted(set(spec) - SECTIONS)
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: unknown field")
    fields: Fields = {
        "whisper": _whisper_fields(_section(spec, "whisper")),
        "wavlm": _wavlm_fields(_section(spec, "wavlm")),
        "llama": _published_llama_fields(_section(spec, "llama")),
        "lora": _lora_fields(spec.get("lora", {})),
        "prompt_adapter": PROMPT_ADAPTER.pick(spec.get("prompt_adapter", {}), "prompt_adapter"),
    }
    return fields | _feature_fields(spec.get("feature_extractors", {}), fields["whisper"])


def _section(spec: Fields, name: str) -> Any:
    if name not in spec:
        raise ConfigError(f"{name}: missing")
    return spec[name]


def _wavlm_fields(section: Any) -> Fields:
    fields = WAVLM.pick(section, "wavlm")
    _check_heads(fields, "hidden_size", "num_attention_heads", "wavlm")
    lists = [fields.get(name, [0] * NUM_CONVOLUTIONS) for name in ("conv_dim", "conv_kernel", "conv_stride")]
    if len({len(value) for value in lists if isinstance(value, list)}) > 1:
        raise ConfigError("wavlm.conv_dim: conv_dim, conv_kernel and conv_stride differ in length")
    return fields


def _whisper_fields(section: Any) -> Fields:
    fields = WHISPER.pick(section, "whisper")
    _check_heads(fields, "d_model", "encoder_attention_heads", "whisper")
    return fields


def _check_heads(fields: Fields, size_name: str, heads_name: str, place: str) -> None:
    size, heads = fields.get(size_name), fields.get(heads_name)
    if isinstance(size, int) and isinstance(heads, int) and size % heads:
        raise ConfigError(f"{place}.{heads_name}: {heads} does not divide {size_name}, {size}")


def _published_llama_fields(section: Any) -> Fields:
    if isinstance(section, dict) and section.get("tie_word_embeddings"):
        raise ConfigError("llama.tie_word_embeddings: True is not supported, the checkpoint has both tensors")
    return llama_fields(without(section, "tie_word_embeddings"), "llama")


def without(section: Any, name: str) -> Any:
    """`section` less one field, if it is an object."""
    return {k: v for k, v in section.items() if k != name} if isinstance(section, dict) else section


def _lora_fields(section: Any) -> Fields:
    """alpha has no say here, since the prompt adapter's scale replaces alpha / r, unless it is not r."""
    fields = LORA.pick(without(section, "lora_alpha"), "lora")
    alpha = section.get("lora_alpha")
    if alpha is not None and alpha != fields.get("r", alpha):
        raise ConfigError(f"lora.lora_alpha: {alpha!r} is not r; the prompt adapter sets the scale")
    if isinstance(fields.get("target_modules"), list):
        fields["target_modules"] = in_order(fields["target_modules"])
    return fields


def in_order(modules: list[Any]) -> list[Any]:
    """Projections in the order of PROJECTIONS, without doubles; unknown ones stay for the refusal."""
    unknown = [module for module in modules if module not in PROJECTIONS]
    return [module for module in PROJECTIONS if module in modules] + unknown


def _feature_fields(section: Any, whisper: Fields) -> Fields:
    extractors = Rules(frozenset(("whisper", "wavlm"))).pick(section, "feature_extractors")
    of_whisper = WHISPER_FEATURES.pick(extractors.get("whisper", {}), "feature_extractors.whisper")
    num_mel_bins = whisper.get("num_mel_bins", 80)
    if of_whisper.get("feature_size", num_mel_bins) != num_mel_bins:
        raise ConfigError(
            f"feature_extractors.whisper.feature_size: not whisper.num_mel_bins, {num_mel_bins}"
        )
    fields = {"window_seconds": of_whisper.get("chunk_length", DEFAULT_WINDOW_SECONDS)}
    if "wavlm" in extractors:
        of_wavlm = WAVLM_FEATURES.pick(extractors["wavlm"], "feature_extractors.wavlm")
        # Wav2Vec2FeatureExtractor normalises where nothing is said
        fields["wavlm_do_normalize"] = of_wavlm.get("do_normalize", True)
    return fields
