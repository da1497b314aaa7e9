"""The methods of wavllm.v1.SpeechChat over the one service.

All methods are registered as taking a stream of raw bytes. On the wire a single request is a stream of one
message, so clients see no difference; but grpc.aio then runs the handler on the headers, before the message
is read. A refused call therefore costs neither memory nor parsing, and what is not read yet is held back by
HTTP/2's flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from server.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge, ServerError
from server.grpc_call import Call, Context
from server.grpc_messages import (
    accepted_event,
    audio_of,
    command_of,
    delta_event,
    done_message,
    model_message,
    parse_request,
    parse_upload,
    response_message,
)
from server.pb import speech_pb2 as pb
from server.service import ChatCommand, ChatStream, Reservation, SpeechService
from server.settings import BODY_SLACK_BYTES, Settings

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["SpeechChat"].full_name

T = TypeVar("T")
MESSAGE_S = 60.0
"""How long a message may take that others wait behind; who is slower sends an upload."""
PIECE_S = 30.0
"""How long an upload, which holds the largest size there is, may send nothing."""
MAX_DRAINS = 8
"""Refused uploads that are read on for a moment at the same time."""
MAX_DRAIN_WAIT_S = 2.0
"""How long one may take for it, with the wait for its turn; then it is cut off."""

Receive = Callable[[Call, Reservation], Awaitable[ChatCommand]]


class SpeechChat:
    """Handlers of the four methods, and the calls that are live.

    A message says its size to nobody before it is read, so while one is read it counts as the largest there
    may be. To let a burst of small messages pass all the same, only so many are read at a time as fit into
    half of the byte budget; the others wait for their turn.
    """

    def __init__(self, service: SpeechService, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self._message_bytes = settings.max_upload_bytes + BODY_SLACK_BYTES
        self._turns = asyncio.Semaphore(max(1, settings.max_inflight_bytes // (2 * self._message_bytes)))
        self._drains = asyncio.Semaphore(MAX_DRAINS)
        self._live: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def rpc_handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """What the server is given."""
        unary = functools.partial(grpc.stream_unary_rpc_method_handler, response_serializer=_serialize)
        streaming = functools.partial(grpc.stream_stream_rpc_method_handler, response_serializer=_serialize)
        methods = {
            "Chat": unary(self._behaviour("Chat", self._chat)),
            "ChatStream": streaming(self._behaviour("ChatStream", self._chat_stream)),
            "ChatUpload": streaming(self._behaviour("ChatUpload", self._chat_upload)),
            "GetModelInfo": unary(self._behaviour("GetModelInfo", self._get_model_info)),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def wait_idle(self) -> None:
        """Return when no call is live and every answer has been handed to the transport."""
        await self._idle.wait()

    def expire_all(self) -> None:
        """End every live call with a clean error."""
        for call in tuple(self._live):
            call.expire()

    def _behaviour(self, name: str, handler: Callable[[Call], Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def behave(_messages: AsyncIterator[bytes], context: Context) -> T:
            call = Call(context, name, self._settings.request_timeout)
            self._enter(call, context)
            return await call.run(handler)

        return behave

    def _enter(self, call: Call, context: Context) -> None:
        """Live until the library is through with the call, which is after its answer was sent."""

        def leave(ctx: Context) -> None:
            self._live.discard(call)
            if not self._live:
                self._idle.set()
            call.log()

        self._live.add(call)
        self._idle.clear()
        context.add_done_callback(leave)  # type: ignore[arg-type]  # a class in the stubs, any callable in truth

    async def _chat(self, call: Call) -> pb.ChatResponse:
        stream, with_token_ids = await self._open(call, 0, self._receive_message)
        async with stream:
            deltas = [delta async for delta in stream]
        response = response_message(
            call.request_id, deltas, done_message(stream), with_token_ids=with_token_ids
        )
        await call.send_headers()
        return response

    async def _chat_stream(self, call: Call) -> None:
        await self._reply(call, *await self._open(call, 0, self._receive_message))

    async def _chat_upload(self, call: Call) -> None:
        # Pieces come as slowly as somebody speaks: no turn is held for so long, the full cap is.
        try:
            opened = await self._open(call, self._message_bytes, self._receive_upload)
        except ServerError:
            await self._drain(call)
            raise
        await self._reply(call, *opened)

    async def _drain(self, call: Call) -> None:
        """Refused uploads take turns, for each piece may have the size of a whole clip."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(call.grace_s(MAX_DRAIN_WAIT_S)), self._drains:
                await call.drain()

    async def _get_model_info(self, call: Call) -> pb.ModelInfo:
        self._service.authenticate(call.api_key)
        await call.send_headers()
        return model_message(self._service.models()[0])

    async def _open(self, call: Call, num_bytes: int, receive: Receive) -> tuple[ChatStream, bool]:
        """Slot, then body, then engine. Every way out by an exception gives the slot back.

        Returns the answer, and whether token ids are wanted with it; the upload's bytes end here.
        """
        with self._service.reserve(
            num_bytes=num_bytes, api_key=call.api_key, transport="grpc"
        ) as reservation:
            call.hold(reservation)
            self._check_wait(call)
            async with reservation.before_deadline():
                command = await receive(call, reservation)
            return await self._service.chat(reservation, command), command.return_token_ids

    def _check_wait(self, call: Call) -> None:
        """Refuse at once what would outlast the client's deadline, before anything is read."""
        if call.timeout_s is not None and self._service.ledger.expected_wait_s > call.timeout_s:
            raise DeadlineExceeded("The queue is longer than the call's deadline.")

    async def _receive_message(self, call: Call, reservation: Reservation) -> ChatCommand:
        async with self._turns:
            reservation.resize_bytes(self._message_bytes)
            raw = await call.read(MESSAGE_S)
        if raw is None:
            raise InvalidRequest("The call ended before its request.")
        request = parse_request(raw)
        call.rename(request.request_id)
        return command_of(request, audio_of(request), call.timeout_s)

    async def _receive_upload(self, call: Call, reservation: Reservation) -> ChatCommand:
        config = await self._read_config(call)
        command = command_of(config, None, call.timeout_s)
        self._service.check(command)  # before a minute of audio is sent for nothing
        audio = bytearray()
        while (raw := await call.read(PIECE_S)) is not None:
            audio += _chunk_of(parse_upload(raw))
            if len(audio) > self._settings.max_upload_bytes:
                raise PayloadTooLarge(
                    f"The audio has more than {self._settings.max_upload_bytes} bytes.", param="audio"
                )
        return replace(command, audio=bytes(audio))

    async def _read_config(self, call: Call) -> pb.ChatRequest:
        raw = await call.read(PIECE_S)
        if raw is None or not (message := parse_upload(raw)).HasField("config"):
            raise InvalidRequest("The first message of an upload must be its config.", param="config")
        if message.config.HasField("audio"):
            raise InvalidRequest("The audio of an upload comes in chunks.", param="config.audio")
        call.rename(message.config.request_id)
        return message.config

    async def _reply(self, call: Call, stream: ChatStream, with_token_ids: bool) -> None:
        async with stream:
            await call.send_headers()
            await call.write(accepted_event(call.request_id, stream.accepted.queue_position))
            async for delta in stream:
                event = delta_event(call.request_id, delta, with_token_ids=with_token_ids)
                if event is not None:
                    await call.write(event)
            await call.write(pb.ChatEvent(request_id=call.request_id, done=done_message(stream)))


def _chunk_of(message: pb.ChatUploadRequest) -> bytes:
    """The piece of audio in a later message. Raises InvalidRequest for anything else."""
    part = message.WhichOneof("part")
    if part == "config":
        raise InvalidRequest("An upload has one config, in its first message.", param="config")
    if part is None:
        raise InvalidRequest("A message of an upload is empty.", param="chunk")
    chunk: bytes = message.chunk
    return chunk


def _serialize(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
