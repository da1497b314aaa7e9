"""A Qwen2-Audio of our model's sizes, without weights: vLLM makes random ones (`--load-format dummy`).

Whisper's encoder and the language model are as large as ours. There is no WavLM in it, so it computes less.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, Qwen2AudioConfig, WhisperFeatureExtractor

from model.checkpoint_format import TOKENIZER_FILE
from model.config import SpeechLLMConfig
from model.prompt import SYSTEM

SPEECH_FOLDER = "qwen2-audio"
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
TEMPLATE = (
    "[INST]<<SYS>>\n" + SYSTEM + "\n<</SYS>>\n\n"
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %} {{ part['text'] }}"
    "{% else %}<|audio_bos|><|AUDIO|><|audio_eos|>{% endif %}"
    "{% endfor %}{% endfor %} [/INST]"
)
"""Our own prompt around their audio."""


def write_qwen2_audio(directory: Path, folder: Path) -> None:
    """config.json, tokenizer, feature extractor and chat template."""
    config = SpeechLLMConfig.load(directory)
    tokenizer = LlamaTokenizer.from_pretrained(str(directory / TOKENIZER_FILE).removesuffix(TOKENIZER_FILE))
    tokenizer.add_special_tokens({"additional_special_tokens": list(AUDIO_TOKENS)})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    audio = _config(config, tokenizer.convert_tokens_to_ids(AUDIO_TOKENS[0]), len(tokenizer))
    audio.save_pretrained(folder)
    extractor: Any = WhisperFeatureExtractor  # untyped
    extractor(feature_size=config.whisper.num_mel_bins).save_pretrained(folder)
    processor = {"processor_class": "Qwen2AudioProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def _config(config: SpeechLLMConfig, audio_token: int, vocab_size: int) -> Qwen2AudioConfig:
    whisper, llama = config.whisper, config.llama
    audio = {
        "model_type": "qwen2_audio_encoder",
        "d_model": whisper.d_model,
        "encoder_layers": whisper.encoder_layers,
        "encoder_attention_heads": whisper.encoder_attention_heads,
        "encoder_ffn_dim": whisper.encoder_ffn_dim,
        "num_mel_bins": whisper.num_mel_bins,
        "max_source_positions": whisper.max_source_positions,
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": llama.hidden_size,
        "num_hidden_layers": llama.num_hidden_layers,
        "num_attention_heads": llama.num_attention_heads,
        "num_key_value_heads": llama.num_attention_heads,
        "intermediate_size": llama.intermediate_size,
        "max_position_embeddings": llama.max_position_embeddings,
        "vocab_size": vocab_size,
    }
    made = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=audio_token)
    made.architectures = ["Qwen2AudioForConditionalGeneration"]
    made.dtype = "float32"
    return made
