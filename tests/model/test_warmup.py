"""What the warm-up measures, chooses and leaves behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from server.engine.build import build_core
from server.engine.core import EngineCore
from server.engine.runner import Threads
from server.engine.warmup import Pace, Turn, choose
from server.types import EngineConfig, EngineStats, Finished, GenerateRequest, SamplingParams, StepOutput


def test_threads_must_be_worth_it_for_each_kind_of_work() -> None:
    single = Turn(encode_s=1.0, step_s=0.0010, prefill_rate=100.0)
    assert choose(Turn(0.5, 0.0009, 120.0), single, 8) == Pace(0.5, 100.0, Threads(8, prefill=1, decode=1))
    assert choose(Turn(0.9, 0.0006, 120.0), single, 8) == Pace(1.0, 100.0, Threads(1, prefill=1, decode=8))
    assert choose(Turn(0.9, 0.0009, 150.0), single, 8) == Pace(1.0, 150.0, Threads(1, prefill=8, decode=1))


def test_where_steps_are_long_threads_need_only_help() -> None:
    single = Turn(encode_s=1.0, step_s=0.010, prefill_rate=100.0)
    assert choose(Turn(0.5, 0.009, 120.0), single, 8) == Pace(0.5, 120.0, Threads(8, prefill=8, decode=8))
    assert choose(Turn(0.5, 0.011, 90.0), single, 8) == Pace(0.5, 100.0, Threads(8, prefill=1, decode=1))


@pytest.mark.parametrize(
    ("encode_s", "step_s", "seconds"), [(0.04, 0.1, 60.0), (0.2, 0.1, 30.0), (0.0, 0.1, 30.0)]
)
def test_an_encoder_step_holds_whole_windows_and_at_least_one(
    encode_s: float, step_s: float, seconds: float
) -> None:
    assert Pace(encode_s, 1.0, Threads.all_of(1)).encode_budget(step_s, 30) == seconds


def test_a_prefill_beside_answers_takes_its_time_and_makes_headway() -> None:
    pace = Pace(1.0, 2000.0, Threads.all_of(1))
    assert pace.prefill_budget(0.05) == 75
    assert pace.prefill_budget(0.001) == 32


def test_a_new_engine_shows_no_trace_of_the_warm_up(directory: Path) -> None:
    before = torch.get_num_threads()
    core = build_core(EngineConfig(directory))
    assert core.stats() == EngineStats()
    assert core.encoding.slice_s == 0.1
    assert core.scheduler.limits.prefill_beside is not None
    assert not core.runner.take_encoder_runs()
    core.check_integrity()
    torch.set_num_threads(before)


def test_a_start_imports_none_of_the_large_libraries(directory: Path) -> None:
    """They are oracles and tools; their import took longer than all the rest of a start."""
    large = "{'transformers', 'peft', 'librosa', 'scipy.optimize', 'torch._dynamo'}"
    build = "from server.engine.build import build_core; build_core(EngineConfig(Path(sys.argv[1])))"
    program = f"import sys; from pathlib import Path; from server.types import EngineConfig; {build}; "
    program += f"print({large} & set(sys.modules))"
    command = [sys.executable, "-c", program, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_kernel_is_left_to_be_compiled_while_people_wait(directory: Path) -> None:
    build = "from server.engine.build import build_core; build_core(EngineConfig(Path(sys.argv[1])))"
    program = f"import sys; from pathlib import Path; from server.types import EngineConfig; {build}; "
    program += "from model import numba_kernels as k; "
    program += "print([len(f.signatures) for f in (k.norm, k.write_qkv, k.add_lora, k.attend, k.step)])"
    command = [sys.executable, "-c", program, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1, 1, 1, 1, 1]"


def test_a_large_model_encodes_one_clip_and_prefills_every_prompt(directory: Path, monkeypatch) -> None:
    outputs: list[StepOutput] = []
    step = EngineCore.step
    monkeypatch.setattr(EngineCore, "step", lambda core: outputs.append(step(core)) or outputs[-1])
    monkeypatch.setattr("server.engine.warmup.BIG_STEP_S", 0.0)
    before = torch.get_num_threads()
    core = build_core(EngineConfig(directory))
    assert core.runner.threads == Threads.all_of(before)
    runs = [run.encoder for output in outputs for run in output.encoder_runs]
    assert sorted(runs) == ["wavlm", "whisper"]
    usages = [event.usage for output in outputs for event in output.events if isinstance(event, Finished)]
    assert [usage.cached_tokens for usage in usages] == [0, 0, 0]
    torch.set_num_threads(before)


def test_a_given_number_of_threads_is_kept(directory: Path) -> None:
    before = torch.get_num_threads()
    core = build_core(EngineConfig(directory, num_threads=1))
    assert core.runner.threads == Threads.all_of(1)
    torch.set_num_threads(before)


def test_each_kind_of_work_has_its_threads(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    core = build_core(EngineConfig(directory))
    core.runner.threads = Threads(encode=2, prefill=3, decode=1)
    used: list[int] = []
    monkeypatch.setattr("server.engine.runner._use_threads", used.append)
    # The prompt pass, the clip, the prompt, the answer.
    core.submit(GenerateRequest("a", "What is said?", np.zeros(16_000, np.float32), b"a", SamplingParams(3)))
    while core.wait(0.0):
        core.step()
    assert [count for count, _ in itertools.groupby(used)] == [3, 2, 3, 1]
    torch.set_num_threads(before)
