"""State of one request inside the engine. Plain Python; only the engine's thread touches it."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import Any

from server.engine.pages import next_hash
from server.types import SamplingParams, Stage


class Phase(enum.Enum):
    """WAITING for its clip or scale -> PREFILL -> DECODE -> ENDED. Preemption leads back to PREFILL."""

    WAITING = enum.auto()
    PREFILL = enum.auto()
    DECODE = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A request's prompt as token positions.

    left_ids, right_ids: token ids around the audio. num_audio: audio embeddings between them.
    audio_key: identifies the clip, b"" without one.
    adapter_ids: what the prompt adapter reads of the instruction; empty where the LoRA is off.
    """

    left_ids: tuple[int, ...]
    right_ids: tuple[int, ...]
    num_audio: int
    audio_key: bytes
    adapter_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.left_ids) + self.num_audio + len(self.right_ids)

    @property
    def audio_span(self) -> tuple[int, int]:
        """First position of the audio and the one after its last."""
        return len(self.left_ids), len(self.left_ids) + self.num_audio

    @property
    def instruction_key(self) -> bytes:
        """Identifies the instruction, hence the LoRA's scale; b"" where the LoRA is off."""
        if not self.adapter_ids:
            return b""
        return hashlib.blake2b(repr(self.adapter_ids).encode(), digest_size=16).digest()

    def token_at(self, position: int) -> int:
        """Id at a text position of the prompt."""
        start, stop = self.audio_span
        return self.left_ids[position] if position < start else self.right_ids[position - stop]

    def content_at(self, position: int) -> bytes:
        """What identifies the token at `position` for prefix hashes."""
        start, stop = self.audio_span
        if start <= position < stop:
            return self.audio_key + (position - start).to_bytes(4, "little")
        return self.token_at(position).to_bytes(4, "little")


@dataclass(slots=True)
class Timeline:
    """Monotonic times, in seconds; 0.0 where it has not happened."""

    submitted: float
    started: float = 0.0
    first_token: float = 0.0
    encode_s: float = 0.0


@dataclass(slots=True, eq=False)
class Sequence:
    """One request: its prompt, what it has generated, the pages it holds.

    order: position in the order of arrival; decides who goes first and who gives way.
    audio_seconds: length of its clip. encode_seconds: the same in whole encoder windows, what encoding costs.
    num_computed: tokens whose keys and values are in the cache. pages: its block table.
    num_cached: prompt tokens that it found in the cache when it first began.
    """

    request_id: str
    order: int
    prompt: PromptTokens
    sampling: SamplingParams
    max_tokens: int
    seed: int
    timeline: Timeline
    instruction_key: bytes
    audio_seconds: float = 0.0
    encode_seconds: float = 0.0
    deadline: float = float("inf")
    queue_deadline: float = float("inf")
    phase: Phase = Phase.WAITING
    stage: Stage = Stage.QUEUED
    generated: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int | None = None

    def __len__(self) -> int:
        """Prompt and generated tokens."""
        return len(self.prompt) + len(self.generated)

    @property
    def started(self) -> bool:
        """Whether anything has been computed for it."""
        return self.timeline.started > 0.0

    def token_at(self, position: int) -> int:
        """Id at a text position of prompt or answer."""
        prompt = len(self.prompt)
        return self.generated[position - prompt] if position >= prompt else self.prompt.token_at(position)

    def hash_of_page(self, index: int, page_size: int) -> bytes:
        """Chained hash of the full page `index`; the ones before it are computed and kept on the way.

        The chain starts from the instruction: it sets the LoRA, on which every key and value depends.
        """
        while len(self.page_hashes) <= index:
            start = len(self.page_hashes) * page_size
            content = [self._content_at(position) for position in range(start, start + page_size)]
            parent = self.page_hashes[-1] if self.page_hashes else b"kv" + self.instruction_key
            self.page_hashes.append(next_hash(parent, content))
        return self.page_hashes[index]

    def _content_at(self, position: int) -> bytes:
        if position < len(self.prompt):
            return self.prompt.content_at(position)
        return self.generated[position - len(self.prompt)].to_bytes(4, "little")


@dataclass(slots=True, eq=False)
class AdapterPass:
    """The prompt adapter's pass over one instruction: a prefill with the LoRA off, whose KV is thrown away.

    order: that of the oldest request that needs it. gathered: the hidden states so far by the position of
    their first token, so that a chunk computed again replaces itself; kept here by the runner so that they
    go when the pass goes, nobody else looks at them.
    """

    instruction_key: bytes
    order: int
    ids: tuple[int, ...]
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    gathered: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)
