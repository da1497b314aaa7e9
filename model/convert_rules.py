"""What a section in the names of a Hugging Face configuration may hold.

A field is kept if our configuration has it, refused unless it has the one value that the code computes with
if it would change the mathematics, ignored if it cannot, and refused by name if nobody here knows it, unless
it is null: what is switched off changes nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.config import (
    SAMPLE_RATE,
    ConfigError,
    LlamaConfig,
    LoraConfig,
    PromptAdapterConfig,
    WavLMEncoderConfig,
    WhisperEncoderConfig,
)

Fields = dict[str, Any]

CHOSEN_BY_TRAINING = (
    r".*dropout|.*layerdrop|apply_spec_augment|mask_.*|init_std|initializer_range|init_lora_weights"
)
DESCRIPTIVE = (
    r"architectures|model_type|torch_dtype|dtype|transformers_version|_name_or_path|use_cache|return_dict"
    r"|output_hidden_states|output_attentions|is_encoder_decoder|id2label|label2id|problem_type|tokenizer_class"
    r"|chunk_size_feed_forward|processor_class|feature_extractor_type|pretraining_tp"
    r"|_?attn_implementation.*|_commit_hash|gradient_checkpointing|unsloth_.*"
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a section of Hugging Face names may hold besides the fields of our configuration.

    fixed: fields that must have this value. ignored: a pattern of fields that make no difference here.
    """

    known: frozenset[str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ignored: str = "$^"

    def pick(self, section: Any, place: str) -> Fields:
        """The fields that our configuration has. Raises ConfigError that names a field that is refused."""
        if not isinstance(section, dict):
            raise ConfigError(f"{place}: expected an object, got {type(section).__name__}")
        for name, value in section.items():
            if name in self.fixed and value != self.fixed[name]:
                raise ConfigError(f"{place}.{name}: {value!r} is not supported, only {self.fixed[name]!r}")
            if value is not None and not self._is_understood(name):
                raise ConfigError(f"{place}.{name}: unknown field")
        kept = {name: value for name, value in section.items() if name in self.known}
        _check_sizes(kept, place)
        return kept

    def _is_understood(self, name: str) -> bool:
        if name in self.known or name in self.fixed:
            return True
        return re.fullmatch(f"{CHOSEN_BY_TRAINING}|{DESCRIPTIVE}|{self.ignored}", name) is not None


def _check_sizes(section: Fields, place: str) -> None:
    for name, value in section.items():
        numbers = value if isinstance(value, list) else [value]
        is_size = not name.endswith("_id") and not name.endswith("_ids")
        if is_size and any(type(number) is int and number <= 0 for number in numbers):
            raise ConfigError(f"{place}.{name}: {value!r} is not positive")


def _names(config: type) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(config))


WHISPER = Rules(
    _names(WhisperEncoderConfig),
    fixed={"activation_function": "gelu", "scale_embedding": False},
    ignored=(
        r"decoder_.*|vocab_size|(bos|eos|pad)_token_id|max_target_positions|max_length|num_hidden_layers"
        r"|suppress_tokens|begin_suppress_tokens|forced_decoder_ids|use_weighted_layer_sum|tie_word_embeddings"
        r"|classifier_proj_size|median_filter_width"
    ),
)
WAVLM = Rules(
    _names(WavLMEncoderConfig),
    fixed={"hidden_act": "gelu", "add_adapter": False},
    ignored=(
        r"vocab_size|(bos|eos|pad)_token_id|ctc_.*|tdnn_.*|xvector_output_dim|.*codevector.*|num_negatives"
        r"|contrastive_logits_temperature|diversity_loss_weight|num_ctc_classes|use_weighted_layer_sum"
        r"|classifier_proj_size|adapter_(kernel_size|stride)|num_adapter_layers|output_hidden_size"
        r"|num_feat_extract_layers|freeze_feat_extract_train|no_mask_.*|replace_prob"
    ),
)
LLAMA = Rules(
    _names(LlamaConfig),
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0},
    ignored="pad_token_id|max_length|max_sequence_length",
)
LORA = Rules(
    _names(LoraConfig),
    fixed={"bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False},
    ignored="peft_type|task_type|inference_mode|base_model_name_or_path",
)
PROMPT_ADAPTER = Rules(_names(PromptAdapterConfig))
WHISPER_FEATURES = Rules(
    frozenset(("chunk_length", "feature_size")),
    fixed={
        "sampling_rate": SAMPLE_RATE,
        "hop_length": 160,
        "n_fft": 400,
        "padding_value": 0.0,
        "padding_side": "right",
        "dither": 0.0,
    },
    ignored="return_attention_mask|n_samples|nb_max_frames|mel_filters",
)
WAVLM_FEATURES = Rules(
    frozenset(("do_normalize",)),
    fixed={"feature_size": 1, "sampling_rate": SAMPLE_RATE, "padding_value": 0.0, "padding_side": "right"},
    ignored="return_attention_mask",
)
