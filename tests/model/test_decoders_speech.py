"""The speech model that vLLM serves: its sizes are ours, and its prompt holds the audio."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from benchmarks.concurrency import endless_model
from benchmarks.decoders.speech import token_ids
from benchmarks.decoders.speech_model import AUDIO_TOKENS, write_qwen2_audio
from model.config import SpeechLLMConfig


def test_the_other_speech_model_has_our_sizes_and_an_audio_token(tmp_path: Path) -> None:
    ours = SpeechLLMConfig.load(endless_model(tmp_path / "model"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_qwen2_audio(tmp_path / "model", folder)
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.text_config.hidden_size == ours.llama.hidden_size
    assert config.text_config.num_hidden_layers == ours.llama.num_hidden_layers
    assert config.audio_config.d_model == ours.whisper.d_model
    assert config.text_config.vocab_size == len(tokenizer) == ours.llama.vocab_size + len(AUDIO_TOKENS)
    content = [{"type": "audio"}, {"type": "text", "text": "What is said?"}]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    ids = tokenizer(prompt).input_ids
    assert ids.count(config.audio_token_index) == 1
    assert prompt.endswith("<|audio_eos|> What is said? [/INST]")


def test_token_ids_are_read_from_the_stream() -> None:
    assert token_ids('data: {"choices": [{"delta": {"content": "a"}, "token_ids": [5, 6]}]}') == (5, 6)
    assert token_ids('data: {"choices": [{"delta": {"role": "assistant"}, "token_ids": null}]}') == ()
    assert token_ids('data: {"choices": [], "usage": {"completion_tokens": 2}}') == ()
    assert token_ids("data: [DONE]") == token_ids("") == token_ids(": keep-alive") == ()
