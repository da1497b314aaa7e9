"""One request from slot to reply, the same for every route that answers: admit, read, submit, reply."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request
from starlette.responses import Response

from server.errors import InvalidRequest, ServerError
from server.http_body import api_key_of, declared_bytes
from server.http_errors import JsonResponse
from server.http_replies import Answer
from server.http_stream import Events, EventStream, chat_events, collect, while_connected
from server.schemas import ChatFields
from server.service import ChatCommand, ChatStream, Reservation, SpeechService
from server.types import Delta


class Reply(Protocol):
    """The shape that an answer takes on one route."""

    def add(self, delta: Delta) -> None:
        """Take the next piece of an answer that is sent whole."""

    def whole(self, stream: ChatStream) -> Response:
        """The response, once the stream is exhausted."""

    def events(self, stream: ChatStream) -> tuple[bytes, Events]:
        """First event of a streamed answer, and the events of each delta and of the end."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body asked for. It holds the upload: drop it once the engine has the waveform.

    reply: makes the reply of an accepted request with this id, from the served model's name. names: fields
    of the command by the names that this route's clients know them by, for the `param` of refusals.
    """

    command: ChatCommand
    reply: Callable[[str, str], Reply]
    streamed: bool
    names: Mapping[str, str] = field(default_factory=dict)


async def exchange(
    request: Request,
    service: SpeechService,
    read: Callable[[Request, SpeechService], Awaitable[Ask]],
) -> Response:
    """Serve one request: its slot comes first, its body after."""
    with reserve(request, service) as reservation:
        async with reservation.before_deadline():
            ask = await read(request, service)
        make_reply, streamed = ask.reply, ask.streamed
        with naming(ask.names):
            stream = await start_chat(request, service, reservation, ask.command)
        del ask  # the upload's bytes; the engine has the waveform
        reply = make_reply(stream.request_id, service.model_name)
        return await answer(request, service, stream, reply, streamed=streamed)


def reserve(request: Request, service: SpeechService) -> Reservation:
    """A slot from the headers alone; refusals raise before anything is read."""
    num_bytes = declared_bytes(request, service.settings.max_body_bytes)
    reservation = service.reserve(num_bytes=num_bytes, api_key=api_key_of(request), transport="http")
    request.state.trace.fields["chat_id"] = reservation.request_id
    return reservation


@contextlib.contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Let refusals that leave the block name the client's own fields."""
    try:
        yield
    except ServerError as error:
        name = names.get(error.param or "")
        if name is not None:
            error.rename(name)
        raise


async def start_chat(
    request: Request, service: SpeechService, reservation: Reservation, command: ChatCommand
) -> ChatStream:
    """Submit; a client that leaves meanwhile cancels."""
    stream = await while_connected(request.receive, service.chat(reservation, command))
    request.state.trace.fields["prompt_tokens"] = stream.accepted.prompt_tokens
    if stream.audio is not None:
        request.state.trace.fields["audio_s"] = round(stream.audio.duration_s, 3)
    return stream


async def answer(
    request: Request, service: SpeechService, stream: ChatStream, reply: Reply, *, streamed: bool
) -> Response:
    """The reply to an accepted request: whole, or as a stream."""
    trace = request.state.trace
    if streamed:
        first, events = reply.events(stream)
        keepalive_s = service.settings.sse_keepalive
        return EventStream(stream, first, events, keepalive_s=keepalive_s, trace=trace)
    await while_connected(request.receive, collect(stream, reply.add, trace))
    return reply.whole(stream)


class ChatReply:
    """OpenAI's chat completion, whole or in chunks."""

    def __init__(self, answer: Answer, *, include_usage: bool) -> None:
        self._answer = answer
        self._include_usage = include_usage
        self.add = answer.add

    def whole(self, stream: ChatStream) -> Response:
        """`chat.completion`."""
        return JsonResponse(self._answer.completion(stream))

    def events(self, stream: ChatStream) -> tuple[bytes, Events]:
        """`chat.completion.chunk`, and the end."""
        return chat_events(stream, self._answer, include_usage=self._include_usage)


def chat_ask(fields: ChatFields, audio: bytes | None, names: Mapping[str, str] | None = None) -> Ask:
    """A question that is answered with a chat completion; keeps of `fields` what the reply needs alone.

    Raises InvalidRequest for options of a stream where none is asked for.
    """
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("stream_options goes with stream: true alone.", param="stream_options")
    return_token_ids, include_usage = fields.return_token_ids, fields.include_usage

    def reply(request_id: str, model: str) -> Reply:
        return ChatReply(Answer(request_id, model, return_token_ids), include_usage=include_usage)

    return Ask(fields.command(audio), reply, fields.stream, names or {})
