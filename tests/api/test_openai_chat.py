"""POST /v1/chat/completions, asked with the real openai package over a real socket."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest
from fakes import FakeDecoder, FakeEngine, eventually, make_service
from http_harness import client_of, counted, error_of, events_of, json_body
from openai_harness import CLIP, MODEL, audio_part, openai_client, text_part, user

from server.errors import ContextLengthExceeded, DeadlineExceeded, EngineError, InvalidAudio
from server.reply_schemas import ChatCompletion, ChatCompletionChunk, ErrorReply

ROUTE = "/v1/chat/completions"
TEXT = "Hello, wörld!"


async def test_a_question_about_a_clip():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, server):
        reply = await client.chat.completions.create(model=MODEL, messages=[user()])
        assert counted(server.service)["request_success{stop}"] == 1
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert (reply.object, reply.model) == ("chat.completion", MODEL)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (18, 4, 22)
    assert reply.usage.prompt_tokens_details.audio_tokens == 7
    (request,) = engine.requests
    assert (request.prompt, request.system, request.sampling.temperature) == ("What is said?", None, 0.0)
    assert request.waveform is not None


async def test_the_same_question_is_the_same_request_as_on_the_speech_route():
    engine = FakeEngine()
    async with client_of(make_service(engine)) as client:
        await client.post("/v1/speech/chat", json=json_body(system="Be brief."))
        messages = [{"role": "system", "content": "Be brief."}, user()]
        await client.post(ROUTE, json={"messages": messages})
    first, second = engine.requests
    assert first.audio_key == second.audio_key
    assert (first.prompt, first.system, first.sampling) == (second.prompt, second.system, second.sampling)


async def test_every_field_reaches_the_engine():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, _):
        reply = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "developer", "content": [text_part("Be"), text_part("brief.")]}, user()],
            max_completion_tokens=3,
            temperature=0.5,
            top_p=0.9,
            seed=-7,
            stop=["a", "b"],
            n=1,
            extra_body={"top_k": 5, "return_token_ids": True, "timeout_s": 9.5},
        )
        await client.chat.completions.create(model=MODEL, messages=[user()], max_tokens=2, stop="x")
    first, second = engine.requests
    assert (reply.choices[0].finish_reason, reply.choices[0].token_ids) == ("length", [100, 101, 102])
    sampling = first.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.9)
    assert (sampling.top_k, sampling.seed, sampling.stop) == (5, -7, ("a", "b"))
    assert first.system == "Be\nbrief."
    assert first.deadline - time.monotonic() < 9.5
    assert (second.sampling.max_tokens, second.sampling.stop) == (2, ("x",))


async def test_text_alone_asks_the_language_model():
    engine, decoder = FakeEngine(), FakeDecoder()
    async with openai_client(make_service(engine, decoder)) as (client, server):
        decoded = decoder.num_decoded
        reply = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": " Hi \n"}]
        )
        assert counted(server.service)["request_success{stop}"] == 1
    assert reply.choices[0].message.content == TEXT
    assert reply.usage.prompt_tokens_details.audio_tokens == 0
    (request,) = engine.requests
    assert (request.prompt, request.waveform, request.audio_key) == (" Hi \n", None, b"")
    assert decoder.num_decoded == decoded, "nothing to decode"


async def test_text_parts_are_joined_wherever_the_clip_stands():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, _):
        for parts in (
            (text_part("a "), text_part("b")),
            (audio_part(), text_part("a "), text_part("b")),
            (text_part("a "), audio_part(), text_part("b")),
            (audio_part(),),
        ):
            await client.chat.completions.create(model=MODEL, messages=[user(*parts)])
    assert [request.prompt for request in engine.requests] == ["a \nb", "a \nb", "a \nb", ""]
    assert [request.waveform is None for request in engine.requests] == [True, False, False, False]


async def test_a_stream():
    async with openai_client() as (client, _):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[user()], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *answer, usage = chunks
    assert [chunk.choices[0].delta.content for chunk in answer] == ["", "Hello", ", ", "wörld", "!", None]
    assert answer[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in answer] == [None] * 5 + ["stop"]
    assert (usage.choices, usage.usage.total_tokens) == ([], 22)


@pytest.mark.parametrize("options", [None, {"include_usage": False}, {"include_obfuscation": True}])
async def test_a_stream_has_no_usage_unless_asked_for(options):
    async with openai_client() as (client, _):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[user()], stream=True, stream_options=options
        )
        assert [chunk.usage async for chunk in stream] == [None] * 6


async def test_an_error_in_the_middle_of_a_stream_is_raised():
    service = make_service(FakeEngine(error=EngineError("broken"), fail_after=1))
    async with openai_client(service) as (client, _):
        stream = await client.chat.completions.create(model=MODEL, messages=[user()], stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            [chunk async for chunk in stream]
        assert counted(service)["requests_failed{engine_error}"] == 1


async def test_leaving_a_stream_frees_its_place():
    engine = FakeEngine(gates={2: asyncio.Event()})
    async with openai_client(make_service(engine)) as (client, server):
        stream = await client.chat.completions.create(model=MODEL, messages=[user()], stream=True)
        assert (await anext(stream)).choices[0].delta.role == "assistant"
        await stream.close()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert len(engine.aborted) == 1
        assert counted(server.service)["requests_cancelled{generating}"] == 1


BAD_MESSAGES = [
    [],
    [{"role": "system", "content": "Be brief."}],
    [{"role": "assistant", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}, user()],
    [{"role": "user", "content": "Hi"}, user()],
    [{"role": "assistant", "content": None, "tool_calls": []}, user()],
    [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, user()],
    [user(), {"role": "system", "content": "a"}],
    [{"role": "system", "content": [audio_part()]}, user()],
    [{"role": "nobody", "content": "x"}],
    [{"role": "user"}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": "x" * 4001}],
    [{"role": "system", "content": "x" * 4001}, user()],
    [{"role": "user", "content": "x", "surprise": 1}],
    [user(audio_part(), audio_part())],
    [user({"type": "image_url", "image_url": {"url": "http://x"}})],
    [user({"type": "input_audio"})],
    [user({"type": "input_audio", "input_audio": {"data": 5, "format": "wav"}})],
    [user({"type": "text"})],
    [user({"type": "x" * 100_000})],
    ["Hi"],
]


async def test_messages_that_are_not_one_question_are_a_400():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, _):
        for index, messages in enumerate(BAD_MESSAGES):
            with pytest.raises(openai.BadRequestError) as error:
                await client.chat.completions.create(model=MODEL, messages=messages)
            refusal = (error.value.param, error.value.type)
            assert refusal == ("messages", "invalid_request_error"), index
            assert len(error.value.body["message"]) < 400
    assert not engine.requests


REFUSED = [
    ({"n": 2}, "n"),
    ({"n": True}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": -1}, "presence_penalty"),
    ({"logit_bias": {"5": 10}}, "logit_bias"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"moderation": {}}, "moderation"),
    ({"surprise": 1}, "surprise"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": 2**63}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_tokens": 513}, "max_tokens"),
    ({"max_completion_tokens": 513}, "max_completion_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 3, "max_tokens": 4}, "max_tokens"),
    ({"timeout_s": -1}, "timeout_s"),
]


async def test_what_cannot_be_honoured_is_a_400_that_names_it():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, _):
        for fields, param in REFUSED:
            with pytest.raises(openai.BadRequestError) as error:
                await client.chat.completions.create(model=MODEL, messages=[user()], extra_body=fields)
            assert (error.value.param, error.value.code) == (param, "invalid_request"), fields
    assert not engine.requests


async def test_the_message_calls_the_field_what_the_client_called_it():
    async with openai_client(make_service(max_prompt_chars=20)) as (client, _):
        for fields, param, message in (
            ({"max_completion_tokens": 513}, "max_completion_tokens", "must be from 1 to 512"),
            ({"max_tokens": 513}, "max_tokens", "must be from 1 to 512"),
            ({"messages": [user(text_part("x" * 21))]}, "messages", "has 21 characters"),
            ({"messages": [{"role": "system", "content": "x" * 21}, user()]}, "messages", "has 21"),
            ({"stop": ["x" * 21]}, "stop", "has 21 characters"),
        ):
            with pytest.raises(openai.BadRequestError) as error:
                await client.chat.completions.create(**{"model": MODEL, "messages": [user()], **fields})
            assert error.value.param == param
            assert error.value.body["message"].startswith(f"{param} {message}")


async def test_a_reply_that_is_sent_back_is_told_about_turns():
    async with openai_client(make_service()) as (client, _):
        reply = (await client.chat.completions.create(model=MODEL, messages=[user()])).choices[0].message
        with pytest.raises(openai.BadRequestError, match="no earlier turns"):
            await client.chat.completions.create(model=MODEL, messages=[user(), reply, user()])


async def test_what_asks_for_nothing_or_changes_nothing_is_taken():
    engine = FakeEngine()
    neutral = {
        "n": 1,
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "logprobs": False,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "tools": [],
        "tool_choice": "auto",
        "audio": None,
        "temperature": None,
        "max_tokens": None,
        "stop": None,
        "stream": None,
        "seed": None,
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
    }
    async with openai_client(make_service(engine)) as (client, _):
        await client.chat.completions.create(model=MODEL, messages=[user()])
        await client.chat.completions.create(model=MODEL, messages=[user()], extra_body=neutral)
        same = {"max_tokens": 3, "max_completion_tokens": 3}
        await client.chat.completions.create(model=MODEL, messages=[user()], extra_body=same)
    plain, full, limited = engine.requests
    assert plain.sampling == full.sampling
    assert limited.sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("clip", "kind", "status"),
    [
        (b"", openai.BadRequestError, 400),
        (b"RIFF", openai.BadRequestError, 400),
        (b"%PDF-1.7", openai.APIStatusError, 415),
        (bytes(25 * 2**20 + 1), openai.APIStatusError, 413),
    ],
)
async def test_clips_that_are_refused(clip, kind, status):
    async with openai_client() as (client, _):
        with pytest.raises(kind) as error:
            await client.chat.completions.create(model=MODEL, messages=[user(audio_part(clip))])
    assert (error.value.status_code, error.value.param) == (status, "audio")


async def test_bad_base64_names_the_field_as_openai_does():
    part = {"type": "input_audio", "input_audio": {"data": "not base64!", "format": "wav"}}
    async with openai_client() as (client, _):
        with pytest.raises(openai.BadRequestError, match=r"input_audio\.data") as error:
            await client.chat.completions.create(model=MODEL, messages=[user(part)])
    assert error.value.param == "audio"


async def test_other_bodies_are_a_400():
    async with client_of(make_service()) as client:
        response = await client.post(ROUTE, files={"file": CLIP})
        assert (response.status_code, error_of(response)["code"]) == (400, "invalid_request")
        response = await client.post(ROUTE, json={})
        assert (response.status_code, error_of(response)["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("refusal", "kind", "param"),
    [
        (ContextLengthExceeded("no room", param="prompt"), openai.BadRequestError, "messages"),
        (InvalidAudio("too short"), openai.BadRequestError, "audio"),
        (EngineError("broken"), openai.InternalServerError, None),
        (DeadlineExceeded("late"), openai.InternalServerError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_the_engine_have_their_class(refusal, kind, param, stream):
    async with openai_client(make_service(FakeEngine(refuse=refusal))) as (client, _):
        with pytest.raises(kind) as error:
            await client.chat.completions.create(model=MODEL, messages=[user()], stream=stream)
    assert (error.value.code, error.value.param) == (refusal.code, param)


async def test_a_wrong_key():
    service = make_service(api_key=("alpha",))
    async with openai_client(service, api_key="beta") as (client, _):
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model=MODEL, messages=[user()])
        right = client.with_options(api_key="alpha")
        assert (await right.chat.completions.create(model=MODEL, messages=[user()])).choices
        assert counted(service)["requests_rejected{invalid_api_key}"] == 1


async def test_an_unknown_model():
    async with openai_client() as (client, _):
        with pytest.raises(openai.NotFoundError) as error:
            await client.chat.completions.create(model="gpt-4o-audio-preview", messages=[user()])
    assert (error.value.param, error.value.code) == ("model", "model_not_found")


async def test_over_the_rate_the_client_comes_back_when_told_to():
    async with openai_client(make_service(rate_limit=1.0)) as (client, server):
        await client.chat.completions.create(model=MODEL, messages=[user()])
        with pytest.raises(openai.RateLimitError) as error:
            await client.chat.completions.create(model=MODEL, messages=[user()])
        assert error.value.response.headers["retry-after"] == "1"
        start = time.monotonic()
        patient = client.with_options(max_retries=2)
        assert (await patient.chat.completions.create(model=MODEL, messages=[user()])).choices
        assert 0.9 < time.monotonic() - start < 3
        assert counted(server.service)["requests_rejected{rate_limited}"] == 2


async def test_a_full_queue_is_an_internal_server_error_that_is_retried():
    service = make_service(max_queued_requests=1)
    await service.start()
    held = service.reserve(num_bytes=1, api_key=None, transport="test")
    async with openai_client(service, start=False) as (client, _):
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model=MODEL, messages=[user()])
        assert (error.value.status_code, error.value.code) == (503, "overloaded")
        asyncio.get_running_loop().call_later(0.3, held.fail, ValueError())
        start = time.monotonic()
        patient = client.with_options(max_retries=1)
        assert (await patient.chat.completions.create(model=MODEL, messages=[user()])).choices
        assert time.monotonic() - start > 0.9, "Retry-After: 1"


async def test_a_closed_server_refuses():
    service = make_service()
    await service.start()
    service.close()
    async with openai_client(service, start=False) as (client, _):
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model=MODEL, messages=[user()])
        assert (error.value.status_code, error.value.code) == (503, "not_ready")


async def test_replies_are_as_the_document_says():
    async with client_of(make_service()) as client:
        body = {"messages": [user()], "return_token_ids": True}
        ChatCompletion.model_validate((await client.post(ROUTE, json=body)).json())
        text_alone = {"messages": [user(text_part(""))]}
        ChatCompletion.model_validate((await client.post(ROUTE, json=text_alone)).json())
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, _ = events_of((await client.post(ROUTE, json=body | options)).text)
        assert len([ChatCompletionChunk.model_validate(chunk) for chunk in chunks]) == 7
        ErrorReply.model_validate((await client.post(ROUTE, json={})).json())
