"""Serve's own answers, told in our shape; a fake in Serve's place, so Ray is not needed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from grpc_harness import details_of
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from server.errors import InvalidAudio
from server.grpc_errors import status_of
from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatServicer, SpeechChatStub
from server.ray_ingress import ServeErrors, add_speech_chat, http_middlewares


async def ask(app, path="/v1/models"):
    transport = httpx.ASGITransport(http_middlewares()[0].cls(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        return await client.get(path)


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    assert len(response.headers.get_list("x-request-id")) == 1
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (503, {"retry-after": "1"}, (503, "overloaded")),
        (503, {}, (503, "not_ready")),
        (404, {}, (503, "not_ready")),
        (408, {}, (504, "deadline_exceeded")),
        (500, {}, (500, "engine_error")),
    ],
)
async def test_what_serve_refuses_reads_like_ours(status, headers, expected):
    app = PlainTextResponse("Request dropped due to backpressure", status, {**headers, "x-request-id": "a"})
    response = await ask(app)
    assert error_of(response) == expected
    assert response.headers["x-request-id"] == "a"
    assert ("retry-after" in response.headers) == (expected[0] == 503)


@pytest.mark.parametrize(
    "app",
    [
        Response(b'{"error":{}}', 503, {"x-request-id": "a"}, "application/json"),
        PlainTextResponse("A transcript.", headers={"x-request-id": "a"}),
    ],
)
async def test_ours_passes(app):
    response = await ask(app)
    assert response.content == app.body
    assert response.status_code == app.status_code


async def test_serves_own_routes_pass():
    assert (await ask(PlainTextResponse("draining", 503), "/-/healthz")).text == "draining"


async def test_one_request_id():
    app = PlainTextResponse("x")
    app.raw_headers += [(b"x-request-id", b"ours"), (b"x-request-id", b"serves")]
    assert (await ask(app)).headers.get_list("x-request-id") == ["ours"]


async def test_a_replica_lost_before_its_answer():
    async def app(scope, receive, send):
        pass

    assert error_of(await ask(app)) == (500, "engine_error")


class Broken(StreamingResponse):
    """A stream whose end never comes."""

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})


async def test_a_replica_lost_in_mid_stream():
    response = await ask(Broken(iter(()), media_type="text/event-stream"))
    first, last = response.text.split("\n\n")[:2]
    assert first == "data: {}"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_error"


async def test_other_broken_answers_stay_broken():
    sent = []

    async def send(message):
        sent.append(message)

    await ServeErrors(Broken(iter(()), media_type="audio/wav"))({"type": "http", "path": "/"}, None, send)
    assert sent[-1]["more_body"]


class FakeServer(grpc.aio._server.Server):
    """As Serve's: each registered method is replaced by what the factory makes."""

    def __init__(self, handlers):
        super().__init__(None, (), (), (), None, None)
        self.service_handler_factory = lambda service_method, streaming_type: handlers[streaming_type]

    def add_generic_rpc_handlers(self, given):
        own = {
            name: handler._replace(
                response_serializer=None,
                unary_unary=self.service_handler_factory(service_method=name, streaming_type="unary"),
                unary_stream=self.service_handler_factory(service_method=name, streaming_type="stream"),
            )
            for name, handler in given[0]._method_handlers.items()
        }
        given[0]._method_handlers = own
        super().add_generic_rpc_handlers(given)


async def collect(stream, events):
    async for event in stream:
        events.append(event)


async def call(refuse, late=False):
    """What the client sees of a unary and of a streaming call that Serve ends so."""

    async def unary(request, context) -> bytes:
        refuse(context)
        return b""

    async def stream(request, context) -> AsyncIterator[bytes]:
        if late:
            yield pb.ChatEvent(request_id="a").SerializeToString()
        refuse(context)
        if context.trailing_metadata():
            yield b""

    server = FakeServer({"unary": unary, "stream": stream})
    before = server.service_handler_factory
    add_speech_chat(SpeechChatServicer(), server)
    assert server.service_handler_factory is before
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    events: list[pb.ChatEvent] = []
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = SpeechChatStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as whole:
                await stub.Chat(pb.ChatRequest())
            stream = stub.ChatStream(pb.ChatRequest(), metadata=[("x-request-id", "mine")])
            with pytest.raises(grpc.aio.AioRpcError) as streamed:
                await collect(stream, events)
    finally:
        await server.stop(0)
    return whole.value, streamed.value, events


@pytest.mark.parametrize(
    ("code", "expected", "reason"),
    [
        ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "overloaded"),
        ("UNAVAILABLE", "UNAVAILABLE", "not_ready"),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "deadline_exceeded"),
        ("INTERNAL", "INTERNAL", "engine_error"),
    ],
)
async def test_what_serve_refuses_over_grpc(code, expected, reason):
    def refuse(context):
        context.set_code(grpc.StatusCode[code])
        context.set_details("ray.exceptions.ActorDiedError: /somewhere/in/a/file.py")

    whole, streamed, events = await call(refuse, late=True)
    for error in (whole, streamed):
        details = details_of(error)
        assert error.code().name == expected
        assert details["ErrorInfo"].reason == reason
        assert "ray" not in error.details()
        assert ("RetryInfo" in details) == (expected == "UNAVAILABLE")
    assert details["RequestInfo"].request_id == "mine"
    assert [event.request_id for event in events] == ["a"]


async def test_our_refusals_keep_their_details_and_leave_no_empty_event():
    def refuse(context):
        status = status_of(InvalidAudio("No."), "x")
        context.set_code(status.code)
        context.set_details(status.message)
        context.set_trailing_metadata(status.trailing_metadata)

    whole, streamed, events = await call(refuse)
    assert events == []
    for error in (whole, streamed):
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details_of(error)["ErrorInfo"].reason == "invalid_audio"
