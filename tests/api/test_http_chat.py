"""POST /v1/speech/chat in process: replies, every refusal by field, the same errors on every route."""

from __future__ import annotations

import asyncio
import base64
import json
import logging

import pytest
from fakes import FakeEngine, make_service, wav_clip
from http_harness import CHAT, check_law, client_of, counted, error_of, json_body

from server.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    Overloaded,
)
from server.reply_schemas import LoadReply, ProbeReply
from server.types import ModelInfo

CLIP = wav_clip()
TEXT = "Hello, wörld!"


def form(**fields):
    """A multipart request's arguments."""
    return {"files": {"file": ("clip", CLIP)}, "data": {"prompt": "What is said?", **fields}}


async def test_json_and_form_get_the_same_answer():
    engine = FakeEngine()
    service = make_service(engine)
    async with client_of(service) as client:
        replies = [await client.post(CHAT, json=json_body()), await client.post(CHAT, **form())]
    for response in replies:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        reply = response.json()
        assert reply["object"] == "chat.completion"
        assert reply["id"].startswith("chatcmpl-")
        assert reply["model"] == "fake-wavllm"
        (choice,) = reply["choices"]
        assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
        assert (choice["index"], choice["finish_reason"]) == (0, "stop")
        assert "token_ids" not in choice
        assert reply["usage"] == {
            "prompt_tokens": 18,
            "completion_tokens": 4,
            "total_tokens": 22,
            "prompt_tokens_details": {"audio_tokens": 7, "cached_tokens": 0},
        }
        assert reply["audio"] == {"duration_s": 0.5, "sample_rate": 16000, "channels": 1}
        assert set(reply["timings"]) == {"queue_ms", "decode_ms", "encode_ms", "ttft_ms", "total_ms"}
    first, second = engine.requests
    assert (first.prompt, first.sampling) == (second.prompt, second.sampling)
    assert first.audio_key == second.audio_key


async def test_every_field_reaches_the_engine_from_json_and_form():
    engine = FakeEngine()
    fields = {
        "system": "Be brief.",
        "model": "fake-wavllm",
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "seed": -7,
        "stop": ["a", "b"],
        "return_token_ids": True,
        "timeout_s": 9.5,
        "stream": False,
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    async with client_of(make_service(engine)) as client:
        replies = [
            await client.post(CHAT, json=json_body(**fields)),
            await client.post(CHAT, **form(**texts)),
        ]
    for response, request in zip(replies, engine.requests, strict=True):
        choice = response.json()["choices"][0]
        assert (choice["finish_reason"], choice["token_ids"]) == ("length", [100, 101, 102])
        sampling = request.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.9)
        assert (sampling.top_k, sampling.seed, sampling.stop) == (5, -7, ("a", "b"))
        assert request.system == "Be brief."
    assert len(engine.requests) == 2


async def test_a_whole_number_may_be_written_as_a_float():
    """To JSON Schema, and so to the document, it is an integer."""
    engine = FakeEngine()
    async with client_of(make_service(engine)) as client:
        response = await client.post(CHAT, json=json_body(max_tokens=3.0, top_k=5.0, seed=-7.0))
    assert response.status_code == 200
    (request,) = engine.requests
    assert (request.sampling.max_tokens, request.sampling.top_k, request.sampling.seed) == (3, 5, -7)


@pytest.mark.parametrize("prompt", ["", "  spaced \n", "ünï😀", "line\nbreak\t", "\u2028"])
async def test_the_prompt_is_never_changed(prompt):
    engine = FakeEngine()
    async with client_of(make_service(engine)) as client:
        assert (await client.post(CHAT, json=json_body(prompt=prompt))).status_code == 200
        assert (await client.post(CHAT, **form(prompt=prompt))).status_code == 200
    assert [request.prompt for request in engine.requests] == [prompt, prompt]


async def test_stop_in_a_form_is_a_text_a_list_or_repeated():
    engine = FakeEngine()
    async with client_of(make_service(engine)) as client:
        for value in ("[", "plain", '["a", "b"]'):
            await client.post(CHAT, **form(stop=value))
        await client.post(CHAT, files={"file": CLIP}, data={"prompt": "x", "stop[]": ["a", "b"]})
    assert [request.sampling.stop for request in engine.requests] == [
        ("[",),
        ("plain",),
        ("a", "b"),
        ("a", "b"),
    ]


BAD_JSON = [
    ({"audio": ...}, "audio"),
    ({"audio": None}, "audio"),
    ({"audio": {}}, "audio"),
    ({"audio": {"data": 7}}, "audio"),
    ({"audio": {"data": "AAAA", "format": "wav"}}, "audio.format"),
    ({"audio": {"data": "not base64!"}}, "audio"),
    ({"audio": {"data": "QUJD\n"}}, "audio"),
    ({"audio": {"data": "QUI"}}, "audio"),
    ({"audio": {"data": "QUI=="}}, "audio"),
    ({"audio": {"data": "QUJ-"}}, "audio"),
    ({"audio": {"data": "ÄÄÄÄ"}}, "audio"),
    ({"audio": {"data": ""}}, "audio"),
    ({"prompt": ...}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "x" * 4001}, "prompt"),
    ({"prompt": "x" * 300_000}, "prompt"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 5.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 513}, "max_tokens"),
    ({"temperature": "0"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": None}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 10**30}, "top_k"),
    ({"seed": 2**63}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a", 5]}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"timeout_s": -1}, "timeout_s"),
    ({"stream_options": {"include_usage": "y"}}, "stream_options.include_usage"),
    ({"stream_options": {"surprise": 1}}, "stream_options.surprise"),
    ({"n": 2}, "n"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_JSON)
async def test_a_bad_json_field_is_a_400_that_names_it(fields, param):
    service = make_service()
    async with client_of(service) as client:
        response = await client.post(CHAT, json=json_body(**fields))
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    check_law(service)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b'{"prompt": "a", "prompt": "b"}',
        b"[" * 100_000,
        b'{"seed": ' + b"9" * 10_000 + b"}",
    ],
)
async def test_what_is_not_a_json_object_is_a_400(content):
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_request"


async def test_lone_surrogates_in_json_are_a_400():
    body = json.dumps(json_body()).replace("What is said?", "\\ud83d")
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


BAD_FORM = [
    ({"prompt": "x" * 4001}, "prompt"),
    ({"prompt": "x" * 300_000}, "prompt"),
    ({"system": "x" * 300_000}, "system"),
    ({"stream": "yes"}, "stream"),
    ({"stream": "TRUE"}, "stream"),
    ({"stream": "1"}, "stream"),
    ({"max_tokens": "ten"}, "max_tokens"),
    ({"max_tokens": ""}, "max_tokens"),
    ({"max_tokens": "1.5"}, "max_tokens"),
    ({"max_tokens": "513"}, "max_tokens"),
    ({"temperature": "NaN"}, "temperature"),
    ({"temperature": "nan"}, "temperature"),
    ({"temperature": "inf"}, "temperature"),
    ({"temperature": "1e999"}, "temperature"),
    ({"top_k": "-1"}, "top_k"),
    ({"seed": "0x10"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"surprise": "1"}, "surprise"),
    ({"audio": "x"}, "audio"),
]


@pytest.mark.parametrize("text", ["true", "True"])
async def test_pythons_booleans_are_taken_in_a_form(text):
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, **form(return_token_ids=text))
    assert response.json()["choices"][0]["token_ids"]


@pytest.mark.parametrize(("fields", "param"), BAD_FORM)
async def test_a_bad_form_field_is_a_400_that_names_it(fields, param):
    service = make_service()
    async with client_of(service) as client:
        response = await client.post(CHAT, **form(**fields))
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    check_law(service)


@pytest.mark.parametrize("names", [("stop", "stop[]"), ("stop[]", "stop"), ("stop[]", "stop[]", "stop")])
@pytest.mark.parametrize("text", ["a", '["a"]'])
async def test_one_field_in_two_spellings_is_a_400(names, text):
    parts = [(name, (None, text)) for name in names]
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, files=[("file", CLIP), ("prompt", (None, "x")), *parts])
    assert (response.status_code, error_of(response)["param"]) == (400, "stop")


async def test_forms_with_repeated_missing_or_foreign_parts_are_refused():
    prompt = ("prompt", (None, b"x"))
    cases = [
        ([("file", ("a", CLIP)), prompt, prompt], "prompt"),
        ([("file", ("a", CLIP)), ("file", ("b", CLIP)), prompt], "file"),
        ([("file", ("a", CLIP)), ("other", ("b", CLIP)), prompt], "other"),
        ([prompt], "audio"),
        ([("file", (None, b"clip.wav")), prompt], "audio"),
        ([("file", (None, CLIP * 10)), prompt], "audio"),
        ([("file", ("a", CLIP))], "prompt"),
        ([("file", ("a", b"")), prompt], "audio"),
        ([("file", ("a", CLIP)), ("prompt", (None, b"\xff"))], "prompt"),
        ([("file", ("a", CLIP))] + [("x", (None, b"1"))] * 100, None),
    ]
    async with client_of(make_service()) as client:
        for files, param in cases:
            response = await client.post(CHAT, files=files)
            assert (response.status_code, error_of(response)["param"]) == (400, param), param


async def test_a_file_that_was_sent_as_text_is_told_how_to_be_sent():
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, files=[("file", (None, b"clip.wav")), ("prompt", (None, b"x"))])
    assert error_of(response)["code"] == "invalid_audio"
    assert "-F file=@clip.wav" in error_of(response)["message"]


PROMPT = b'Content-Disposition: form-data; name="prompt"\r\n'
FILE = b'Content-Disposition: form-data; name="file"; filename="a"\r\n'


@pytest.mark.parametrize(
    ("headers", "sent", "read"),
    [
        (b"Content-Type: text/plain; charset=UTF-8\r\n", "für".encode(), "für"),
        (b"Content-Type: text/plain\r\n", "für".encode(), "für"),
        (b"Content-Type: text/plain; charset=ISO-8859-1\r\n", "für".encode("latin1"), "für"),
        (b"Content-Transfer-Encoding: 8bit\r\n", "für".encode(), "für"),
        (b"Content-Type: text/plain; charset=us-ascii\r\n", b"for", "for"),
    ],
)
async def test_text_is_read_as_it_says_it_is_written(headers, sent, read):
    engine = FakeEngine()
    content = raw_form(FILE + b"\r\n" + CLIP, PROMPT + headers + b"\r\n" + sent)
    async with client_of(make_service(engine)) as client:
        kind = {"content-type": "multipart/form-data; boundary=B"}
        assert (await client.post(CHAT, content=content, headers=kind)).status_code == 200
    assert engine.requests[0].prompt == read


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        (b"Content-Type: text/plain; charset=utf-16le\r\n", "für".encode("utf-16le")),
        (b"Content-Type: text/plain; charset=utf-8\r\n", b"f\xfcr"),
        (b"Content-Transfer-Encoding: quoted-printable\r\n", b"f=C3=BCr"),
        (b"Content-Transfer-Encoding: base64\r\n", b"Zm9y"),
    ],
)
async def test_text_that_cannot_be_read_so_is_refused(headers, sent):
    content = raw_form(FILE + b"\r\n" + CLIP, PROMPT + headers + b"\r\n" + sent)
    async with client_of(make_service()) as client:
        kind = {"content-type": "multipart/form-data; boundary=B"}
        response = await client.post(CHAT, content=content, headers=kind)
    assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


def raw_form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"nonsense", "multipart/form-data; boundary=B"),
        (b"", "multipart/form-data; boundary=B"),
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=" + "B" * 500),
        (
            raw_form(b'Content-Disposition: form-data; name="prompt"\r\n\r\nx', end=b""),
            "multipart/form-data; boundary=B",
        ),
        (raw_form(b"X: y\r\n\r\nx"), "multipart/form-data; boundary=B"),
        (raw_form(b"X" * 100_000), "multipart/form-data; boundary=B"),
    ],
)
async def test_malformed_forms_are_a_400(content, kind):
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, content=content, headers={"content-type": kind})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_other_bodies_are_a_400(headers):
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, content=b"prompt=x", headers=headers)
    assert response.status_code == 400
    error_of(response)


async def test_the_upload_cap_is_exact_in_both_forms():
    cap = 25 * 2**20
    async with client_of(make_service()) as client:
        for size, status in ((cap, 415), (cap + 1, 413)):
            clip = bytes(size)
            reply = await client.post(CHAT, files={"file": clip}, data={"prompt": "x"})
            assert (reply.status_code, error_of(reply)["param"]) == (status, "audio")
            data = base64.b64encode(clip).decode()
            reply = await client.post(CHAT, json=json_body(audio={"data": data}))
            assert (reply.status_code, error_of(reply)["param"]) == (status, "audio")


async def test_a_body_over_the_cap_is_refused_from_its_header():
    service = make_service()
    async with client_of(service) as client:
        headers = {"content-type": "application/json", "content-length": str(10**9)}
        response = await client.post(CHAT, content=b"{}", headers=headers)
    assert response.status_code == 413
    assert counted(service) == {"requests_rejected{payload_too_large}": 1}


async def test_audio_that_nobody_knows_is_a_415():
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, files={"file": b"%PDF-1.7"}, data={"prompt": "x"})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_audio")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EngineError("broken"), 500, "server_error"),
        (Overloaded("full", retry_after_s=2.5), 503, "overloaded_error"),
        (DeadlineExceeded("late"), 504, "timeout_error"),
        (ContextLengthExceeded("no room"), 400, "invalid_request_error"),
    ],
)
async def test_errors_of_the_engine_have_their_status(error, status, kind):
    async with client_of(make_service(FakeEngine(refuse=error))) as client:
        response = await client.post(CHAT, json=json_body())
        assert (response.status_code, error_of(response)["type"]) == (status, kind)
        assert error_of(response)["code"] == error.code
        assert response.headers.get("retry-after") == ("3" if status == 503 else None)
    async with client_of(make_service(FakeEngine(error=error, fail_after=1))) as client:
        response = await client.post(CHAT, json=json_body())
        assert response.status_code == status


async def test_a_request_past_its_deadline_is_a_504():
    gate = {"start": asyncio.Event()}
    async with client_of(make_service(FakeEngine(gates=gate))) as client:
        response = await client.post(CHAT, json=json_body(timeout_s=0.05))
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"  # OpenAI's clients would wait three times as long


async def test_keys():
    service = make_service(api_key=("alpha", "beta"))
    async with client_of(service) as client:
        for header in (None, "Bearer nope", "Basic alpha", "alpha", "Bearer ", "Bearer alphaa"):
            headers = {"authorization": header} if header else {}
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/load")):
                response = await client.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert error_of(response)["code"] == "invalid_api_key"
        for header in ("Bearer alpha", "bearer beta"):
            response = await client.post(CHAT, json=json_body(), headers={"authorization": header})
            assert response.status_code == 200
        for path in ("/livez", "/readyz", "/health"):
            assert (await client.get(path)).status_code == 200


async def test_a_client_over_its_rate_is_told_when_to_come_back():
    async with client_of(make_service(rate_limit=0.5)) as client:
        assert (await client.post(CHAT, json=json_body())).status_code == 200
        response = await client.post(CHAT, json=json_body())
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert error_of(response)["code"] == "rate_limited"


async def test_unknown_models_are_a_404():
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, json=json_body(model="gpt-4o-audio"))
    assert (response.status_code, error_of(response)["param"]) == (404, "model")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/nope", 404),
        ("GET", "/v1/models/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/readyz", 405),
        ("GET", "/metrics", 404),
        ("GET", "/docs", 404),
    ],
)
async def test_the_frameworks_own_errors_have_the_same_shape(method, path, status):
    async with client_of(make_service()) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == ("not_found" if status == 404 else "method_not_allowed")
    if status == 405:
        assert response.headers["allow"]


async def test_a_bug_is_a_json_500_with_an_id(monkeypatch):
    service = make_service()
    monkeypatch.setattr(service, "load", lambda: 1 / 0)
    async with client_of(service) as client:
        response = await client.get("/v1/load", headers={"x-request-id": "mine"})
    assert response.status_code == 500
    error = error_of(response)
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert "zero" not in error["message"]
    assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("sane", ["a", "x" * 128, "req_1:2-3 4", "00-4bf92f-01"])
async def test_a_sane_request_id_comes_back(sane):
    async with client_of(make_service()) as client:
        for path in ("/livez", "/nope", "/v1/models"):
            assert (await client.get(path, headers={"x-request-id": sane})).headers["x-request-id"] == sane


@pytest.mark.parametrize("odd", ["", "x" * 129, "ü".encode("latin-1"), b"a\tb"])
async def test_an_odd_request_id_is_replaced(odd):
    async with client_of(make_service()) as client:
        got = (await client.get("/livez", headers={"x-request-id": odd})).headers["x-request-id"]
    assert len(got) == 32


async def test_probes_models_and_load():
    service = make_service()
    async with client_of(service, start=False) as client:
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/health"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (503, {"status": "starting"})
        response = await client.post(CHAT, json=json_body())
        assert (response.status_code, error_of(response)["code"]) == (503, "not_ready")
        assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/v1/models")).status_code == 503
        await service.start()
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.head("/livez")).status_code == 200
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert (model["id"], model["object"], model["max_audio_seconds"]) == ("fake-wavllm", "model", 60.0)
        assert model["max_context_tokens"] == 2048
        assert "wav" in model["formats"]
        load = (await client.get("/v1/load")).json()
        assert (load["state"], load["num_requests_running"], load["num_requests_waiting"]) == ("ready", 0, 0)
        service.drain()
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        response = await client.post(CHAT, json=json_body())
        assert (response.status_code, response.headers["connection"]) == (200, "close")


async def test_the_model_tells_which_files_it_was_loaded_from():
    model = ModelInfo("m", 2048, 60.0, 512, 1000, "float32", "cpu", fingerprint="m@1")
    async with client_of(make_service(FakeEngine(model=model))) as client:
        assert (await client.get("/v1/models/m")).json()["fingerprint"] == "m@1"


async def test_openapi_describes_both_bodies():
    async with client_of(make_service()) as client:
        spec = (await client.get("/openapi.json")).json()
    content = spec["paths"][CHAT]["post"]["requestBody"]["content"]
    assert "file" in content["multipart/form-data"]["schema"]["properties"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/SpeechChatBody"}
    assert set(spec["components"]["schemas"]["SpeechChatBody"]["required"]) == {"prompt", "audio"}


async def test_openapi_tells_this_servers_bounds():
    async with client_of(make_service(max_new_tokens=99, max_prompt_chars=77)) as client:
        spec = (await client.get("/openapi.json")).json()
    content = spec["paths"][CHAT]["post"]["requestBody"]["content"]
    for schema in (content["multipart/form-data"]["schema"], spec["components"]["schemas"]["SpeechChatBody"]):
        fields = schema["properties"]
        limit, _null = fields["max_tokens"]["anyOf"]
        assert (limit["minimum"], limit["maximum"]) == (1, 99)
        assert fields["prompt"]["maxLength"] == 77
        assert (fields["temperature"]["minimum"], fields["temperature"]["maximum"]) == (0, 2)
        assert fields["top_p"]["exclusiveMinimum"] == 0
    async with client_of(make_service()) as client:
        other = (await client.get("/openapi.json")).json()
    form_body = other["paths"][CHAT]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form_body["properties"]["prompt"]["maxLength"] == 4000, "each server has its own bounds"


async def test_probes_and_load_are_as_the_document_says():
    async with client_of(make_service(), start=False) as client:
        for path in ("/livez", "/readyz"):
            ProbeReply.model_validate((await client.get(path)).json())
        LoadReply.model_validate((await client.get("/v1/load")).json())


async def test_no_content_reaches_logs_or_metrics(caplog):
    caplog.set_level(logging.DEBUG)
    service = make_service(FakeEngine(pieces=("sesame-answer",)))
    async with client_of(service) as client:
        await client.post(CHAT, json=json_body(prompt="sesame-prompt"))
        await client.post(CHAT, json=json_body(prompt="sesame-prompt", stream=True))
        await client.post(CHAT, json=json_body(prompt="sesame-prompt", surprise=1, stop=["sesame-stop"]))
        await client.post(CHAT, **form(prompt="sesame-prompt" * 1000))
    logged = "".join(
        str(vars(record)) for record in caplog.records if record.name.startswith(("wavllm", "server"))
    )
    assert "chat_id" in logged
    assert "sesame" not in logged
    assert "sesame" not in service.metrics.render().decode()
