"""Every target on a CPU, measured anew, a line each: met, missed, or not measured, which is as bad.

    python -m benchmarks.check [NAME ...] [--repetitions 3] [--output FOLDER]

Each check runs in a process of its own, one after another. Rows go to the folder as from the single commands.
Exits with 1 unless all targets are met; with names it checks those alone, and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import memory, record, scheduling, sizes, stalls, startup
from benchmarks.command import Measure, exit_at_sigterm
from benchmarks.decoders import command as decoders
from benchmarks.decoders import workloads
from benchmarks.decoders.peers import PEERS
from benchmarks.floor import targets as floors
from benchmarks.floor.measure import floor
from benchmarks.peers import command as peers
from benchmarks.peers import targets as beside
from benchmarks.peers.arms import note
from benchmarks.peers.targets import Outcome, Target
from benchmarks.peers.waiting import restart_passive

MIN_REPETITIONS = 3
IMPORTED = ["benchmarks.decoders.workloads", "benchmarks.floor.measure", "benchmarks.peers.workloads"]
"""What takes long to import; the others need no more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """measure: can be pickled, for it runs in another process. targets: all that it has to reach.

    results: its rows go to the file of this name.
    """

    name: str
    results: str
    measure: Measure
    targets: tuple[Target, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One target. spread: None where it was not measured; `why` tells then."""

    target: Target
    spread: record.Spread | None
    why: str = ""

    @property
    def is_met(self) -> bool:
        """Measured often enough, and within its bound."""
        return self.spread is not None and not self.why and self.target.is_met(self.spread)

    def __str__(self) -> str:
        if self.why:
            return f"NOT MEASURED  {self.target}: {self.why}"
        return f"{'met' if self.is_met else 'MISSED':12}  {self.target}: {self.spread}"


@dataclasses.dataclass(frozen=True, slots=True)
class OnMiddle:
    """A measurement of any model, of the middle size. measure: takes a directory and repetitions first."""

    measure: Callable[..., Outcome]

    def __call__(self, repetitions: int) -> Outcome:
        """Measure; the model is made at first use."""
        return self.measure(sizes.open_size("middle"), repetitions)


WORKLOADS = {
    "requests": (
        beside.DECODE,
        beside.FOUR_OVER_SCRIPT,
        beside.ONE_OVER_SCRIPT,
        beside.OVER_BATCHES,
        beside.OVER_LITSERVE,
        beside.TTFT_OVER_LITSERVE,
    ),
    "reuse": (beside.SECOND_QUESTION, beside.PROMPT_PASSES, beside.LAST_BLOCK),
    "transport": (beside.HTTP_ADDS, beside.GRPC_ADDS),
}
"""Each workload's targets."""
CHECKS = (
    Check("scheduling", "scheduling", scheduling.scheduling, (scheduling.STEP_MS,)),
    Check("startup", "startup", startup.startup, (startup.READY_S,)),
    Check(
        "floor",
        "floor",
        OnMiddle(partial(floor, batches=(1,))),
        (*floors.FLOORS.values(), *floors.STOCKS.values()),
    ),
    Check("stalls", "stalls", OnMiddle(stalls.stalls), (stalls.P99_GAP,)),
    *(
        Check(name, peers.RESULTS, OnMiddle(peers.WORKLOADS[name].measure), targets)
        for name, targets in WORKLOADS.items()
    ),
    Check("memory", "memory", memory.memory, (memory.GROWTH,)),
    Check(
        "decoders",
        decoders.RESULTS,
        OnMiddle(workloads.reach),
        tuple(target for peer in PEERS.values() for target in peer.targets.values()),
    ),
)


def lines_of(check: Check, measured: Outcome | BaseException, repetitions: int) -> list[Line]:
    """A line for each target of a check, whatever became of it."""
    if isinstance(measured, BaseException):
        why = " ".join(f"{type(measured).__name__}: {measured}".split())
        return [Line(target, None, why) for target in check.targets]
    return [_line(target, measured.reached, repetitions) for target in check.targets]


def _line(target: Target, reached: Mapping[Target, record.Spread], repetitions: int) -> Line:
    spread = reached.get(target)
    if spread is None:
        return Line(target, None, "the workload left it out")
    if spread.count < repetitions:
        return Line(target, spread, f"{spread.count} repetitions, not {repetitions}")
    return Line(target, spread)


def in_a_process(measure: Measure, repetitions: int) -> Outcome:
    """In one of its own: threads, memory and caches are as for the first.

    It is forked from a process that has done nothing but import, which takes 6 s. It ends when this process
    is told to end. Raises what it raises, or BrokenProcessPool if it dies.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with ProcessPoolExecutor(1, context, initializer=exit_at_sigterm) as process:
        try:
            return process.submit(measure, repetitions).result()
        except (KeyboardInterrupt, SystemExit):
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def run(
    checks: Sequence[Check],
    repetitions: int,
    folder: Path,
    apart: Callable[[Measure, int], Outcome] = in_a_process,
) -> Iterator[Line]:
    """Measure one after another; lines as they come. apart: calls a measurement."""
    for check in checks:
        begin = time.monotonic()
        try:
            measured: Outcome | BaseException = apart(check.measure, repetitions)
        except Exception as error:  # noqa: BLE001 a check that breaks in any way is not measured, and told
            measured = error
        if isinstance(measured, Outcome):
            record.append(check.results, measured.row, folder)
        yield from lines_of(check, measured, repetitions)
        note(f"{check.name}: {time.monotonic() - begin:.0f} s")


def verdict(lines: Sequence[Line], expected: Sequence[Target]) -> bool:
    """Whether every expected target has a line, and all are met."""
    return {line.target for line in lines} >= set(expected) and all(line.is_met for line in lines)


def main() -> None:
    """Check, print, exit."""
    restart_passive()
    exit_at_sigterm()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("name", nargs="*", help=f"of {', '.join(names)}; all unless given")
    parser.add_argument("--repetitions", type=int, default=MIN_REPETITIONS)
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the rows")
    options = parser.parse_args()
    if unknown := set(options.name) - set(names):
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    if options.repetitions < MIN_REPETITIONS:
        parser.error(f"at least {MIN_REPETITIONS} repetitions")
    chosen = [check for check in CHECKS if not options.name or check.name in options.name]
    begin, lines = time.monotonic(), []
    for line in run(chosen, options.repetitions, options.output):
        lines.append(line)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    met = sum(line.is_met for line in lines)
    minutes = (time.monotonic() - begin) / 60
    scope = f"{len(chosen)} of {len(CHECKS)} checks, {minutes:.1f} min"
    sys.stdout.write(f"{met} of {len(lines)} targets met; {scope}\n")
    sys.exit(not verdict(lines, [target for check in chosen for target in check.targets]))


if __name__ == "__main__":
    main()
