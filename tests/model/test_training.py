"""Training runs the network that serves: the same numbers in both, exact resume, and answers it can learn."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import load_model, tensor_places
from model.checkpoint_format import ShardWriter, expected_tensors
from model.pieces import finish
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer, train_tokenizer
from model.whisper_encoder import encode_windows
from server.types import SamplingParams
from tests.model.random_weights import small_config
from tests.model.reference import answer_alone, next_logits
from training.batch import CHOSEN, Item, Ragged, pack
from training.corpus import PEAK, ClipRecord
from training.dataset import Dataset, epoch_order
from training.features import WhisperEncode, extract, extract_wavlm, wavlm_features, whisper_features
from training.language import BLANK, CopyStage, LanguageStage, simulate
from training.listening import JointStage, SingleStage, turns_of
from training.loop import Clock, make_optimizer, rate, read, restore, save, take_step, train, trainable
from training.network import (
    IGNORE,
    AlignmentLoss,
    Turn,
    VoiceLoss,
    answer_logits,
    answer_loss,
    audio_embeddings,
    branch_of,
    fix_scale,
    new_model,
    prompt_scales,
    right_answers,
    silence_wavlm,
    stray,
    turn_labels,
)
from training.parallel import NEEDS, run_together
from training.recipe import Recipe, StageBudget, State
from training.scripts import Line, Script
from training.tasks import Example
from training.tokens import SYMBOLS, Encoder, Segment, symbol_ids, vocabulary_texts

EXAMPLES = (
    Example("asr", "Transcribe the audio.", "The quick brown fox."),
    Example("en2de", "Translate the audio clip into German.", "Der Fuchs."),
    Example("sv", "Is there only one speaker?", "Yes."),
)


@pytest.fixture
def encoder(exact: SpeechLLM, tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, exact.config.llama)


def segment_logits(model: SpeechLLM, left: Tensor, audio: Tensor, segment: Segment, scale: Tensor) -> Tensor:
    """What serving computes: one sequence, token by token. Returns [answer, V]."""
    tokens = (*segment.prompt, *segment.answer[:-1])
    rows = torch.cat([left, audio, model.embed_tokens(torch.tensor(tokens))])
    first = len(left) + len(audio) + len(segment.prompt)
    return torch.stack([next_logits(model, rows[: first + i], scale) for i in range(len(segment.answer))])


def test_a_packed_batch_is_what_serving_computes(exact: SpeechLLM, encoder: Encoder) -> None:
    """Segments share a clip and do not see each other; every item has a scale of its own."""
    generator = torch.Generator().manual_seed(3)
    size = exact.config.llama.hidden_size
    audio = [torch.randn(n, size, generator=generator, dtype=torch.float64) for n in (7, 3)]
    scale = torch.rand(2, size, generator=generator, dtype=torch.float64) * 2
    segments = tuple(encoder.segment(example) for example in EXAMPLES)
    items = [Item(encoder.left, 7, segments), Item(encoder.left, 3, segments[1:])]
    packed = pack(items)
    logits = answer_logits(exact, packed, torch.cat(audio), scale)
    left = exact.embed_tokens(torch.tensor(encoder.left))
    expected = torch.cat(
        [
            segment_logits(exact, left, audio[i], segment, scale[i])
            for i, item in enumerate(items)
            for segment in item.segments
        ]
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert packed.targets.tolist() == [t for item in items for s in item.segments for t in s.answer]


def test_an_item_without_audio_is_the_language_model_alone(exact: SpeechLLM, encoder: Encoder) -> None:
    segment = encoder.segment(EXAMPLES[0], audio=False)
    packed = pack([Item((), 0, (segment,))])
    zero = torch.zeros(1, exact.config.llama.hidden_size, dtype=torch.float64)
    logits = answer_logits(exact, packed, None, zero)
    none = torch.zeros(0, zero.shape[1], dtype=torch.float64)
    expected = segment_logits(exact, none, none, segment, zero[0])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


def test_cached_features_give_the_embeddings_of_serving(exact: SpeechLLM) -> None:
    """Clips of different lengths, batched through the branches, against the serving encoder."""
    lengths = (9_000, 20_001, 31_999)
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 for n in lengths]
    encoder = exact.audio_encoder
    clips = [exact.features(wave) for wave in waves]
    with torch.inference_mode():
        heard = [finish(encode_windows(encoder.whisper, clip.log_mel.double()))[0] for clip in clips]
        whisper = [hidden[: clip.num_frames] for hidden, clip in zip(heard, clips, strict=True)]
        states, frames = finish(encoder.wavlm_states(waves))
        wavlm = [torch.stack(states, dim=2)[i, :n] for i, n in enumerate(frames)]
        made = audio_embeddings(encoder, Ragged.of(whisper), Ragged.of(wavlm))
    for ours, served in zip(made.split(), exact.encode_audio(waves), strict=True):
        torch.testing.assert_close(ours, served, rtol=0, atol=1e-9)


def test_a_branch_gives_each_clip_what_it_gets_alone(exact: SpeechLLM) -> None:
    branch = exact.audio_encoder.whisper_branch
    rows = [torch.randn(n, 32, dtype=torch.float64) for n in (1, 2, 5, 17, 32)]
    for alone, together in zip(rows, branch_of(branch, Ragged.of(rows)).split(), strict=True):
        torch.testing.assert_close(together, branch(alone[None])[0], rtol=0, atol=1e-12)


def test_prompt_scales_are_those_of_serving(exact: SpeechLLM, encoder: Encoder) -> None:
    ids = [encoder.segment(example).adapter for example in EXAMPLES]
    with torch.no_grad():
        made = prompt_scales(exact, Ragged.of([torch.tensor(adapter) for adapter in ids]))
    for row, adapter in zip(made, ids, strict=True):
        torch.testing.assert_close(row, exact.prompt_scale(adapter), rtol=0, atol=1e-12)


def test_scales_beyond_their_bounds_are_drawn_back() -> None:
    raw = torch.tensor([[-2.0, 0.5, 3.0, 4.0]], requires_grad=True)
    distance = stray(raw, 3.0)
    assert distance.item() == pytest.approx((2.0 + 1.0) / 4)
    torch.autograd.backward(distance)
    assert raw.grad is not None
    assert raw.grad.tolist() == [[-0.25, 0, 0, 0.25]]


def test_the_prompt_adapter_learns_without_leaving_its_bounds(
    learner: Callable[[int], SingleStage], tmp_path: Path
) -> None:
    """Scales begin near 1, come to differ between instructions, and no channel is stuck at a bound."""
    single = learner(1)
    with torch.no_grad():  # as large as a trained model's states before the norm
        single.model.llama.embed_tokens.weight.mul_(160)
    recipe = replace(single.recipe, joint=StageBudget(60, 8, 1, 1e-3), single_share=0.5)
    stage = JointStage(single.model, single.encoder, recipe, single.data)
    batch = stage.batch(0)
    assert batch.adapter is not None
    first = prompt_scales(stage.model, batch.adapter)
    assert (first - 1).abs().max() < 0.5
    train(stage, State(tmp_path / "joint"))
    scales = prompt_scales(stage.model, batch.adapter)
    assert scales.std(dim=0).mean() > first.std(dim=0).mean()
    assert ((scales == 0) | (scales == 3)).all(dim=0).float().mean() < 0.05


def test_only_answers_count(exact: SpeechLLM, encoder: Encoder) -> None:
    """The loss ends at EOS and starts after the instruction; `right_answers` wants every token."""
    segment = encoder.segment(EXAMPLES[0])
    packed = pack([Item(encoder.left, 2, (segment, segment))])
    assert packed.targets.tolist() == [*segment.answer, *segment.answer]
    assert segment.answer[-1] == exact.config.llama.eos_token_id
    perfect = nn.functional.one_hot(packed.targets, 400).double() * 50
    assert answer_loss(perfect, packed) < 1e-9
    spoilt = perfect.clone()
    spoilt[-1] = 0
    assert right_answers(spoilt, packed).tolist() == [True, False]


def test_the_letter_of_a_choice_weighs_more(encoder: Encoder) -> None:
    """The text before it is copied with ease; at one token of ten the letter was never learnt."""
    chosen = encoder.segment(Example("find", "Which? A. in Bonn; B. at home; C. in Rome.", "At home. (B)"))
    plain = encoder.segment(Example("content", "Which?", "At home. (B)"))
    assert chosen.answer == plain.answer
    packed = pack([Item(encoder.left, 2, (chosen, plain))])
    weights, ordinary = packed.weights.split(len(plain.answer))
    ratio = (weights / ordinary).tolist()
    text = encoder.tokenizer.decode([t for t, r in zip(chosen.answer, ratio, strict=True) if r < 1.01])
    letter = encoder.tokenizer.decode([t for t, r in zip(chosen.answer, ratio, strict=True) if r > 1.01])
    assert (text.strip(), letter.strip()) == ("At home.", "(B)")
    assert max(ratio) == pytest.approx(CHOSEN)


def test_alignment_prefers_the_transcript() -> None:
    embeddings = torch.eye(5)
    loss = AlignmentLoss()
    heard = torch.eye(5)[[2, 2, 3, 4]]

    def of(*pairs: tuple[Tensor, list[int]]) -> tuple[Tensor, Tensor]:
        transcripts = Ragged.of([torch.tensor(ids) for _, ids in pairs])
        made: tuple[Tensor, Tensor] = loss(Ragged.of([rows for rows, _ in pairs]), transcripts, embeddings)
        return made

    assert of((heard, [2, 3, 4]))[0] < of((heard, [4, 3, 2]))[0]
    both = of((heard, [2, 3, 4]), (heard[:2], [2]))
    alone = of((heard, [2, 3, 4])), of((heard[:2], [2]))
    assert torch.allclose(both[0] * 2, alone[0][0] + alone[1][0])
    assert torch.allclose(both[1] * 6, alone[0][1] * 4 + alone[1][1] * 2)


def test_alignment_draws_frames_to_the_embeddings() -> None:
    embeddings = torch.eye(5)
    gap = torch.zeros(1, 5)
    heard = torch.cat([embeddings[2:3], gap, embeddings[3:4]])
    said = Ragged.of([torch.tensor([2, 3])])
    sharp = AlignmentLoss()
    with torch.no_grad():
        sharp.sharpness.fill_(30.0)
    distance = [sharp(Ragged.of([rows]), said, embeddings)[1] for rows in (heard, heard * 3, heard + 0.5)]
    assert distance[0] < 1e-3
    assert min(distance[1:]) > 0.5


def test_turns_are_marked_where_they_are_spoken() -> None:
    """Of a clip that augmentation made faster, and of one that follows another clip."""
    lines = tuple(Line(speaker, text, None) for text, speaker in (("a", 0), ("b", 1), ("c", 0)))
    spans = ((0, 1280 * 3), (1280 * 5, 1280 * 8), (1280 * 10, 1280 * 20))
    record = ClipRecord("x", Script("dialogue", lines, "neutral"), ("amy", "bob"), spans, 0, 12_800, False, 0)
    none = IGNORE
    whole = replace(record, num_samples=1280 * 20)
    expected = [0] * 3 + [none] * 2 + [1] * 3 + [none] * 2 + [0] * 10
    assert turn_labels(20, turns_of(whole)).tolist() == expected
    halved = turn_labels(10, turns_of(record)).tolist()
    assert (halved[0], halved[3], halved[-1]) == (0, 1, 0)
    assert len(halved) == 10
    after = turn_labels(40, turns_of(whole, frame=80, first="bob")).tolist()
    assert after == [none] * 20 + [1] * 3 + [none] * 2 + [0] * 3 + [none] * 2 + [1] * 10


def test_voices_are_read_off_the_audio_embeddings() -> None:
    """Rows that show the change or the emotion are told apart; those between turns do not count."""
    torch.manual_seed(0)
    loss = VoiceLoss(4, 2)
    with torch.no_grad():
        loss.changed.weight.copy_(torch.tensor([[20.0, 0, 0, 0]]))
        loss.changed.bias.zero_()
        loss.emotion.weight.copy_(torch.tensor([[0, 20.0, 0, 0], [0, 0, 20.0, 0]]))
        loss.emotion.bias.zero_()
    audio = torch.tensor([[-1.0, 1, 0, 0], [50.0, 1, 0, 0], [1.0, 1, 0, 0]])
    turns = [Turn(0, 4, False), Turn(8, 12, True)]

    def of(rows: Tensor, turns: list[Turn], emotion: int) -> float:
        made = loss(Ragged.of([rows]), turn_labels(len(rows), turns), torch.tensor([emotion]))
        return float(made.detach())

    assert of(audio, turns, 0) < 1e-6
    assert of(audio, turns, IGNORE) < 1e-6
    assert of(audio, turns, 1) > 10
    assert of(audio.flip(0), turns, IGNORE) > 10
    assert of(audio, [], IGNORE) == 0


def test_an_epoch_meets_every_clip_once() -> None:
    seen = [i for step in range(4) for i in epoch_order(8, "x", step, 2)]
    assert sorted(seen) == list(range(8))
    assert [i for step in range(4, 8) for i in epoch_order(8, "x", step, 2)] != seen


def test_the_vocabulary_has_the_template_in_one_piece(tmp_path: Path) -> None:
    made = train_tokenizer(700, list(vocabulary_texts(1))[:3000], SYMBOLS)
    (tmp_path / "t.model").write_bytes(made)
    tokenizer = Tokenizer(tmp_path / "t.model")
    encoder = Encoder(tokenizer, small_config().llama)
    assert len(symbol_ids(tokenizer)) == len(set(symbol_ids(tokenizer))) == len(SYMBOLS)
    assert len(encoder.left) == 6
    assert tokenizer.decode(tokenizer.encode("Guten Tag!\nÄpfel, 12 €")) == "Guten Tag!\nÄpfel, 12 €"


TEXTS = (
    "The fox runs.", "A red house.", "Where is my key?", "Two dogs bark.",
    "It rains today.", "She sings well.", "Close the door.", "We drink tea.",
)  # fmt: skip


def tone(number: int) -> np.ndarray:
    """[16000] a sound of its own for each number."""
    t = np.arange(16_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 150 * 1.35**number * t)).astype(np.float32)


def write_clips(state: State, model: SpeechLLM) -> None:
    """One shard of 8 tones, with the features that the model's own encoders make of them."""
    folder = state.shards("speech", "train")
    folder.mkdir(parents=True)
    waves = [tone(i) for i in range(len(TEXTS))]
    records = [
        ClipRecord(f"c{i}", Script("everyday", (Line(0, text, f"{text} (de)"),), "neutral"), ("voice",),
                   ((0, 16_000),), i * 16_000, 16_000, False, i)
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    np.save(folder / "00000.npy", np.round(np.concatenate(waves) * PEAK).astype(np.int16))
    (folder / "00000.jsonl").write_text("".join(record.to_json() + "\n" for record in records))
    encoder = model.audio_encoder
    extract(state, "whisper", lambda batch: whisper_features(encoder.whisper, model.features, batch))
    extract(state, "wavlm", lambda batch: wavlm_features(encoder, batch))


class FixedInstructions(SingleStage):
    """Each clip and task keeps one phrasing."""

    def segment(self, task: str, script: Script, rng: random.Random, audio: bool = True) -> Segment:
        return super().segment(task, script, random.Random(task + script.text), audio)


@pytest.fixture
def learner(directory: Path, tmp_path: Path) -> Callable[[int], SingleStage]:
    """Makes stage 1 over the 8 clips at small sizes, always from the same first weights."""
    state = State(tmp_path)
    tokenizer = Tokenizer(directory / "tokenizer.model")
    encoder = Encoder(tokenizer, small_config().llama)
    write_clips(state, new_model(small_config(), 1).eval())

    def make(steps: int) -> SingleStage:
        recipe = replace(Recipe(), single=StageBudget(steps, 8, 2, 4e-3))
        data = Dataset(state, "train", small_config().wavlm)
        stage = FixedInstructions(new_model(small_config(), 1), encoder, recipe, data)
        stage.rates = {}
        return stage

    return make


def test_a_run_resumes_exactly(learner: Callable[[int], SingleStage], tmp_path: Path) -> None:
    whole, half, rest = learner(6), learner(6), learner(6)
    optimizer = make_optimizer(whole)
    for step in range(6):
        take_step(whole, optimizer, step, whole.batch(step), step / 6)
    first = make_optimizer(half)
    for step in range(3):
        take_step(half, first, step, half.batch(step), step / 6)
    save(half, first, 3, State(tmp_path))
    second = make_optimizer(rest)
    for step in range(restore(rest, second, State(tmp_path))[0], 6):
        take_step(rest, second, step, rest.batch(step), step / 6)
    for name, weight in trainable(whole.trained).items():
        assert torch.equal(weight, trainable(rest.trained)[name]), name


def test_a_stage_ends_by_its_steps_or_by_its_seconds(
    learner: Callable[[int], SingleStage], tmp_path: Path
) -> None:
    """Whatever comes first. What was spent counts when it goes on."""
    clock = Clock(10, None)
    clock.start()
    assert [clock.progress(step) for step in (0, 5, 10, 20)] == [0, 0.5, 1, 1]
    assert Clock(10, 8.0, spent=2.0).progress(1) == 0.25
    state = State(tmp_path / "timed")
    begin = time.monotonic()
    train(learner(100_000), state, seconds=3.0)
    assert time.monotonic() - begin < 60
    checkpoint = read(state, "single")
    assert 0 < checkpoint["step"] < 100_000
    assert checkpoint["seconds"] >= 3.0
    before = state.checkpoint("single").stat().st_mtime_ns
    train(learner(100_000), state, seconds=3.0)
    assert state.checkpoint("single").stat().st_mtime_ns == before


def test_batches_of_other_processes_are_the_same(
    learner: Callable[[int], SingleStage], tmp_path: Path
) -> None:
    here, elsewhere = learner(3), learner(3)
    train(here, State(tmp_path / "here"))
    train(elsewhere, State(tmp_path / "elsewhere"), loaders=2)
    for name, weight in trainable(here.trained).items():
        assert torch.equal(weight, trainable(elsewhere.trained)[name]), name


def test_features_made_by_other_processes_are_the_same(tmp_path: Path) -> None:
    """Each worker builds its encoders again from what travels to it."""
    model = new_model(small_config(), 1).eval()
    here, elsewhere = State(tmp_path / "here"), State(tmp_path / "elsewhere")
    write_clips(here, model)
    speech = elsewhere.shards("speech", "train")
    speech.mkdir(parents=True)
    for shard in ("00000", "00001"):
        for suffix in (".npy", ".jsonl"):
            source = here.shards("speech", "train") / f"00000{suffix}"
            (speech / f"{shard}{suffix}").write_bytes(source.read_bytes())
    cpu = torch.device("cpu")
    whisper = WhisperEncode(model.audio_encoder.whisper, model.features, cpu)
    extract(elsewhere, "whisper", whisper, workers=2)
    extract_wavlm(model.audio_encoder, small_config(), elsewhere, cpu, workers=2)
    for what in ("whisper", "wavlm"):
        made = np.load(here.shards(what, "train") / "00000.npy")
        for shard in ("00000", "00001"):
            again = np.load(elsewhere.shards(what, "train") / f"{shard}.npy")
            np.testing.assert_allclose(again, made, atol=2e-3)


def test_the_rate_rises_and_falls() -> None:
    budget = StageBudget(10, 1, 1, 2e-3)
    rates = [rate(progress, budget) for progress in (0.0, 0.02, 0.04, 0.52, 1.0)]
    assert rates == pytest.approx([5e-5, 1e-3, 2e-3, 1.03e-3, 6e-5])


def test_steps_wait_for_what_they_need(tmp_path: Path) -> None:
    """Each leaves its name when it begins and when it ends; the first failure ends the rest."""
    log = tmp_path / "log"

    def command(step: str) -> list[str]:
        note = f"print('{{}} {step}', file=open({str(log)!r}, 'a'), flush=True)"
        return [sys.executable, "-c", f"{note.format('begin')}; {note.format('end')}"]

    run_together(command)
    lines = log.read_text().splitlines()
    for step, needs in NEEDS.items():
        for need in needs:
            assert lines.index(f"end {need}") < lines.index(f"begin {step}")
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="copy failed with exit code 3"):
        run_together(lambda step: fails if step == "copy" else hangs)
    assert time.monotonic() - begin < 60


def test_eight_clips_are_learnt_to_the_letter(
    learner: Callable[[int], SingleStage], tmp_path: Path, directory: Path
) -> None:
    """From cached features to a directory that is served: every transcript comes back exactly."""
    stage = learner(160)
    train(stage, State(tmp_path / "run"))
    places = tensor_places(stage.model)
    made = tmp_path / "model"
    with ShardWriter(made, small_config(), tokenizer=directory / "tokenizer.model") as writer:
        for name in expected_tensors(small_config()):
            writer.add(name, places[name].contiguous())
    model, tokenizer = load_model(made, torch.device("cpu"), torch.float32)
    model.prompt_adapter.fc2.weight.data.zero_()  # stage 1 is trained at scale 1
    for number, clip in enumerate(stage.data.clips):
        example = stage.encoder.tokenizer.decode(
            stage.segment("asr", clip.record.script, random.Random(0)).answer[:-1]
        )
        instruction = instruction_of(clip.record.script)
        said = answer_alone(model, tokenizer, torch.from_numpy(tone(number)), instruction, SamplingParams(40))
        assert tokenizer.decode(said.ids) == example == TEXTS[number]


def instruction_of(script: Script) -> str:
    from training.tasks import make_example

    return make_example("asr", script, random.Random("asr" + script.text), "train").instruction


def test_the_language_stage_learns_from_text_alone(directory: Path, tmp_path: Path) -> None:
    recipe = replace(Recipe(), language=StageBudget(12, 4, 3, 3e-3), vocab_size=400)
    encoder = Encoder(Tokenizer(directory / "tokenizer.model"), small_config().llama)
    stage = LanguageStage(new_model(small_config(), 1), encoder, recipe)
    optimizer = make_optimizer(stage)
    losses = [float(take_step(stage, optimizer, i, stage.batch(i), i / 12)["loss"]) for i in range(12)]
    assert losses[-1] < losses[0] - 0.5
    assert not any("lora_" in name for name in trainable(stage.trained))


def test_simulated_audio_gets_harder() -> None:
    ids = list(range(3, 43))
    easy = simulate(ids, random.Random(1), 400, 0.0)
    hard = simulate(ids, random.Random(1), 400, 1.0)
    assert [token for token in easy if token != BLANK] == ids
    assert hard.count(BLANK) > easy.count(BLANK) + len(ids) // 2
    assert len(hard) - hard.count(BLANK) > len(ids)  # some are heard twice


def test_the_copying_stage_learns_transcripts_alone(directory: Path) -> None:
    recipe = replace(Recipe(), copy=StageBudget(12, 6, 1, 3e-3), vocab_size=400)
    encoder = Encoder(Tokenizer(directory / "tokenizer.model"), small_config().llama)
    stage = CopyStage(new_model(small_config(), 1), encoder, recipe)
    assert [stage.hardness(step) for step in (0, 3, 6, 11)] == [0, 0.5, 1, 1]
    items = [stage._item(random.Random(seed), 1.0)[0] for seed in range(6)]
    assert {segment.task for item in items for segment in item.segments} == {"asr"}
    optimizer = make_optimizer(stage)
    losses = [float(take_step(stage, optimizer, i, stage.batch(i), i / 12)["loss"]) for i in range(12)]
    assert losses[-1] < losses[0] - 0.5


def test_an_ablated_part_has_no_say(exact: SpeechLLM) -> None:
    silence_wavlm(exact)
    fix_scale(exact)
    config = exact.config
    rows = torch.randn(9, config.wavlm.hidden_size, dtype=torch.float64)
    assert branch_of(exact.audio_encoder.wavlm_branch, Ragged.of([rows])).rows.abs().max() == 0
    scales = prompt_scales(exact, Ragged.of([torch.tensor([5, 6])]))
    assert torch.equal(scales, torch.ones(1, config.llama.hidden_size).double())
