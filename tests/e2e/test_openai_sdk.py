"""The real openai package against the real server and the golden model: the published answers once more."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from e2e_client import CASES, SHORT, check_idle, clip_of, golden_ids, growth, metrics_of
from openai import OpenAI
from server_process import ServerProcess

from model.checkpoint import load_model
from server.openai_schemas import TRANSCRIBE, TRANSLATE
from server.types import SamplingParams
from tests.model.reference import answer_alone

QUESTION = "What is a kitchen?"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def served(client: OpenAI) -> str:
    """The model's name."""
    (model,) = client.models.list().data
    return model.id


def asked(prompt: str, clip: bytes) -> list[dict[str, object]]:
    data = base64.b64encode(clip).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, audio]}]


def test_chat_gives_the_published_answer(client: OpenAI, server: ServerProcess, served: str) -> None:
    messages = asked(SHORT["prompt"], clip_of(SHORT))
    arguments = {"model": served, "messages": messages, "max_tokens": 48}
    extra = {"return_token_ids": True}
    before = metrics_of(server)
    whole = client.chat.completions.create(**arguments, extra_body=extra)
    stream = client.chat.completions.create(**arguments, extra_body=extra, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert whole.choices[0].token_ids == golden_ids(SHORT)
    assert [token for delta in deltas for token in getattr(delta, "token_ids", ())] == golden_ids(SHORT)
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert growth(before, metrics_of(server))["requests_accepted_total"] == 2
    check_idle(server)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_transcription_and_translation_are_the_published_instructions(
    client: OpenAI, served: str, golden_model: Path
) -> None:
    _, tokenizer = load_model(golden_model, torch.device("cpu"), torch.float32)
    for task, instruction in (
        (client.audio.transcriptions, TRANSCRIBE),
        (client.audio.translations, TRANSLATE["de"]),
    ):
        (case,) = [case for case in CASES if case["prompt"] == instruction]
        reply = task.create(file=("clip.wav", clip_of(case)), model=served)
        assert reply.text == tokenizer.decode(golden_ids(case))
        assert reply.finish_reason == "stop"


def test_a_streamed_transcription(client: OpenAI, served: str) -> None:
    (case,) = [case for case in CASES if case["prompt"] == TRANSCRIBE]
    whole = client.audio.transcriptions.create(file=clip_of(case), model=served)
    stream = client.audio.transcriptions.create(file=clip_of(case), model=served, stream=True)
    *deltas, done = list(stream)
    assert "".join(delta.delta for delta in deltas) == done.text == whole.text
    assert done.usage.model_dump() == whole.usage.model_dump()


def test_text_alone_is_answered_by_the_language_model_without_the_lora(
    client: OpenAI, server: ServerProcess, served: str, golden_model: Path
) -> None:
    """Between questions about a clip with the same words, which must not lend it their keys and values."""
    model, tokenizer = load_model(golden_model, torch.device("cpu"), torch.float32)
    expected = answer_alone(model, tokenizer, None, QUESTION, SamplingParams(max_tokens=24)).ids
    extra = {"return_token_ids": True}
    clip = clip_of(SHORT)
    answers = []
    before = metrics_of(server)
    for messages in (
        [{"role": "user", "content": QUESTION}],
        asked(QUESTION, clip),
        [{"role": "user", "content": QUESTION}],
        asked(QUESTION, clip),
    ):
        reply = client.chat.completions.create(
            model=served, messages=messages, max_tokens=24, extra_body=extra
        )
        answers.append(reply.choices[0].token_ids)
    assert answers[0] == answers[2] == list(expected)
    assert answers[1] == answers[3] != answers[0]
    assert growth(before, metrics_of(server))["request_audio_duration_seconds_count"] == 2


def test_errors_have_their_class(client: OpenAI, served: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(file=clip_of(SHORT), model="whisper-1")
    with pytest.raises(openai.BadRequestError) as bad:
        client.audio.transcriptions.create(file=clip_of(SHORT), model=served, response_format="srt")
    assert bad.value.param == "response_format"
    with pytest.raises(openai.APIStatusError) as unknown:
        client.audio.transcriptions.create(file=b"%PDF-1.7 and so on", model=served)
    assert unknown.value.status_code == 415
