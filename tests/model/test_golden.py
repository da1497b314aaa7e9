"""The published code's numbers, through the converter and this project's model (tests/golden/README.md).

    pytest -m gpu tests/model/test_golden.py      the same on a CUDA device
"""

from __future__ import annotations

import functools
import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import load_model
from model.convert import convert_published
from model.llama import FlatBatch, PrefillSpan
from model.pieces import finish
from model.prompt import Prompt, build_prompt
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.engine.build import Sizes, assemble
from server.types import Delta, EngineConfig, GenerateRequest, SamplingParams

GOLDEN = Path(__file__).parent.parent / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["cases"]
NUMBERS = np.load(GOLDEN / "golden.npz")
ON_CPU = {"audio": 2e-4, "scale": 1e-4, "logits": 2e-3}
"""Random weights amplify rounding; the golden README gives the reasons and the ranges of the values."""
ON_GPU = dict.fromkeys(ON_CPU, 5e-3)


@dataclass(frozen=True)
class Loaded:
    """The golden model on one device."""

    model: SpeechLLM
    tokenizer: Tokenizer
    tolerance: dict[str, float]

    def on_device(self, values: Any) -> Tensor:
        return torch.as_tensor(values, device=self.model.device)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("golden") / "model"
    convert_published(
        GOLDEN / "final.pt", GOLDEN / "tokenizer.model", output, spec=GOLDEN / "spec.json", name="golden"
    )
    return output


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def loaded(request: pytest.FixtureRequest, directory: Path) -> Loaded:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model, tokenizer = load_model(directory, torch.device(request.param), torch.float32)
    return Loaded(model, tokenizer, ON_CPU if request.param == "cpu" else ON_GPU)


@functools.cache
def waveform(name: str) -> np.ndarray:
    with wave.open(str(GOLDEN / "audio" / name)) as file:  # needs no library that a GPU machine may lack
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / 32768


def prompt_of(loaded: Loaded, case: dict[str, Any]) -> Prompt:
    return build_prompt(loaded.tokenizer, 1, case["prompt"], None, audio=True)


def difference(got: Tensor, case: int, what: str) -> float:
    expected = NUMBERS[f"{case}.{what}"]
    assert tuple(got.shape) == expected.shape
    return float(np.abs(got.cpu().numpy() - expected).max())


def logits_of(loaded: Loaded, prompt: Prompt, audio: Tensor, scale: Tensor, answer: list[int]) -> Tensor:
    """Logits [steps, V] after each token of the forced prompt and answer, in one forward."""
    model = loaded.model
    left, right = (
        model.embed_tokens(loaded.on_device(ids)) for ids in (prompt.left_ids, [*prompt.right_ids, *answer])
    )
    embeddings = torch.cat([left, audio, right])
    count = len(embeddings)
    positions = torch.arange(count, device=model.device)
    span = PrefillSpan(0, count, loaded.on_device([0]), count)
    batch = FlatBatch(embeddings, positions, positions, scale.expand(count, -1), (span,), None)
    hidden = model(batch, model.new_cache(num_pages=1, page_size=count))
    return model.logits(hidden[len(prompt.left_ids) + len(audio) :])


@pytest.mark.parametrize("index", range(len(CASES)))
def test_numbers_are_the_published_ones(loaded: Loaded, index: int) -> None:
    case, tolerance = CASES[index], loaded.tolerance
    prompt = prompt_of(loaded, case)
    assert list(prompt.left_ids) == case["left_ids"]
    assert list(prompt.right_ids) == [1, *case["right_ids"][1:]]
    assert list(prompt.adapter_ids) == case["prompt_ids"]
    wave = torch.from_numpy(waveform(case["audio"]))
    audio = loaded.model.encode_audio([wave])[0]
    assert difference(audio, index, "audio") <= tolerance["audio"]
    scale = loaded.model.prompt_scale(prompt.adapter_ids)
    assert difference(scale, index, "scale") <= tolerance["scale"]
    logits = logits_of(loaded, prompt, audio, scale, case["generated_ids"][:-1])
    assert difference(logits, index, "logits") <= tolerance["logits"]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_branches_are_the_published_ones(loaded: Loaded, index: int) -> None:
    clip = loaded.model.clip_features(torch.from_numpy(waveform(CASES[index]["audio"])))
    encoder = loaded.model.audio_encoder
    with torch.inference_mode():
        (whisper,), (wavlm,) = finish(encoder.encode_whisper([clip])), finish(encoder.encode_wavlm([clip]))
    windows = len(clip.log_mel)
    assert difference(whisper.unflatten(0, (windows, -1)), index, "whisper") <= loaded.tolerance["audio"]
    assert difference(wavlm[None], index, "wavlm") <= loaded.tolerance["audio"]


def test_the_engine_answers_all_cases_at_once_as_published(loaded: Loaded) -> None:
    core = assemble(EngineConfig(Path()), loaded.model, loaded.tokenizer, Sizes(8, 128, 1024))
    answers: dict[str, list[int]] = {}
    for index, case in enumerate(CASES):
        name, wave = str(index), waveform(case["audio"])
        answers[name] = []
        key = case["audio"].encode()
        core.submit(GenerateRequest(name, case["prompt"], wave, key, SamplingParams(max_tokens=48)))
    while core.wait(0.0):
        for event in core.step().events:
            if isinstance(event, Delta):
                answers[event.request_id] += event.token_ids
    core.check_integrity()
    assert answers == {str(i): case["generated_ids"][:-1] for i, case in enumerate(CASES)}


@pytest.mark.parametrize("index", [0, 3])
def test_merging_for_one_instruction_keeps_the_numbers(directory: Path, index: int) -> None:
    model, tokenizer = load_model(directory, torch.device("cpu"), torch.float32)
    merged = Loaded(model, tokenizer, ON_CPU)
    case = CASES[index]
    prompt = prompt_of(merged, case)
    audio = model.encode_audio([torch.from_numpy(waveform(case["audio"]))])[0]
    model.merge(model.prompt_scale(prompt.adapter_ids))
    unused = torch.full((model.config.llama.hidden_size,), float("nan"))
    logits = logits_of(merged, prompt, audio, unused, case["generated_ids"][:-1])
    assert difference(logits, index, "logits") <= ON_CPU["logits"]
