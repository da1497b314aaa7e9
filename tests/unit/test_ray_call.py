"""gRPC methods over Serve's kind of context; the service is the fakes', and Ray is not needed."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from fakes import make_service, make_settings
from grpc_harness import request as message_of
from grpc_harness import upload
from prometheus_client.parser import text_string_to_metric_families

from server.grpc_servicer import SpeechChat
from server.ray_call import ReplicaCalls, pieces, single
from server.ray_metrics import MetricsMirror


def request(**fields):
    """A request's bytes."""
    return message_of(**fields).SerializeToString()


class ServeContext:
    """What Serve gives a replica."""

    def __init__(self, *metadata):
        self.metadata = list(metadata)
        self.status = None
        self.trailing = []

    def invocation_metadata(self):
        return self.metadata

    def set_code(self, code):
        self.status = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, trailing_metadata):
        self.trailing = trailing_metadata


class Upload:
    """Serve's stream of a client's messages; leaves off after so many."""

    def __init__(self, messages, cut_after=None):
        self.messages = [message.SerializeToString() for message in messages][:cut_after]
        self.is_cut = cut_after is not None

    async def __aiter__(self):
        for message in self.messages:
            yield message

    def is_cancelled(self):
        return self.is_cut


@pytest.fixture
async def service():
    made = make_service()
    await made.start()
    yield made
    await made.stop()
    made.ledger.check_integrity()
    assert made.ledger.num_open == 0


@pytest.fixture
def calls(service):
    return ReplicaCalls(SpeechChat(service, make_settings()))


async def events_of(calls, method, messages, context):
    return [event async for event in calls.stream(method, messages, context)]


async def test_the_three_methods_say_the_same(calls):
    context = ServeContext(("x-request-id", "mine"))
    whole = await calls.unary("Chat", request(), context)
    streamed = await events_of(calls, "ChatStream", single(request()), ServeContext())
    clip = message_of().audio.data
    sent = Upload(upload(clip, 1000))
    uploaded = await events_of(calls, "ChatUpload", pieces(sent), ServeContext())
    assert whole.text
    for events in (streamed, uploaded):
        assert events[0].HasField("accepted")
        assert "".join(event.delta.text for event in events) == whole.text
        assert events[-1].done.usage == whole.usage
    assert context.status is None
    assert context.trailing == [("x-request-id", "mine")]


async def test_a_refusal_stands_in_the_context(calls):
    context = ServeContext()
    assert await calls.unary("Chat", request(audio=None), context) is None
    streamed = ServeContext()
    assert await events_of(calls, "ChatStream", single(request(audio=None)), streamed) == [None]
    for given in (context, streamed):
        assert given.status is grpc.StatusCode.INVALID_ARGUMENT
        assert "grpc-status-details-bin" in dict(given.trailing)


async def test_a_client_that_leaves_gives_its_slot_back(calls, service):
    stream = calls.stream("ChatStream", single(request()), ServeContext())
    assert (await anext(stream)).HasField("accepted")
    await stream.aclose()
    assert service.ledger.num_open == 0


async def test_a_cut_upload_is_no_clip(calls, service):
    sent = Upload(upload(message_of().audio.data, 1000), cut_after=3)
    with pytest.raises(asyncio.CancelledError):
        await events_of(calls, "ChatUpload", pieces(sent), ServeContext())
    assert service.ledger.num_open == 0


async def test_the_model(calls):
    assert (await calls.unary("GetModelInfo", request(), ServeContext())).id


class FakeGauge:
    """Of Ray."""

    made: dict[str, FakeGauge]

    def __init__(self, name, description, tag_keys):
        assert description
        self.tag_keys = tag_keys
        self.values = {}
        assert name not in self.made
        self.made[name] = self

    def set(self, value, tags):
        assert tuple(tags) == self.tag_keys
        self.values[tuple(tags.values())] = value


async def test_every_sample_reaches_ray(calls, service):
    FakeGauge.made = {}
    mirror = MetricsMirror(service.metrics.render, FakeGauge)
    mirror.update()
    assert await calls.unary("Chat", request(), ServeContext())
    mirror.update()
    families = text_string_to_metric_families(service.metrics.render().decode())
    samples = [s for family in families for s in family.samples if not s.name.endswith("_created")]
    assert FakeGauge.made["wavllm_requests_accepted_total"].values == {(): 1}
    assert {s.name for s in samples} == set(FakeGauge.made)
    for sample in samples:
        assert FakeGauge.made[sample.name].values[tuple(sample.labels.values())] == sample.value
