"""Transcriptions, translations and models, asked with the real openai package over a real socket."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from error_tree import all_errors
from fakes import FakeDecoder, FakeEngine, eventually, make_service, wav_clip
from http_harness import check_law, client_of, counted, error_of, events_of, live_server, post_head
from openai_harness import CLIP, MODEL, openai_client

from server.errors import EngineError
from server.http_errors import status_of
from server.openai_schemas import TRANSCRIBE, TRANSLATE
from server.reply_schemas import (
    ErrorReply,
    ModelEntry,
    ModelList,
    TranscriptBody,
    TranscriptTextDelta,
    TranscriptTextDone,
)
from server.types import ModelInfo

# OpenAI has deprecated its own translations; other servers' users still ask for them.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

TEXT = "Hello, wörld!"
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
ROUTES = (TRANSCRIPTIONS, TRANSLATIONS)
USAGE = {
    "type": "tokens",
    "input_tokens": 18,
    "output_tokens": 4,
    "total_tokens": 22,
    "input_token_details": {"audio_tokens": 7, "text_tokens": 11},
}


def merged_engine(prompt: str) -> FakeEngine:
    """Merged for one instruction."""
    return FakeEngine(model=ModelInfo(MODEL, 2048, 60.0, 512, 1000, "float32", "cpu", merged_prompt=prompt))


def form(**fields: object) -> dict[str, object]:
    """A multipart request's arguments."""
    return {"files": {"file": ("clip.wav", CLIP)}, "data": fields}


async def test_a_transcription():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, server):
        reply = await client.audio.transcriptions.create(file=("clip.wav", CLIP), model=MODEL, language="en")
        assert counted(server.service)["request_success{stop}"] == 1
    assert (reply.text, reply.finish_reason) == (TEXT, "stop")
    assert reply.usage.model_dump() == USAGE
    (request,) = engine.requests
    assert (
        request.prompt
        == "Based on the attached audio, generate a comprehensive text transcription of the spoken content."
    )
    assert request.waveform is not None
    assert request.sampling.max_tokens == 512, "the longest that there is: a transcript is not to be cut"


async def test_a_translation_is_german():
    engine = FakeEngine()
    async with openai_client(make_service(engine)) as (client, _):
        plain = await client.audio.translations.create(file=CLIP, model=MODEL)
        asked = await client.audio.translations.create(
            file=CLIP, model=MODEL, extra_body={"to_language": "de", "language": "en"}
        )
    assert (plain.text, asked.text) == (TEXT, TEXT)
    assert [request.prompt for request in engine.requests] == ["Translate the audio clip into German."] * 2


async def test_every_field_reaches_the_engine():
    engine = FakeEngine()
    extra = {"top_p": 0.9, "top_k": 5, "seed": -7, "max_completion_tokens": 3, "timeout_s": 9.5}
    async with openai_client(make_service(engine)) as (client, _):
        one = await client.audio.transcriptions.create(
            file=CLIP, model=MODEL, temperature=0.5, extra_body=extra
        )
        two = await client.audio.translations.create(
            file=CLIP, model=MODEL, temperature=0.5, extra_body=extra
        )
    assert (one.finish_reason, two.finish_reason) == ("length", "length")
    for request in engine.requests:
        sampling = request.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.9)
        assert (sampling.top_k, sampling.seed) == (5, -7)


async def test_bare_text():
    async with openai_client() as (client, server):
        for tasks in (client.audio.transcriptions, client.audio.translations):
            assert await tasks.create(file=CLIP, model=MODEL, response_format="text") == TEXT
            raw = await tasks.with_raw_response.create(
                file=CLIP,
                model=MODEL,
                response_format="text",
                extra_body={"max_completion_tokens": 2},
            )
            assert raw.headers["content-type"] == "text/plain; charset=utf-8"
            assert raw.headers["x-finish-reason"] == "length", "a cut is never silent"
        assert counted(server.service)["requests_accepted"] == 4


@pytest.mark.parametrize("response_format", ["json", "text"])
async def test_a_stream(response_format):
    service = make_service(FakeEngine(pieces=("One", "", " thrée 😀", "\r\n", "end")))
    async with openai_client(service) as (client, _):
        stream = await client.audio.transcriptions.create(
            file=CLIP, model=MODEL, stream=True, response_format=response_format
        )
        *deltas, done = [event async for event in stream]
    assert [delta.type for delta in deltas] == ["transcript.text.delta"] * 4
    assert [delta.delta for delta in deltas] == ["One", " thrée 😀", "\r\n", "end"]
    assert (done.type, done.text) == ("transcript.text.done", "One thrée 😀\r\nend")
    assert (done.usage.output_tokens, done.usage.input_token_details.audio_tokens) == (5, 7)
    assert done.finish_reason == "stop"


async def test_a_streamed_translation():
    async with client_of(make_service()) as client:
        response = await client.post(TRANSLATIONS, **form(stream="true"))
    first, *deltas, done, end = events_of(response.text)
    assert (first, end) == (None, "[DONE]")
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == TEXT


async def test_deltas_arrive_as_they_are_made():
    gates = {index: asyncio.Event() for index in range(4)}
    async with openai_client(make_service(FakeEngine(gates=gates))) as (client, _):
        stream = await client.audio.transcriptions.create(file=CLIP, model=MODEL, stream=True)
        for index, text in enumerate(("Hello", ", ", "wörld", "!")):
            gates[index].set()
            assert (await anext(stream)).delta == text
        assert (await anext(stream)).text == TEXT


async def test_an_error_in_the_middle_of_a_stream_is_raised():
    service = make_service(FakeEngine(error=EngineError("broken"), fail_after=1))
    async with openai_client(service) as (client, _):
        stream = await client.audio.transcriptions.create(file=CLIP, model=MODEL, stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            [event async for event in stream]


async def test_leaving_a_stream_frees_its_place():
    engine = FakeEngine(gates={1: asyncio.Event()})
    async with openai_client(make_service(engine)) as (client, server):
        stream = await client.audio.transcriptions.create(file=CLIP, model=MODEL, stream=True)
        await anext(stream)
        await stream.close()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert counted(server.service)["requests_cancelled{generating}"] == 1


REFUSED = [
    ({"response_format": "verbose_json"}, "response_format"),
    ({"response_format": "srt"}, "response_format"),
    ({"response_format": "vtt"}, "response_format"),
    ({"response_format": "diarized_json"}, "response_format"),
    ({"timestamp_granularities[]": ["segment"]}, "timestamp_granularities"),
    ({"timestamp_granularities[]": ["word", "segment"]}, "timestamp_granularities"),
    ({"language": "de"}, "language"),
    ({"prompt": "Names: Ada."}, "prompt"),
    ({"temperature": "3"}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"stream": "yes"}, "stream"),
    ({"max_completion_tokens": "513"}, "max_completion_tokens"),
    ({"seed": "x"}, "seed"),
    ({"surprise": "1"}, "surprise"),
]
REFUSED_TRANSCRIPTIONS = [
    ({"include[]": ["logprobs"]}, "include"),
    ({"to_language": "de"}, "to_language"),
    ({"languages[]": ["en", "fr"]}, "languages"),
    ({"keywords[]": ["Ada"]}, "keywords"),
    ({"chunking_strategy": '{"type": "server_vad"}'}, "chunking_strategy"),
    ({"known_speaker_names[]": ["Ada"]}, "known_speaker_names"),
]
REFUSED_TRANSLATIONS = [({"to_language": code}, "to_language") for code in ("en", "fr", "DE", "")]


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [(route, *case) for route in ROUTES for case in REFUSED]
    + [(TRANSCRIPTIONS, *case) for case in REFUSED_TRANSCRIPTIONS]
    + [(TRANSLATIONS, *case) for case in REFUSED_TRANSLATIONS],
)
async def test_what_cannot_be_honoured_is_a_400_that_names_it(route, fields, param):
    service = make_service(engine := FakeEngine())
    async with client_of(service) as client:
        response = await client.post(route, **form(**fields))
    assert (response.status_code, error_of(response)["param"]) == (400, param)
    assert not engine.requests
    check_law(service)


async def test_timestamps_are_refused_through_the_sdk():
    async with openai_client() as (client, _):
        for tasks in (client.audio.transcriptions, client.audio.translations):
            for name in ("verbose_json", "srt", "vtt"):
                with pytest.raises(openai.BadRequestError) as error:
                    await tasks.create(file=CLIP, model=MODEL, response_format=name)
                assert error.value.param == "response_format"
        with pytest.raises(openai.BadRequestError) as error:
            await client.audio.transcriptions.create(file=CLIP, model=MODEL, timestamp_granularities=["word"])
        assert error.value.param == "timestamp_granularities"


async def test_what_asks_for_nothing_is_taken():
    async with client_of(make_service(engine := FakeEngine())) as client:
        fields = {"prompt": "", "language": "en", "user": "me", "stream_include_usage": "true"}
        for route in ROUTES:
            assert (await client.post(route, **form(**fields))).status_code == 200
        auto = form(chunking_strategy="auto", model=MODEL, **{"languages[]": ["en"]})
        assert (await client.post(TRANSCRIPTIONS, **auto)).status_code == 200
    assert len(engine.requests) == 3


@pytest.mark.parametrize("route", ROUTES)
async def test_a_missing_file_is_a_400_of_the_audio(route):
    async with openai_client() as (client, _):
        with pytest.raises(openai.BadRequestError) as error:
            await client.post(
                route.removeprefix("/v1"),
                body={"model": MODEL},
                files=[],
                cast_to=object,
                options={"headers": {"content-type": "multipart/form-data"}},
            )
        assert (error.value.param, error.value.code) == ("audio", "invalid_audio")
    async with client_of(make_service()) as client:
        for files in ({"other": CLIP}, {"file": b""}):
            response = await client.post(route, files=files, data={"model": MODEL})
            wanted = "other" if "other" in files else "audio"
            assert (response.status_code, error_of(response)["param"]) == (400, wanted)
        response = await client.post(route, json={"file": "x"})
        assert (response.status_code, error_of(response)["code"]) == (400, "invalid_request")


async def test_clips_that_are_refused():
    async with openai_client(make_service(max_audio_seconds=2)) as (client, _):
        for clip, kind, status in (
            (wav_clip(2.5), openai.BadRequestError, 400),
            (wav_clip(0.05), openai.BadRequestError, 400),
            (b"RIFF", openai.BadRequestError, 400),
            (b"%PDF-1.7", openai.APIStatusError, 415),
            (bytes(25 * 2**20 + 1), openai.APIStatusError, 413),
        ):
            for tasks in (client.audio.transcriptions, client.audio.translations):
                with pytest.raises(kind) as error:
                    await tasks.create(file=clip, model=MODEL)
                assert (error.value.status_code, error.value.param) == (status, "audio")


async def test_keys_models_and_rates():
    service = make_service(api_key=("alpha",), rate_limit=1.0)
    async with openai_client(service, api_key="beta") as (client, _):
        for call in (
            client.audio.transcriptions.create(file=CLIP, model=MODEL),
            client.models.list(),
            client.models.retrieve(MODEL),
        ):
            with pytest.raises(openai.AuthenticationError):
                await call
        right = client.with_options(api_key="alpha")
        with pytest.raises(openai.NotFoundError) as error:
            await right.audio.transcriptions.create(file=CLIP, model="whisper-1")
        assert error.value.param == "model"
        with pytest.raises(openai.RateLimitError):
            await right.audio.translations.create(file=CLIP, model=MODEL)
        patient = right.with_options(max_retries=1)
        assert (await patient.audio.translations.create(file=CLIP, model=MODEL)).text == TEXT


@pytest.mark.parametrize("route", [*ROUTES, "/v1/chat/completions"])
async def test_the_slot_is_taken_before_the_body_is_read(route):
    """And given back when the client leaves."""
    async with live_server(make_service(max_queued_requests=1)) as server:
        kind = "application/json" if "chat" in route else "multipart/form-data; boundary=B"
        first = await server.connect()
        await first.send(post_head(1000, path=route, kind=kind))
        await eventually(lambda: server.service.ledger.num_open == 1)
        assert server.service.ledger.num_bytes == 1000
        second = await server.connect()
        await second.send(post_head(10_000_000, "expect: 100-continue", path=route))
        status, headers = await second.head()
        assert (status, headers["retry-after"]) == (503, "1")
        first.vanish()
        await eventually(lambda: server.service.ledger.num_open == 0)


async def test_a_bad_clip_gives_its_place_back_and_counts_once():
    service = make_service(decoder=FakeDecoder())
    async with client_of(service) as client:
        for route in ROUTES:
            assert (await client.post(route, files={"file": b"%PDF"})).status_code == 415
    assert counted(service) == {"requests_accepted": 2, "requests_failed{unsupported_audio}": 2}


async def test_models():
    async with openai_client() as (client, _):
        (listed,) = (await client.models.list()).data
        assert (listed.id, listed.object, listed.owned_by) == (MODEL, "model", "wavllm")
        assert listed.created > 1_700_000_000
        assert await client.models.retrieve(MODEL) == listed
        assert {"chat", "transcription", "translation"} < set(listed.capabilities)
        with pytest.raises(openai.NotFoundError) as error:
            await client.models.retrieve("whisper-1")
        assert (error.value.param, error.value.code) == ("model", "model_not_found")


async def test_a_models_name_may_hold_slashes():
    engine = FakeEngine(model=ModelInfo("org/name", 2048, 60.0, 512, 1000, "float32", "cpu"))
    async with openai_client(make_service(engine)) as (client, _):
        assert (await client.models.retrieve("org/name")).id == "org/name"


async def test_a_merged_model_serves_the_one_task_it_is_merged_for():
    async with openai_client(make_service(merged_engine(TRANSCRIBE))) as (client, _):
        assert (await client.audio.transcriptions.create(file=CLIP, model=MODEL)).text == TEXT
        with pytest.raises(openai.BadRequestError, match="one instruction") as error:
            await client.audio.translations.create(file=CLIP, model=MODEL)
        assert error.value.param == "model"
        (model,) = (await client.models.list()).data
        assert model.capabilities == ["speech_chat", "transcription"]
    async with client_of(make_service(merged_engine(TRANSLATE["de"]))) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert model["capabilities"] == ["speech_chat", "translation"]


async def test_replies_are_as_the_document_says():
    async with client_of(make_service()) as client:
        TranscriptBody.model_validate((await client.post(TRANSCRIPTIONS, **form())).json())
        _, *deltas, done, _ = events_of((await client.post(TRANSCRIPTIONS, **form(stream="true"))).text)
        assert len([TranscriptTextDelta.model_validate(delta) for delta in deltas]) == 4
        TranscriptTextDone.model_validate(done)
        ErrorReply.model_validate((await client.post(TRANSCRIPTIONS)).json())
        ModelList.model_validate((await client.get("/v1/models")).json())
        ModelEntry.model_validate((await client.get(f"/v1/models/{MODEL}")).json())


DOCUMENTED = {status_of(cls("what")) for cls in all_errors()} - {499}
"""All that the error tree can become, but for what only the log tells."""


async def test_the_document_has_every_body_reply_and_error():
    async with client_of(make_service()) as client:
        response = await client.get("/openapi.json")
    spec = response.json()
    schemas = spec["components"]["schemas"]
    named = set(_references(spec))
    error = {"$ref": "#/components/schemas/ErrorReply"}
    assert named <= set(schemas), "every reference leads somewhere"
    assert "HTTPValidationError" not in schemas, "nothing answers with FastAPI's own 422"
    for path in ("/v1/speech/chat", "/v1/chat/completions", *ROUTES):
        route = spec["paths"][path]["post"]
        assert set(route["responses"]) == {"200", *map(str, DOCUMENTED)}
        for status, reply in route["responses"].items():
            assert reply["headers"]["x-request-id"]["required"]
            assert ("retry-after" in reply["headers"]) == (status in ("429", "503"))
            assert status == "200" or reply["content"] == {"application/json": {"schema": error}}
        assert set(route["responses"]["200"]["content"]) >= {"application/json", "text/event-stream"}
        assert route["requestBody"]["required"]
        assert route["security"] == [{"key": []}, {}]
    for path in ROUTES:
        (form_body,) = spec["paths"][path]["post"]["requestBody"]["content"].values()
        assert {"file", "model", "response_format", "stream", "temperature"} <= set(
            form_body["schema"]["properties"]
        )
        assert "`timestamp_granularities` (left out)" in spec["paths"][path]["post"]["description"]
    assert schemas["ChatCompletionBody"]["required"] == ["messages"]
    assert "ErrorReply" in named
    assert "`logprobs` (False)" in spec["paths"]["/v1/chat/completions"]["post"]["description"]
    json.dumps(spec, allow_nan=False)


def _references(node: object) -> list[str]:
    """Names of all schemas that a document refers to."""
    if isinstance(node, list):
        return [name for item in node for name in _references(item)]
    if not isinstance(node, dict):
        return []
    here = [value.removeprefix("#/components/schemas/") for key, value in node.items() if key == "$ref"]
    return here + [name for value in node.values() for name in _references(value)]
