"""What the scheduler itself costs in a step, without a model: sequences that decode, and a queue behind them.

    python -m benchmarks.scheduling [--repetitions 5] [--output FOLDER]

The step is the core's: schedule, commit each sequence's token, evict, take the stages. Contexts go from 200
tokens on, so that pages are allocated and hashed as in serving.
"""

from __future__ import annotations

import itertools
import time

from benchmarks import command, record
from benchmarks.peers.targets import Outcome, Target
from server.engine.pages import PagePool
from server.engine.result_cache import ResultCache
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.sequence import PromptTokens, Sequence, Timeline
from server.types import SamplingParams

SEED = 4
REPETITIONS = 5
NUM_RUNNING = 256
NUM_STEPS = 200
"""Of one repetition; their mean is its figure, for every sixteenth step of a sequence takes a page."""
PROMPT_TOKENS = 200
PAGE_SIZE = 16
EOS, WORD = 2, 7
STEP_MS = Target(f"ms of the scheduler's own in a step with {NUM_RUNNING} running", 1.0, False)


class Scheduling:
    """A scheduler with so many sequences that decode and so many that wait, and what steps it."""

    def __init__(self, num_running: int, num_waiting: int = 0) -> None:
        longest = PROMPT_TOKENS + 2 * NUM_STEPS
        self._orders = itertools.count()
        self.scheduler = Scheduler(
            SchedulerLimits(num_running, num_running * PROMPT_TOKENS + 1),
            PagePool(num_running * -(-longest // PAGE_SIZE), PAGE_SIZE, reuse=True),
            clips=ResultCache[Sequence](10**9),
            scales=ResultCache[Sequence](4096),
        )
        for _ in range(num_running):
            self.scheduler.add(self._sequence())
        while self.step() < num_running:
            continue
        for _ in range(num_waiting):
            self.scheduler.add(self._sequence())
        self.step()  # moves the head of the queue into the active window

    def step(self) -> int:
        """Everything that the core asks of the scheduler in one step; the number of tokens committed."""
        scheduler, now = self.scheduler, time.monotonic()
        scheduler.expired(now)
        batch = scheduler.schedule(now)
        scheduler.take_stage_changes()
        for key in batch.encode:
            scheduler.commit_clip(key)
        for chunk in batch.prefills:
            scheduler.commit_chunk(chunk)
        ends = [c.owner for c in batch.prefills if isinstance(c.owner, Sequence) and c.completes]
        for sequence in ends:
            scheduler.enter_generating(sequence, now)
        for sequence in (*ends, *batch.decodes):
            scheduler.commit_token(sequence, WORD, EOS)
        scheduler.evict()
        return len(ends) + len(batch.decodes)

    def step_ms(self) -> float:
        """The mean of NUM_STEPS steps, in time of this thread alone: what else runs is no cost of ours."""
        begin = time.thread_time()
        for _ in range(NUM_STEPS):
            self.step()
        return 1e3 * (time.thread_time() - begin) / NUM_STEPS

    def _sequence(self) -> Sequence:
        """A question of its own about a clip of its own."""
        order = next(self._orders)
        clip, adapter = order.to_bytes(32, "little"), (order, 5, 6)
        prompt = PromptTokens((1,) * 50, (1,) * 25, PROMPT_TOKENS - 75, clip, adapter)
        return Sequence(
            request_id=f"r{order}",
            order=order,
            prompt=prompt,
            sampling=SamplingParams(10**6),
            max_tokens=10**6,
            seed=0,
            timeline=Timeline(submitted=time.monotonic()),
            instruction_key=prompt.instruction_key,
            audio_seconds=10.0,
            encode_seconds=30.0,
        )


def scheduling(repetitions: int = REPETITIONS) -> Outcome:
    """The cost at 256 running, new sequences in each repetition."""
    reached = {STEP_MS: record.Spread.of([Scheduling(NUM_RUNNING).step_ms() for _ in range(repetitions)])}
    return command.outcome_of("scheduling", SEED, reached, {}, num_steps=NUM_STEPS)


if __name__ == "__main__":
    command.run(__doc__, "scheduling", scheduling, REPETITIONS)
