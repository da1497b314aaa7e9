"""Carries out a batch: the only place where lists become tensors. Holds tensors, decides nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.fused_llama import FusedLlama
from model.llama import DecodeRows, FlatBatch, PrefillSpan
from model.pieces import Pieces
from model.sampling import SamplingRow, is_looping, sample
from model.speech_llm import SpeechLLM
from server.engine.decode_graph import DecodeGraphs, DecodeRow
from server.engine.scheduler import Chunk, Scheduler
from server.engine.sequence import AdapterPass, Sequence
from server.types import EncoderRun

Waveform = npt.NDArray[np.float32]
FORGET = 0.9
"""A piece is expected to last this share of the one before at least: a single hiccup is soon forgotten."""
PIECES_AHEAD = 2
"""Pieces of an encoder pass that a GPU has still to compute when the host goes on to the next."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads that torch computes with on a CPU. prefill: of forwards with a prompt in them."""

    encode: int
    prefill: int
    decode: int

    @classmethod
    def all_of(cls, count: int) -> Threads:
        """So many for everything."""
        return cls(count, count, count)


@dataclass(slots=True)
class PieceClock:
    """How long a piece of one encoder pass may last: as long as the longest before, by and by forgotten."""

    longest_s: float = 0.0

    def note(self, seconds: float) -> None:
        """One more piece."""
        self.longest_s = max(seconds, FORGET * self.longest_s)


@dataclass(slots=True)
class Results:
    """What one forward gave: the next token of each sequence that reached its end."""

    tokens: dict[Sequence, int] = field(default_factory=dict)
    broken: list[Sequence] = field(default_factory=list)


class Runner:
    """Runs the model on what the scheduler picked, and keeps the tensors that requests share.

    Tensors live under keys: clips (audio embeddings [n, D]) under the waveform's hash, scales [D] under the
    instruction's hash. Every method belongs to the engine's thread.

    fused: the decoder's kernels; None for plain torch, where there are none. threads: None for torch's own.
    """

    def __init__(
        self,
        model: SpeechLLM,
        num_pages: int,
        page_size: int,
        fused: FusedLlama | None = None,
        threads: Threads | None = None,
    ) -> None:
        self.model = model
        self.fused = fused
        self.graphs: DecodeGraphs | None = None
        # The page after the last is nobody's: rows that pad a captured step write there.
        self.cache = model.new_cache(num_pages + (fused is not None and fused.is_for_graphs), page_size)
        self.threads = threads or Threads.all_of(torch.get_num_threads())
        self._encoder_runs: list[EncoderRun] = []
        self._clips: dict[bytes, Tensor] = {}
        self._scales: dict[bytes, Tensor] = {}
        self._no_scale = torch.zeros(model.config.llama.hidden_size, dtype=model.dtype, device=model.device)

    def prepare_decodes(self, max_rows: int) -> None:
        """From now on steps that decode alone, up to `max_rows` sequences, are prepared ones: captured graphs
        on a CUDA device. Nothing changes elsewhere.
        """
        if self.fused is None or not self.fused.is_for_graphs:
            return
        suppressed = self.model.config.llama.suppress_token_ids
        scratch = self.cache.num_pages - 1
        self.graphs = DecodeGraphs(self.fused, self.cache, scratch, max_rows, suppressed)
        if self.model.device.type == "cuda":
            self.graphs.capture()

    def encoding(self, clips: Mapping[bytes, Waveform]) -> Pieces[dict[bytes, Tensor]]:
        """Waveforms [T] float32 at 16 kHz -> their embeddings [n, D], in one batch, piece by piece."""
        encoder = self.model.audio_encoder
        features = []
        for wave in clips.values():
            features.append(self.model.clip_features(torch.from_numpy(wave)))
            yield
        whisper = yield from self._timed("whisper", encoder.encode_whisper(features))
        wavlm = yield from self._timed("wavlm", encoder.encode_wavlm(features))
        fused = [encoder.fuse(*pair) for pair in zip(whisper, wavlm, strict=True)]
        self._synchronize()
        return dict(zip(clips, fused, strict=True))

    @torch.inference_mode()
    def advance(
        self, encoding: Pieces[dict[bytes, Tensor]], budget_s: float, clock: PieceClock
    ) -> dict[bytes, Tensor] | None:
        """Go on with a pass until its next piece would end past the budget. Returns its result at the end.

        At least one piece is computed. clock: of this pass.
        """
        _use_threads(self.threads.encode)
        begin = now = time.perf_counter()
        while now == begin or now - begin + clock.longest_s <= budget_s:
            try:
                next(encoding)
            except StopIteration as end:
                embeddings: dict[bytes, Tensor] = end.value
                return embeddings
            before, now = now, time.perf_counter()
            clock.note(now - before)
        return None

    def keep_clip(self, key: bytes, embeddings: Tensor) -> None:
        """Embeddings [n, D] of a clip, until it is forgotten."""
        self._clips[key] = embeddings

    def _timed(self, branch: str, pieces: Pieces[list[Tensor]]) -> Pieces[list[Tensor]]:
        """The same pieces; their time is told as one run of `branch`.

        On a GPU the host runs a few pieces ahead, or the device would wait for it after each.
        """
        seconds = 0.0
        under_way: deque[torch.cuda.Event] = deque()
        while True:
            begin = time.perf_counter()
            try:
                next(pieces)
            except StopIteration as end:
                result: list[Tensor] = end.value
                self._synchronize()
                seconds += time.perf_counter() - begin
                self._encoder_runs.append(EncoderRun(branch, seconds, len(result)))
                return result
            if self.model.device.type == "cuda":
                under_way.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
                under_way[-1].record()
                if len(under_way) > PIECES_AHEAD:
                    under_way.popleft().synchronize()
            seconds += time.perf_counter() - begin
            yield

    def forget(self, clips: Rows[bytes], scales: Rows[bytes]) -> None:
        """Drop tensors that the scheduler evicted."""
        for key in clips:
            del self._clips[key]
        for key in scales:
            del self._scales[key]

    def forget_scale(self, instruction: bytes) -> None:
        """Drop a scale that a failed forward may have left."""
        self._scales.pop(instruction, None)

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        return self.model.config.llama.eos_token_id

    def take_encoder_runs(self) -> tuple[EncoderRun, ...]:
        """Encoder passes since the last call."""
        runs, self._encoder_runs = tuple(self._encoder_runs), []
        return runs

    def close(self) -> None:
        """Drop all tensors but the model's."""
        self._clips.clear()
        self._scales.clear()
        self.graphs = None
        del self.cache

    @staticmethod
    def is_fatal(error: Exception) -> bool:
        """Whether the device's context is lost, so that no retry in this process can succeed."""
        return isinstance(error, torch.AcceleratorError)

    def check_integrity(self, scheduler: Scheduler) -> None:
        """Tensors here and results known to the scheduler are the same. Raises AssertionError."""
        assert set(self._clips) == scheduler.clips.ready, "clips differ"
        assert set(self._scales) == scheduler.scales.ready, "scales differ"

    @torch.inference_mode()
    def forward(self, prefills: Rows[Chunk], decodes: Rows[Sequence]) -> Results:
        """One forward over chunks and decoding rows, then one sampling over the rows that need a token.

        A finished adapter pass leaves its scale under its instruction's key.
        """
        if self.graphs is not None and not prefills and len(decodes) <= self.graphs.max_rows:
            return self._decode(self.graphs, decodes)
        if self.fused is None:  # its kernels read no slot before it is written
            self.cache.clear(self._index(self._new_pages(prefills, decodes)))
        _use_threads(self.threads.prefill if prefills else self.threads.decode)
        batch, ends = self._flatten(prefills, decodes)
        hidden = (self.fused.forward if self.fused is not None else self.model)(batch, self.cache)
        self._keep_passes(prefills, hidden)
        return self._sample(hidden, ends)

    def _decode(self, graphs: DecodeGraphs, decodes: Rows[Sequence]) -> Results:
        """One prepared step. Its greedy choice is made on the device; who draws gets the logits."""
        rows = [DecodeRow(s.generated[-1], len(s) - 1, s.pages, self._scale_of(s)) for s in decodes]
        tokens, logits = graphs.step(rows)
        finite = [token >= 0 for token in tokens]
        if any(sequence.sampling.temperature > 0 for sequence in decodes):
            tokens = sample(logits, [self._sampling_row(sequence) for sequence in decodes])
        return self._settle(decodes, tokens, finite)

    # Lists to tensors.

    def _flatten(
        self, prefills: Rows[Chunk], decodes: Rows[Sequence]
    ) -> tuple[FlatBatch, dict[Sequence, int]]:
        """The flat batch, and the row of every sequence whose next token is wanted."""
        embeddings: list[Tensor] = []
        scales: list[Tensor] = []
        positions: list[int] = []
        slots: list[int] = []
        spans: list[PrefillSpan] = []
        ends: dict[Sequence, int] = {}
        for chunk in prefills:
            owner, count = chunk.owner, chunk.stop - chunk.start
            spans.append(self._span(chunk, len(positions)))
            embeddings += self._embed(chunk)
            scales.append(self._scale_of(owner).expand(count, -1))
            positions += range(chunk.start, chunk.stop)
            slots += self._slots(owner.pages, chunk.start, chunk.stop)
            if isinstance(owner, Sequence) and chunk.completes:
                ends[owner] = len(positions) - 1
        first_decode = len(positions)
        for sequence in decodes:
            ends[sequence] = len(positions)
            positions.append(len(sequence) - 1)
            slots += self._slots(sequence.pages, len(sequence) - 1, len(sequence))
        if decodes:
            embeddings.append(self.model.embed_tokens(self._index([s.generated[-1] for s in decodes])))
            scales.append(torch.stack([self._scale_of(sequence) for sequence in decodes]))
        batch = FlatBatch(
            embeddings=torch.cat(embeddings),
            positions=self._index(positions),
            slots=self._index(slots),
            scale=torch.cat(scales),
            prefills=tuple(spans),
            decodes=self._decode_rows(decodes, first_decode) if decodes else None,
        )
        return batch, ends

    def _span(self, chunk: Chunk, row: int) -> PrefillSpan:
        pages = chunk.owner.pages[: -(-chunk.stop // self.cache.page_size)]
        return PrefillSpan(row, row + chunk.stop - chunk.start, self._index(pages), chunk.stop)

    def _decode_rows(self, decodes: Rows[Sequence], first: int) -> DecodeRows:
        width = max(len(sequence.pages) for sequence in decodes)
        tables = [s.pages + s.pages[:1] * (width - len(s.pages)) for s in decodes]
        contexts = [len(sequence) for sequence in decodes]
        return DecodeRows(first, self._index(tables), self._index(contexts))

    def _embed(self, chunk: Chunk) -> list[Tensor]:
        """Embeddings of the chunk's tokens in up to three pieces: text, audio, text."""
        owner, start, stop = chunk.owner, chunk.start, chunk.stop
        if isinstance(owner, AdapterPass):
            return [self.model.embed_tokens(self._index(owner.ids[start:stop]))]
        first, last = owner.prompt.audio_span
        pieces = []
        for low, high in ((start, min(stop, first)), (max(start, last), stop)):
            ids = [owner.token_at(position) for position in range(low, high)]
            pieces.append(self.model.embed_tokens(self._index(ids)))
        low, high = max(start, first), min(stop, last)
        if low < high:
            pieces.insert(1, self._clips[owner.prompt.audio_key][low - first : high - first])
        return pieces

    def _scale_of(self, owner: Sequence | AdapterPass) -> Tensor:
        """[D]; zero for an adapter pass and for a request without audio."""
        if isinstance(owner, AdapterPass) or not owner.instruction_key:
            return self._no_scale
        return self._scales[owner.instruction_key]

    def _new_pages(self, prefills: Rows[Chunk], decodes: Rows[Sequence]) -> list[int]:
        """Pages that this forward is the first to write to for their owner."""
        size = self.cache.page_size
        spans = [(chunk.owner.pages, chunk.start, chunk.stop) for chunk in prefills]
        spans += [(sequence.pages, len(sequence) - 1, len(sequence)) for sequence in decodes]
        return [page for pages, start, stop in spans for page in pages[-(-start // size) : -(-stop // size)]]

    def _slots(self, pages: list[int], start: int, stop: int) -> list[int]:
        size = self.cache.page_size
        return [pages[position // size] * size + position % size for position in range(start, stop)]

    def _index(self, values: Rows[int] | Rows[Rows[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)

    # Tensors to lists.

    def _keep_passes(self, prefills: Rows[Chunk], hidden: Tensor) -> None:
        """Gather adapter passes' hidden states; a finished one becomes its instruction's scale."""
        row = 0
        for chunk in prefills:
            rows = hidden[row : row + chunk.stop - chunk.start]
            row += len(rows)
            if not isinstance(chunk.owner, AdapterPass):
                continue
            gathered = chunk.owner.gathered
            if chunk.start == 0:
                gathered.clear()
            gathered[chunk.start] = rows
            if chunk.completes:
                states = torch.cat(list(gathered.values()))
                self._scales[chunk.owner.instruction_key] = self.model.scale_from_hidden(states)

    def _sample(self, hidden: Tensor, ends: dict[Sequence, int]) -> Results:
        """Next tokens of the sequences whose last rows are `ends`."""
        if not ends:
            return Results()
        logits = (self.fused or self.model).logits(hidden[self._index(list(ends.values()))])
        finite = logits.isfinite().all(dim=-1)
        tokens = sample(logits, [self._sampling_row(sequence) for sequence in ends])
        return self._settle(list(ends), tokens, finite.tolist())

    def _settle(self, sequences: Rows[Sequence], tokens: Rows[int], finite: Rows[bool]) -> Results:
        """The sampled tokens, or EOS where an answer loops; without finite logits there is none."""
        results = Results()
        for sequence, token, good in zip(sequences, tokens, finite, strict=True):
            if good:
                looping = is_looping(sequence.generated, self.model.config.generation)
                results.tokens[sequence] = self.eos_id if looping else token
            else:
                results.broken.append(sequence)
        return results

    def _sampling_row(self, sequence: Sequence) -> SamplingRow:
        """The published search never takes the suppressed ids, nor EOS as the first token."""
        config, sampling = self.model.config.llama, sequence.sampling
        position = len(sequence.generated)
        banned = config.suppress_token_ids + (() if position else (config.eos_token_id,))
        return SamplingRow(
            sampling.temperature, sampling.top_k, sampling.top_p, sequence.seed, position, banned
        )

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def _use_threads(count: int) -> None:
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
