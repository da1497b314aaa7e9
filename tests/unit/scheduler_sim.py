"""A scheduler with a make-believe runner, which knows what every cache slot ought to hold.

The value of a token's slot is a digest of all that its keys and values depend on: the instruction (it sets
the LoRA) and every token up to it. So a page that is matched, kept or reused wrongly is seen at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from server.engine.pages import PagePool
from server.engine.result_cache import ResultCache
from server.engine.scheduler import Batch, Chunk, Owner, Scheduler, SchedulerLimits
from server.engine.sequence import AdapterPass, Phase, PromptTokens, Sequence, Timeline
from server.types import SamplingParams, Stage

EOS = 2
NEVER = float("inf")
STAGE_ORDER = [Stage.QUEUED, Stage.ENCODING, Stage.PREFILLING, Stage.GENERATING]


@dataclass(frozen=True)
class Sizes:
    """Room of one simulated engine."""

    num_pages: int = 64
    page_size: int = 4
    max_batch_size: int = 4
    max_batch_tokens: int = 32
    encode_seconds: float = 30.0
    prefill_beside: int | None = None
    clip_cost: int = 10**6
    scale_cost: int = 10**6
    reuse: bool = True

    @property
    def max_context(self) -> int:
        """Tokens that one sequence may have; the intake refuses more."""
        return self.num_pages * self.page_size


def make_sequence(
    order: int,
    left: tuple[int, ...] = (1, 10, 11),
    right: tuple[int, ...] = (1, 20, 21),
    clip: int | None = 0,
    adapter: tuple[int, ...] = (5, 6),
    max_tokens: int = 4,
    seconds: float = 30.0,
    **fields: object,
) -> Sequence:
    """A request as the intake makes it. Clip i has i + 1 audio tokens."""
    audio_key = b"" if clip is None else bytes([clip]) * 32
    num_audio = 0 if clip is None else clip + 1
    prompt = PromptTokens(left, right, num_audio, audio_key, () if clip is None else adapter)
    length = 0.0 if clip is None else seconds
    return Sequence(
        request_id=f"r{order}",
        order=order,
        prompt=prompt,
        sampling=SamplingParams(max_tokens=max_tokens),
        max_tokens=max_tokens,
        seed=0,
        timeline=Timeline(submitted=1.0),
        instruction_key=prompt.instruction_key,
        audio_seconds=length,
        encode_seconds=length,
        **fields,  # type: ignore[arg-type]
    )


def values(owner: Owner, stop: int) -> list[bytes]:
    """What the cache ought to hold for tokens 0:stop of `owner`."""
    if isinstance(owner, AdapterPass):
        content = [b"pass" + bytes([token]) for token in owner.ids[:stop]]
        chain = b"off"
    else:
        content = [_content(owner, position) for position in range(stop)]
        chain = b"on" + owner.instruction_key
    found = []
    for item in content:
        chain = hashlib.blake2b(chain + item, digest_size=8).digest()
        found.append(chain)
    return found


def _content(sequence: Sequence, position: int) -> bytes:
    first, last = sequence.prompt.audio_span
    if first <= position < last:
        return b"audio" + sequence.prompt.audio_key + bytes([position - first])
    return b"text" + bytes([sequence.token_at(position)])


@dataclass
class Simulation:
    """Steps the scheduler as the core does, and checks every batch before it is carried out."""

    sizes: Sizes
    now: float = 1.0
    num_steps: int = 0
    finished: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    first_work: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = self.sizes
        self.scheduler = Scheduler(
            SchedulerLimits(
                sizes.max_batch_size, sizes.max_batch_tokens, sizes.encode_seconds, sizes.prefill_beside
            ),
            PagePool(sizes.num_pages, sizes.page_size, reuse=sizes.reuse),
            clips=ResultCache[Sequence](sizes.clip_cost),
            scales=ResultCache[Sequence](sizes.scale_cost),
        )
        self.slots: dict[tuple[int, int], bytes] = {}
        self.clips: set[bytes] = set()
        self.scales: set[bytes] = set()
        self.stages: dict[str, Stage] = {}

    def step(self, failing_clip: bytes | None = None) -> Batch:
        """One turn of the engine. failing_clip: the encoder fails on it, so its requests end."""
        self.now += 1.0
        self.num_steps += 1
        scheduler = self.scheduler
        for sequence in scheduler.expired(self.now):
            self.end(sequence, "expired")
        batch = scheduler.schedule(self.now)
        assert batch or not scheduler.has_work, "nothing to do for live requests"
        self.check_batch(batch)
        self._encode(batch, failing_clip)
        batch.prefills = [c for c in batch.prefills if c.owner.pages]
        self._compute(batch)
        self._forget(*scheduler.evict())
        self._take_stages()
        self.check()
        return batch

    def run_dry(self, max_steps: int) -> None:
        """Step until nothing is live."""
        begun = self.num_steps
        while self.scheduler.has_work:
            assert self.num_steps - begun < max_steps, "livelock"
            self.step()

    def end(self, sequence: Sequence, how: str) -> None:
        """As the core ends a request."""
        self.scheduler.end(sequence)
        self.finished[sequence.request_id] = how
        self.answers[sequence.request_id] = sequence.generated

    def check(self) -> None:
        """Books, and results known to the scheduler against those that the runner holds."""
        self.scheduler.check_integrity()
        assert self.scheduler.clips.ready == self.clips
        assert self.scheduler.scales.ready == self.scales
        assert self.scheduler.num_running <= self.sizes.max_batch_size

    def check_batch(self, batch: Batch) -> None:
        """Whether the runner could carry it out, and whether it keeps within the limits."""
        owners = [chunk.owner for chunk in batch.prefills] + batch.decodes
        assert len({id(owner) for owner in owners}) == len(owners), "one owner twice in a batch"
        for chunk in batch.prefills:
            assert chunk.owner.num_computed == chunk.start < chunk.stop <= len(chunk.owner)
            assert len(chunk.owner.pages) * self.sizes.page_size >= chunk.stop
        for sequence in batch.decodes:
            assert sequence.phase is Phase.DECODE
            assert sequence.num_computed == len(sequence) - 1
            assert len(sequence.pages) * self.sizes.page_size >= len(sequence)
        holders = [*self.scheduler._running.values(), *self.scheduler._passes.values()]
        oldest = min(holders, key=lambda owner: owner.order, default=None)
        assert oldest is None or oldest in owners, "the oldest that has a place must make progress"
        rows = sum(c.stop - c.start for c in batch.prefills) + len(batch.decodes)
        assert rows <= self.sizes.max_batch_tokens
        if batch.decodes and self.sizes.prefill_beside is not None:
            assert rows - len(batch.decodes) <= self.sizes.prefill_beside, "answers wait for a prefill"
        seconds = [self.scheduler.clips.waiters(key)[0].encode_seconds for key in batch.encode]
        assert len(seconds) <= 1 or sum(seconds) <= self.sizes.encode_seconds

    def _encode(self, batch: Batch, failing: bytes | None) -> None:
        for key in batch.encode:
            assert key not in self.clips, "encoded twice"
            if key == failing:
                for sequence in self.scheduler.clips.waiters(key):
                    self.end(sequence, "failed")
                continue
            self.clips.add(key)
            self.scheduler.commit_clip(key)

    def _compute(self, batch: Batch) -> None:
        """Write all rows' slots, then check all that attention reads, then commit."""
        spans = [(c.owner, c.start, c.stop) for c in batch.prefills]
        spans += [(s, len(s) - 1, len(s)) for s in batch.decodes]
        for owner, start, stop in spans:
            self._check_inputs(owner)
            expected = values(owner, stop)
            for position in range(start, stop):
                self.slots[self._slot(owner, position)] = expected[position]
        for owner, _, stop in spans:
            read = [self.slots.get(self._slot(owner, position)) for position in range(stop)]
            assert read == values(owner, stop), "attention would read another request's tokens"
        self._commit(batch)

    def _check_inputs(self, owner: Owner) -> None:
        if isinstance(owner, Sequence):
            assert not owner.prompt.audio_key or owner.prompt.audio_key in self.clips
            assert not owner.instruction_key or owner.instruction_key in self.scales

    def _commit(self, batch: Batch) -> None:
        done = [c.owner for c in batch.prefills if isinstance(c.owner, Sequence) and c.completes]
        for chunk in batch.prefills:
            self._commit_chunk(chunk)
        for sequence in [*done, *batch.decodes]:
            if not sequence.generated:
                self.scheduler.enter_generating(sequence, self.now)
            reason = self.scheduler.commit_token(sequence, next_token(sequence), EOS)
            if reason is not None:
                self.end(sequence, reason)

    def _commit_chunk(self, chunk: Chunk) -> None:
        if isinstance(chunk.owner, AdapterPass) and chunk.completes:
            self.scales.add(chunk.owner.instruction_key)
        self.scheduler.commit_chunk(chunk)

    def _slot(self, owner: Owner, position: int) -> tuple[int, int]:
        size = self.sizes.page_size
        return owner.pages[position // size], position % size

    def _forget(self, clips: list[bytes], scales: list[bytes]) -> None:
        self.clips -= set(clips)
        self.scales -= set(scales)

    def _take_stages(self) -> None:
        for sequence, stage in self.scheduler.take_stage_changes():
            before = self.stages.get(sequence.request_id)
            if before is None:
                self.first_work.append(sequence.order)
            assert STAGE_ORDER.index(stage) > STAGE_ORDER.index(before or Stage.QUEUED), "stages go forward"
            self.stages[sequence.request_id] = stage


def next_token(sequence: Sequence) -> int:
    """What a model would answer: it depends on all tokens before, and now and then it is EOS."""
    digest = values(sequence, len(sequence))[-1]
    return EOS if sequence.generated and digest[0] < 40 else 3 + digest[1] % 3
