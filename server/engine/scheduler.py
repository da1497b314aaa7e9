"""Decides what the next step computes. Pure Python over plain state; knows no tensors and no threads.

Rules:
  - First come, first served. Only the oldest `2 * max_batch_size` requests are active, that is, may ask for
    their clip to be encoded and their instruction to be read; the others wait untouched.
  - Between two decode steps at most a slice of an encoder pass and one batch of prefill chunks (bounded in
    tokens), so long clips and prompts never stall running streams.
  - When pages run out, the youngest holder gives way and is recomputed later. A prefill may push out only
    younger ones, so the oldest request that has a place always makes progress.
"""

from __future__ import annotations

import heapq
import operator
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from server.engine.pages import OutOfPages, PagePool
from server.engine.result_cache import ResultCache
from server.engine.sequence import AdapterPass, Phase, Sequence
from server.types import FinishReason, Stage

Owner = Sequence | AdapterPass
_order = operator.attrgetter("order")
FEW_DEADLINES = 64
"""So many of ended requests are left lying, beside as many again as live requests have at most."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start:stop of `owner` to prefill. Logits are wanted where it ends a sequence's tokens."""

    owner: Owner
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        """Whether nothing of the owner is left to prefill after this chunk."""
        return self.stop == len(self.owner)


@dataclass(slots=True)
class Batch:
    """One step's work: clips to encode, chunks to prefill, sequences to decode by one token."""

    encode: list[bytes] = field(default_factory=list)
    prefills: list[Chunk] = field(default_factory=list)
    decodes: list[Sequence] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.encode or self.prefills or self.decodes)


@dataclass(slots=True)
class SchedulerLimits:
    """max_batch_size: sequences that hold pages at once. max_batch_tokens: tokens of one forward.

    encode_seconds: audio seconds of one encoder micro-batch (a longer clip goes alone). prefill_beside:
    tokens prefilled in a step in which answers go on, half of it where clips are encoded too; None for all
    that fit.
    """

    max_batch_size: int
    max_batch_tokens: int
    encode_seconds: float = 30.0
    prefill_beside: int | None = None

    def __post_init__(self) -> None:
        if self.max_batch_tokens <= self.max_batch_size:
            raise ValueError("max_batch_tokens: must exceed max_batch_size, or a full batch never prefills")


class Scheduler:
    """Queue, active window, running set. Call order per step: `schedule`, compute, `commit_*`."""

    def __init__(
        self,
        limits: SchedulerLimits,
        pages: PagePool,
        clips: ResultCache[Sequence],
        scales: ResultCache[Sequence],
        clip_token_cost: int = 1,
    ) -> None:
        self.limits = limits
        self.pages = pages
        self.clips = clips
        self.scales = scales
        self.num_preemptions = 0
        self._clip_token_cost = clip_token_cost
        self._live: dict[str, Sequence] = {}
        self._queue: OrderedDict[int, Sequence] = OrderedDict()
        self._active: dict[int, Sequence] = {}
        self._ready: list[int] = []
        self._running: dict[int, Sequence] = {}
        self._passes: dict[bytes, AdapterPass] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._waiting_audio_s = 0.0
        self._stage_changes: list[tuple[Sequence, Stage]] = []

    # State, for statistics and tests.

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Live sequences that hold no pages."""
        return len(self._live) - len(self._running)

    @property
    def waiting_audio_seconds(self) -> float:
        """Audio of sequences for which nothing has been computed yet."""
        return max(self._waiting_audio_s, 0.0)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is live."""
        return bool(self._live)

    def find(self, request_id: str) -> Sequence | None:
        """The live sequence of this request."""
        return self._live.get(request_id)

    def live(self) -> tuple[Sequence, ...]:
        """All live sequences, oldest first."""
        return tuple(self._live.values())

    # Entering and leaving.

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Orders must grow from call to call."""
        self._live[sequence.request_id] = sequence
        self._queue[sequence.order] = sequence
        self._waiting_audio_s += sequence.audio_seconds
        for deadline in {sequence.deadline, sequence.queue_deadline} - {float("inf")}:
            heapq.heappush(self._deadlines, (deadline, sequence.request_id))
        if len(self._deadlines) > 4 * len(self._live) + FEW_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._live]
            heapq.heapify(self._deadlines)

    def end(self, sequence: Sequence) -> None:
        """Take a sequence out, in whatever phase, and free all that it holds."""
        # Before it is dead: `num_waiting` is read from other threads, and is no less than what waits.
        self._running.pop(sequence.order, None)
        del self._live[sequence.request_id]
        self._queue.pop(sequence.order, None)
        if self._active.pop(sequence.order, None) is not None:
            self._release_results(sequence)
        self._release_pages(sequence)
        if not sequence.started:
            self._waiting_audio_s -= sequence.audio_seconds
        sequence.phase = Phase.ENDED

    def expired(self, now: float) -> list[Sequence]:
        """Live sequences whose deadline, or deadline for having started, has passed."""
        overdue: dict[str, Sequence] = {}
        while self._deadlines and self._deadlines[0][0] <= now:
            # By name: a deadline may lie far off, and an ended sequence must not be kept until then.
            deadline, request_id = heapq.heappop(self._deadlines)
            sequence = self._live.get(request_id)
            if sequence is None:
                continue
            unstarted = deadline == sequence.queue_deadline and not sequence.started
            if sequence.deadline <= now or unstarted:
                overdue[request_id] = sequence
        return list(overdue.values())

    # One step.

    def schedule(self, now: float, encoding: Collection[bytes] = ()) -> Batch:
        """What to compute next. encoding: clips of the pass under way, before whose end no other begins.

        An empty batch without such a pass means that nothing is live.
        """
        self._activate()
        batch = Batch(decodes=self._pick_decodes())
        self._pick_prefills(batch, is_encoding=bool(encoding))
        if not encoding and not (batch and self._is_ahead()):
            batch.encode = self._pick_clips()
        self._mark_stages(batch, encoding, now)
        return batch

    def take_stage_changes(self) -> list[tuple[Sequence, Stage]]:
        """Stages entered since the last call."""
        changes, self._stage_changes = self._stage_changes, []
        return changes

    def commit_clip(self, key: bytes) -> None:
        """The clip's embeddings are in the runner."""
        for sequence in self.clips.finish(key):
            self._maybe_ready(sequence)

    def commit_chunk(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the cache; a finished adapter pass frees its pages."""
        owner = chunk.owner
        owner.num_computed = chunk.stop
        if isinstance(owner, Sequence):
            self._remember(owner, chunk.start)
        elif chunk.completes:
            self._drop_pass(owner)
            for sequence in self.scales.finish(owner.instruction_key):
                self._maybe_ready(sequence)

    def disown_pages(self, sequence: Sequence) -> None:
        """Its numbers are broken: what it has written, or read, is nobody's prefix from now on."""
        self.pages.disown(sequence.pages)

    def commit_token(self, sequence: Sequence, token: int, eos_id: int) -> FinishReason | None:
        """Add a sampled token; returns why the answer ends with it, or None. EOS is not kept."""
        if sequence.phase is Phase.DECODE:
            sequence.num_computed += 1
            self._remember(sequence, sequence.num_computed - 1)
        sequence.phase = Phase.DECODE
        if token == eos_id:
            return "stop"
        sequence.generated.append(token)
        return "length" if len(sequence.generated) >= sequence.max_tokens else None

    def evict(self) -> tuple[list[bytes], list[bytes]]:
        """Clips and instructions that the runner may forget."""
        return self.clips.evict(), self.scales.evict()

    # Becoming active and ready.

    def _activate(self) -> None:
        """Let the oldest waiting sequences ask for what they need before a prefill."""
        while self._queue and len(self._active) < 2 * self.limits.max_batch_size:
            _, sequence = self._queue.popitem(last=False)
            self._active[sequence.order] = sequence
            prompt = sequence.prompt
            if prompt.audio_key:
                self.clips.acquire(prompt.audio_key, prompt.num_audio * self._clip_token_cost, sequence)
            if sequence.instruction_key and not self.scales.acquire(sequence.instruction_key, 1, sequence):
                self._request_pass(sequence)
            self._maybe_ready(sequence)

    def _request_pass(self, sequence: Sequence) -> None:
        key = sequence.instruction_key
        if key not in self._passes:
            self._passes[key] = AdapterPass(key, sequence.order, sequence.prompt.adapter_ids)

    def _maybe_ready(self, sequence: Sequence) -> None:
        clip, scale = sequence.prompt.audio_key, sequence.instruction_key
        if clip and not self.clips.is_ready(clip):
            return
        if scale and not self.scales.is_ready(scale):
            return
        if sequence.phase is Phase.WAITING:
            sequence.phase = Phase.PREFILL
            heapq.heappush(self._ready, sequence.order)

    def _release_results(self, sequence: Sequence) -> None:
        if sequence.prompt.audio_key:
            self.clips.release(sequence.prompt.audio_key, sequence)
        key = sequence.instruction_key
        if not key:
            return
        self.scales.release(key, sequence)
        if key in self._passes and not self.scales.is_pending(key):
            self._drop_pass(self._passes[key])
        elif key in self._passes:
            self._passes[key].order = min(waiter.order for waiter in self.scales.waiters(key))

    def _drop_pass(self, adapter_pass: AdapterPass) -> None:
        del self._passes[adapter_pass.instruction_key]
        self._release_pages(adapter_pass)

    # Picking work.

    def _is_ahead(self) -> bool:
        """Whether embeddings in use take more than the cache may while an encoded request waits for a place.

        The next clip's would only wait as well, in memory that nobody has counted with. Who came later and
        found a clip encoded holds nobody back.
        """
        if self.clips.cost_in_use <= self.clips.max_cost or not self.clips.pending:
            return False
        oldest = self.clips.waiters(self.clips.pending[0])[0].order
        return any(order < oldest and order in self._active for order in self._ready)

    def _pick_clips(self) -> list[bytes]:
        """Oldest pending clips within the audio budget (in whole windows), always at least one."""
        picked: list[bytes] = []
        seconds = 0.0
        for key in self.clips.pending:
            seconds += self.clips.waiters(key)[0].encode_seconds
            if picked and seconds > self.limits.encode_seconds:
                break
            picked.append(key)
        return picked

    def _pick_decodes(self) -> list[Sequence]:
        """Every decoding sequence with a slot for its next token, oldest first."""
        decodes: list[Sequence] = []
        size = self.pages.page_size
        for sequence in sorted(self._running.values(), key=_order):
            if sequence.phase is not Phase.DECODE:
                continue
            stop = len(sequence)
            if len(sequence.pages) * size >= stop or self._reserve(sequence, stop) == stop:
                decodes.append(sequence)
        return decodes

    def _pick_prefills(self, batch: Batch, *, is_encoding: bool) -> None:
        """Chunks in order of arrival, as far as the token budget goes."""
        budget = self.limits.max_batch_tokens - len(batch.decodes)
        beside = self.limits.prefill_beside
        if batch.decodes and beside is not None:
            budget = min(budget, -(-beside // 2) if is_encoding else beside)
        for owner in self._oldest_first(len(batch.decodes)):
            budget -= self._pick_chunk(owner, budget, batch)
            if budget <= 0:
                break
        # A prefill may have pushed out younger sequences that were to decode; chunks go oldest first.
        batch.decodes = [sequence for sequence in batch.decodes if sequence.phase is Phase.DECODE]

    def _oldest_first(self, num_decodes: int) -> Iterator[Owner]:
        """Instructions to read, prefills under way, and ready sequences as they begin."""
        under_way = [s for s in self._running.values() if s.phase is Phase.PREFILL]
        owners: list[Owner] = [*self._passes.values(), *under_way]
        for owner in sorted(owners, key=_order):
            yield from self._begin_ready(owner.order, num_decodes)
            if self._still_wanted(owner):
                yield owner
        yield from self._begin_ready(float("inf"), num_decodes)

    def _begin_ready(self, before: float, num_decodes: int) -> Iterator[Sequence]:
        """Begin ready sequences older than order `before`, while there is a place."""
        while self._ready and self._ready[0] < before and len(self._running) < self.limits.max_batch_size:
            # By order: while all places are taken, an ended sequence must not be kept until its turn.
            sequence = self._active.get(heapq.heappop(self._ready))
            if sequence is None:
                continue
            if not self._begin(sequence, num_decodes):
                break
            yield sequence

    def _still_wanted(self, owner: Owner) -> bool:
        """False for a prefill that was pushed out while this step was being put together."""
        return isinstance(owner, AdapterPass) or owner.order in self._running

    def _pick_chunk(self, owner: Owner, budget: int, batch: Batch) -> int:
        """Add as much of `owner` as budget and pages allow; returns the number of tokens."""
        start = owner.num_computed
        stop = self._reserve(owner, min(start + budget, len(owner)))
        if stop <= start:
            return 0
        batch.prefills.append(Chunk(owner, start, stop))
        return stop - start

    def _begin(self, sequence: Sequence, num_decodes: int) -> bool:
        """Give a ready sequence a place and its known prefix pages, if the rest of its tokens will fit.

        A page is kept free for each decoding sequence, or newcomers would be pushed out one step later.
        """
        size = self.pages.page_size
        hashes = (sequence.hash_of_page(i, size) for i in range((len(sequence) - 1) // size))
        sequence.pages = self.pages.match(hashes) if self.pages.reuse else []
        missing = -(-len(sequence) // size) - len(sequence.pages)
        if self._running and missing + num_decodes > self.pages.num_free:
            self._release_pages(sequence)
            heapq.heappush(self._ready, sequence.order)
            return False
        self._running[sequence.order] = sequence
        sequence.num_computed = len(sequence.pages) * size
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
        return True

    # Pages.

    def _reserve(self, owner: Owner, stop: int) -> int:
        """Pages for tokens up to `stop`, pushing out younger holders; returns how far they reach."""
        size = self.pages.page_size
        while len(owner.pages) * size < stop:
            try:
                owner.pages.append(self.pages.allocate())
            except OutOfPages:
                if not self._push_out_younger(owner):
                    break
        return min(stop, len(owner.pages) * size)

    def _push_out_younger(self, owner: Owner) -> bool:
        """Preempt the youngest holder of pages; if that is `owner` itself, it waits or gives way."""
        holders: list[Owner] = [s for s in self._running.values() if s.pages]
        holders += [p for p in self._passes.values() if p.pages]
        youngest = max(holders, key=_order, default=owner)
        if youngest.order > owner.order:
            self._preempt(youngest)
            return True
        if isinstance(owner, Sequence) and owner.phase is Phase.DECODE:
            self._preempt(owner)
        return False

    def _preempt(self, owner: Owner) -> None:
        """Take all pages from `owner`; a sequence goes back to the ready ones, its answer so far kept."""
        self._release_pages(owner)
        owner.num_computed = 0
        self.num_preemptions += 1
        if isinstance(owner, Sequence):
            del self._running[owner.order]
            owner.phase = Phase.PREFILL
            heapq.heappush(self._ready, owner.order)

    def _release_pages(self, owner: Owner) -> None:
        self.pages.release(owner.pages)
        owner.pages = []

    def _remember(self, sequence: Sequence, first_new: int) -> None:
        """Make pages that became full since token `first_new` findable."""
        if not self.pages.reuse:
            return
        size = self.pages.page_size
        for index in range(first_new // size, sequence.num_computed // size):
            self.pages.remember(sequence.pages[index], sequence.hash_of_page(index, size))

    # Stages.

    def _mark_stages(self, batch: Batch, encoding: Collection[bytes], now: float) -> None:
        for key in (*batch.encode, *filter(self.clips.is_pending, encoding)):
            for sequence in self.clips.waiters(key):
                self._enter(sequence, Stage.ENCODING, now)
        for chunk in batch.prefills:
            for sequence in self._readers(chunk.owner):
                self._enter(sequence, Stage.PREFILLING, now)

    def _readers(self, owner: Owner) -> list[Sequence]:
        """Whose prefill this is; an instruction read before the clip is encoded counts for nobody."""
        if isinstance(owner, Sequence):
            return [owner]
        waiters = self.scales.waiters(owner.instruction_key)
        return [s for s in waiters if not s.prompt.audio_key or self.clips.is_ready(s.prompt.audio_key)]

    def _enter(self, sequence: Sequence, stage: Stage, now: float) -> None:
        if not sequence.started:
            sequence.timeline.started = now
            self._waiting_audio_s -= sequence.audio_seconds
        if sequence.stage is not stage and sequence.stage is not Stage.GENERATING:
            sequence.stage = stage
            self._stage_changes.append((sequence, stage))

    def enter_generating(self, sequence: Sequence, now: float) -> None:
        """The first answer token is there."""
        self._enter(sequence, Stage.GENERATING, now)

    def check_integrity(self) -> None:
        """Recount pages, references and sets. Raises AssertionError on any difference."""
        tables = [s.pages for s in self._live.values()] + [p.pages for p in self._passes.values()]
        self.pages.check_integrity(tables)
        active = self._active.values()
        self.clips.check_integrity(sum(bool(s.prompt.audio_key) for s in active))
        self.scales.check_integrity(sum(bool(s.instruction_key) for s in active))
        assert all(s.order in self._running for s in self._live.values() if s.pages), "pages without a place"
        assert set(self._passes) == set(self.scales.pending), "adapter passes differ from pending scales"
        if not self._live:
            left_over = (len(self._running), len(self._active), self.pages.num_used)
            assert left_over == (0, 0, 0), f"left over when idle: {left_over}"
