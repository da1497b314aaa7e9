"""The engine proper: `step()` schedules, computes, commits. No thread and no process of its own.

`submit` and `abort` may come from any thread and only leave a note in the inbox; everything else belongs
to the one thread that steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from torch import Tensor

from model.tokenizer import Tokenizer
from server.engine.detokenizer import Detokenizer
from server.engine.encoding import Encoding, Waveform
from server.engine.factory import safe_traceback
from server.engine.intake import Intake
from server.engine.runner import Results, Runner
from server.engine.scheduler import Batch, Scheduler
from server.engine.sequence import AdapterPass, Sequence
from server.errors import DeadlineExceeded, EngineError, ServerError
from server.types import (
    Accepted,
    Delta,
    EngineStats,
    EngineTimings,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    Stage,
    StageChanged,
    StepOutput,
    Usage,
)

logger = logging.getLogger(__name__)

FAILED = "the engine failed on this request"


class EngineCore:
    """Scheduler, runner and detokenizers behind one inbox. Built by `server.engine.build.build_core`."""

    def __init__(
        self,
        info: ModelInfo,
        intake: Intake,
        scheduler: Scheduler,
        encoding: Encoding,
        runner: Runner,
        tokenizer: Tokenizer,
    ) -> None:
        self.info = info
        self.scheduler = scheduler
        self.encoding = encoding
        self.runner = runner
        self._intake = intake
        self._tokenizer = tokenizer
        self._inbox: deque[tuple[Sequence, Waveform | None] | str] = deque()
        self._arrived = threading.Condition()
        self._waveforms: dict[str, Waveform] = {}
        self._detokenizers: dict[str, Detokenizer] = {}
        self._events: list[Event] = []
        self._num_steps = 0
        self._is_checked = True

    # From any thread.

    def submit(self, request: GenerateRequest) -> tuple[Event, ...]:
        """Validate and queue. Returns (Accepted,), or (Failed,) with what is wrong."""
        try:
            with self._arrived:
                sequence = self._intake.sequence(request)
                position = self.scheduler.num_waiting + self._num_arriving()
                self._inbox.append((sequence, request.waveform))
                self._arrived.notify()
        except ServerError as error:
            return (Failed(request.request_id, error),)
        prompt = sequence.prompt
        return (Accepted(request.request_id, position, len(prompt), prompt.num_audio),)

    def _num_arriving(self) -> int:
        """Requests in the inbox that nobody has given up."""
        notes = self._inbox.copy()  # in one go, for the thread that steps empties it meanwhile
        given_up = {note for note in notes if isinstance(note, str)}
        return sum(not isinstance(note, str) and note[0].request_id not in given_up for note in notes)

    def abort(self, request_id: str) -> None:
        """End a request early, at the start of the next step; unknown ids are ignored."""
        with self._arrived:
            self._inbox.append(request_id)
            self._arrived.notify()

    def stats(self) -> EngineStats:
        """Gauges and counters of this moment."""
        scheduler, pages = self.scheduler, self.scheduler.pages
        return EngineStats(
            num_requests_running=scheduler.num_running,
            num_requests_waiting=scheduler.num_waiting,
            queue_audio_seconds=scheduler.waiting_audio_seconds,
            kv_cache_usage=pages.num_used / pages.num_pages,
            kv_cache_cached=pages.num_cached / pages.num_pages,
            encoder_cache_hits=scheduler.clips.hits,
            encoder_cache_misses=scheduler.clips.misses,
            encoder_cache_evictions=scheduler.clips.evictions,
            encoder_cache_bytes=scheduler.clips.cost,
            prompt_cache_hits=scheduler.scales.hits,
            prompt_cache_misses=scheduler.scales.misses,
            num_preemptions=scheduler.num_preemptions,
            num_steps=self._num_steps,
        )

    # From the thread that steps.

    def wait(self, timeout_s: float) -> bool:
        """Block until there is work (True) or the time is up (False); an idle engine checks its books."""
        if self.scheduler.has_work or self._inbox:
            return True
        with self._arrived:
            if self._arrived.wait_for(lambda: bool(self._inbox), timeout_s):
                return True
        if not self._is_checked:
            self.check_integrity()
            self._is_checked = True
        return False

    def step(self) -> StepOutput:
        """One turn: take the inbox, end what is overdue, schedule, encode for a while, compute, commit."""
        self._num_steps += 1
        self._is_checked = False
        batch = self._plan()
        self._encode(batch.encode, share=0.5 if batch.prefills and batch.decodes else 1.0)
        # A clip that failed may have ended the only request that an instruction was to be read for.
        batch.prefills = [chunk for chunk in batch.prefills if chunk.owner.pages]
        if batch.prefills or batch.decodes:
            self._commit(batch, self._forward(batch))
        self._drop_unwanted_clips()
        self.runner.forget(*self.scheduler.evict())
        return self._output()

    def _plan(self) -> Batch:
        """What is to be computed next."""
        now = time.monotonic()
        self._take_inbox()
        for sequence in self.scheduler.expired(now):
            self._fail(sequence, DeadlineExceeded("the request's deadline passed before it was answered"))
        self._drop_unwanted_clips()
        batch = self.scheduler.schedule(now, self.encoding.keys)
        if not batch and not self.encoding.keys and self.scheduler.has_work:
            raise RuntimeError("the scheduler found nothing to do for live requests")
        self._publish_stages()
        return batch

    def close(self) -> None:
        """Let go of the tensors; the core must not be used again."""
        self.runner.close()

    def check_integrity(self) -> None:
        """Recount pages, slots and references. Raises AssertionError on any difference."""
        self.scheduler.check_integrity()
        live = {sequence.request_id for sequence in self.scheduler.live()}
        assert set(self._detokenizers) == live, "detokenizers differ from live requests"
        assert set(self._waveforms) <= live, "waveforms of ended requests"
        self.runner.check_integrity(self.scheduler)
        keys = self.encoding.keys
        assert not keys or set(keys) & set(self.scheduler.clips.pending), "encoding what nobody wants"

    # The parts of a step.

    def _take_inbox(self) -> None:
        """In order of arrival, so that an abort finds the request it follows."""
        while self._inbox:
            note = self._inbox.popleft()
            if isinstance(note, str):
                sequence = self.scheduler.find(note)
                if sequence is not None:
                    self._end(sequence)
                continue
            sequence, waveform = note
            if waveform is not None:
                self._waveforms[sequence.request_id] = waveform
            self._detokenizers[sequence.request_id] = Detokenizer(
                self._tokenizer.decode, self._tokenizer.unk_id, sequence.sampling.stop
            )
            self.scheduler.add(sequence)

    def _encode(self, keys: list[bytes], share: float) -> None:
        """Begin a pass over these clips, if there are any, or go on with the one under way for a slice.

        share: of the slice; half of it where a prefill takes the other half. If a pass fails, its clips are
        encoded alone, so that only the culprit's requests fail.
        """
        encoding = self.encoding
        if keys:
            waiting = {key: self.scheduler.clips.waiters(key)[0].request_id for key in keys}
            encoding.begin({key: self._waveforms[name] for key, name in waiting.items()})
            return  # whose clips they are is told first: the first slice may be all there is
        try:
            encoded = encoding.advance(share)
        except Exception as error:  # noqa: BLE001 any failure of model code must cost its own request alone
            self._note_failure("encoding", error)
            for key in encoding.fail():
                self._fail_clip(key)
            return
        for key, embeddings in encoded.items():
            self._keep_clip(key, embeddings)
        if encoded:
            encoding.end()

    def _keep_clip(self, key: bytes, embeddings: Tensor) -> None:
        """A clip is encoded; nobody may want it any more."""
        if not self.scheduler.clips.is_pending(key):
            return
        if not embeddings.isfinite().all():
            # What attention masks has the weight 0, and 0 times NaN is NaN: it would reach the text before.
            self._fail_clip(key, "its audio embeddings are not finite")
            return
        self.runner.keep_clip(key, embeddings)
        for sequence in self.scheduler.clips.waiters(key):
            sequence.timeline.encode_s = self.encoding.seconds
            self._waveforms.pop(sequence.request_id, None)
        self.scheduler.commit_clip(key)

    def _fail_clip(self, key: bytes, why: str = "") -> None:
        message = f"{FAILED}: {why}" if why else FAILED
        if self.scheduler.clips.is_pending(key):
            for sequence in self.scheduler.clips.waiters(key):
                self._fail(sequence, EngineError(message))

    def _drop_unwanted_clips(self) -> None:
        """A clip that nobody waits for any more need not be encoded to the end."""
        self.encoding.drop(lambda key: not self.scheduler.clips.is_pending(key))

    def _forward(self, batch: Batch) -> Results:
        """One forward for everything; if that fails, each part alone. Drops what fails from the batch."""
        try:
            return self.runner.forward(batch.prefills, batch.decodes)
        except Exception as error:  # noqa: BLE001 any failure of model code must cost its own request alone
            self._note_failure("a forward", error)
        results = Results()
        parts = [Batch(prefills=[chunk]) for chunk in batch.prefills]
        parts += [Batch(decodes=[sequence]) for sequence in batch.decodes]
        batch.prefills, batch.decodes = [], []
        for part in parts:
            self._forward_alone(part, batch, results)
        return results

    def _forward_alone(self, part: Batch, done: Batch, results: Results) -> None:
        try:
            result = self.runner.forward(part.prefills, part.decodes)
        except Exception as error:  # noqa: BLE001 see _forward
            self._note_failure("a part of a forward", error)
            for owner in (*(chunk.owner for chunk in part.prefills), *part.decodes):
                self._fail_owner(owner)
            return
        results.tokens |= result.tokens
        results.broken += result.broken
        done.prefills += part.prefills
        done.decodes += part.decodes

    def _note_failure(self, what: str, error: Exception) -> None:
        """Log without the message, which may quote a client's text. Raises again what no retry can mend."""
        logger.error("%s failed: %s", what, safe_traceback(error))
        if self.runner.is_fatal(error):
            raise error

    def _commit(self, batch: Batch, results: Results) -> None:
        now = time.monotonic()
        for chunk in batch.prefills:
            self.scheduler.commit_chunk(chunk)
        for sequence in results.broken:
            self.scheduler.disown_pages(sequence)
            self._fail(sequence, EngineError(f"{FAILED}: its logits are not finite"))
        for sequence in results.tokens:
            if not sequence.timeline.first_token:
                sequence.timeline.first_token = now
                self.scheduler.enter_generating(sequence, now)
        self._publish_stages()
        for sequence, token in results.tokens.items():
            self._commit_token(sequence, token)

    def _commit_token(self, sequence: Sequence, token: int) -> None:
        """Turn a token into text, and end the answer where it ends."""
        before = len(sequence.generated)
        reason = self.scheduler.commit_token(sequence, token, self.runner.eos_id)
        new_ids = tuple(sequence.generated[before:])
        detokenizer = self._detokenizers[sequence.request_id]
        text = detokenizer.add(new_ids)
        if detokenizer.stopped:
            reason = "stop"
        if reason is not None:
            text += detokenizer.finish()
        if detokenizer.stopped:
            reason = "stop"
        if text or new_ids:
            self._events.append(Delta(sequence.request_id, text, new_ids))
        if reason is not None:
            self._finish(sequence, reason)

    # Ends.

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        prompt, timeline = sequence.prompt, sequence.timeline
        usage = Usage(len(prompt), len(sequence.generated), prompt.num_audio, sequence.num_cached or 0)
        since = timeline.submitted
        timings = EngineTimings(
            queue_ms=1e3 * (timeline.started - since),
            encode_ms=1e3 * timeline.encode_s,
            total_ms=1e3 * (time.monotonic() - since),
        )
        self._events.append(Finished(sequence.request_id, reason, usage, timings))
        self._end(sequence)

    def _fail_owner(self, owner: Sequence | AdapterPass) -> None:
        if isinstance(owner, Sequence):
            self._fail(owner, EngineError(FAILED))
            return
        for sequence in self.scheduler.scales.waiters(owner.instruction_key):
            self._fail(sequence, EngineError(FAILED))
        self.runner.forget_scale(owner.instruction_key)

    def _fail(self, sequence: Sequence, error: ServerError) -> None:
        self._events.append(Failed(sequence.request_id, error))
        self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """The one place where a request leaves: everything it holds goes here."""
        self.scheduler.end(sequence)
        self._waveforms.pop(sequence.request_id, None)
        del self._detokenizers[sequence.request_id]

    def _publish_stages(self) -> None:
        for sequence, stage in self.scheduler.take_stage_changes():
            if stage is not Stage.ENCODING:
                # Its clip's embeddings are there, maybe by another request's doing, and stay while it lives.
                self._waveforms.pop(sequence.request_id, None)
            self._events.append(StageChanged(sequence.request_id, stage))

    def _output(self) -> StepOutput:
        events, self._events = tuple(self._events), []
        return StepOutput(events, self.stats(), self.runner.take_encoder_runs())
