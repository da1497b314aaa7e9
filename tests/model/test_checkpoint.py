"""Loading a model directory: every tensor in its place, in the dtype asked for, once; or a clear refusal."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import empty_model, load_model, tensor_places
from model.checkpoint_format import CheckpointError, ShardWriter, expected_tensors
from model.config import ConfigError, LlamaConfig, LoraConfig, SpeechLLMConfig
from model.speech_llm import SpeechLLM
from model.tiny import CORPUS, make_tiny
from model.tokenizer import TokenizerError, train_tokenizer
from tests.model.random_weights import noise_clip, small_config
from tests.model.test_audio_encoder import LARGE

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


def load(directory: Path, dtype: torch.dtype = torch.float32) -> SpeechLLM:
    return load_model(directory, CPU, dtype)[0]


def unfolded(config: SpeechLLMConfig) -> SpeechLLM:
    return empty_model(config, CPU, torch.float32)


@pytest.mark.parametrize(
    "config",
    [small_config(), small_config(wavlm=LARGE), SpeechLLMConfig.tiny()],
    ids=["small", "large-wavlm", "tiny"],
)
def test_there_is_a_place_for_every_tensor_and_no_other(config: SpeechLLMConfig) -> None:
    places = tensor_places(unfolded(config))
    assert {name: tuple(place.shape) for name, place in places.items()} == expected_tensors(config)


def test_places_are_the_whole_model_without_overlap() -> None:
    model = unfolded(small_config())
    places = tensor_places(model)
    for number, place in enumerate(places.values()):
        place.fill_(number)
    assert sum(place.numel() for place in places.values()) == model.num_parameters
    for number, (name, place) in enumerate(places.items()):
        assert (place == number).all(), f"{name} shares its memory"
    assert not list(model.buffers()), "buffers are not in the directory and would stay undefined"


def test_the_released_sizes_have_a_place_for_every_tensor() -> None:
    config = SpeechLLMConfig.released()
    with torch.device("meta"):
        model = SpeechLLM(config)
    places = tensor_places(model)
    assert {name: tuple(place.shape) for name, place in places.items()} == expected_tensors(config)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_as_they_are_on_disk_but_for_the_dtype(directory: Path, dtype: torch.dtype) -> None:
    stored = load_file(directory / WEIGHTS)
    model = load(directory, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    layer = model.llama.blocks[1]
    q, k, v = layer.attention.qkv.weight.chunk(3)
    gate, up = layer.feed_forward.gate_up.weight.chunk(2)
    found = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
    found |= {"self_attn.o_proj": layer.attention.o.weight, "mlp.gate_proj": gate, "mlp.up_proj": up}
    for name, weight in found.items():
        assert torch.equal(weight, stored[f"llama.layers.1.{name}.weight"].to(dtype))
    loras = [*zip("qkv", layer.attention.qkv.lora_A, layer.attention.qkv.lora_B, strict=True)]
    loras.append(("o", layer.attention.o.lora_A[0], layer.attention.o.lora_B[0]))
    for name, a, b in loras:
        assert torch.equal(a, stored[f"llama.layers.1.self_attn.{name}_proj.lora_A"].to(dtype))
        assert torch.equal(b, stored[f"llama.layers.1.self_attn.{name}_proj.lora_B"].to(dtype))


def test_a_loaded_model_is_for_inference_and_its_weight_norm_is_folded(directory: Path) -> None:
    model = load(directory, torch.float64)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    stored = load_file(directory / WEIGHTS)
    prefix = "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original"
    magnitude, direction = stored[prefix + "0"].double(), stored[prefix + "1"].double()
    folded = magnitude * direction / direction.pow(2).sum(dim=(0, 1), keepdim=True).sqrt()
    weight = model.audio_encoder.wavlm.encoder.pos_conv_embed.conv.weight
    assert torch.allclose(weight, folded, rtol=0, atol=1e-12)


def test_bfloat16_on_disk_and_half_precision_at_work(tmp_path: Path, directory: Path) -> None:
    target = tmp_path / "bf16"
    stored = load_file(directory / WEIGHTS)
    config = SpeechLLMConfig.load(directory)
    with ShardWriter(target, config, tokenizer=directory / "tokenizer.model") as writer:
        for name in expected_tensors(config):
            writer.add(name, stored[name].bfloat16())
    same = load(target, torch.float32)
    assert torch.equal(same.llama.lm_head.weight, stored["llama.lm_head.weight"].bfloat16().float())
    half = load(target, torch.bfloat16)
    (audio,) = half.encode_audio([noise_clip(0.5)])
    (reference,) = same.encode_audio([noise_clip(0.5)])
    assert audio.dtype == torch.bfloat16
    # Eight bits of mantissa through some ten layers.
    assert (audio.float() - reference).abs().max() < 0.1 * reference.abs().max()


def test_progress_counts_every_byte_once(directory: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    load_model(directory, CPU, torch.float32, lambda *report: seen.append(report))
    done = [report[0] for report in seen]
    assert done == sorted(set(done))
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in load_file(directory / WEIGHTS).values())
    assert {name for _, _, name in seen} == set(expected_tensors(SpeechLLMConfig.load(directory)))


def copy_with(directory: Path, tmp_path: Path, change) -> Path:
    """A copy of `directory` whose tensors went through `change(dict)`."""
    target = tmp_path / "changed"
    shutil.copytree(directory, target)
    tensors = load_file(target / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS)
    return target


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("llama.norm.weight"), r"1 missing: llama\.norm\.weight"),
        (lambda t: t.update(audio_proj=torch.ones(2)), "1 unexpected: audio_proj"),
        (
            lambda t: t.update({"fusion.bias": torch.ones(3)}),
            r"1 of the wrong shape: fusion\.bias is \[3\], not \[128\]",
        ),
        (
            lambda t: t.update({"fusion.weight": t["fusion.weight"].t().contiguous().reshape(-1, 64)}),
            r"fusion\.weight is \[256, 64\], not \[128, 128\]",
        ),
    ],
)
def test_a_directory_with_other_tensors_is_refused(
    directory: Path, tmp_path: Path, change, complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        load(copy_with(directory, tmp_path, change))


def test_sizes_that_the_files_do_not_have_are_refused_before_memory_is_taken(
    directory: Path, tmp_path: Path
) -> None:
    target = tmp_path / "vast"
    shutil.copytree(directory, target)
    config = SpeechLLMConfig.load(target)
    llama = dataclasses.replace(config.llama, intermediate_size=10**12)
    dataclasses.replace(config, llama=llama).save(target)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight is .*, not \[1000000000000, "):
        load(target)


def test_a_truncated_file_is_refused(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "cut"
    shutil.copytree(directory, target)
    data = (target / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load(target)


def test_a_tokenizer_that_does_not_fit_is_refused(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "other"
    shutil.copytree(directory, target)
    (target / "tokenizer.model").write_bytes(train_tokenizer(410, CORPUS))
    with pytest.raises(CheckpointError, match="the tokenizer has 410 pieces, the model 400"):
        load(target)
    (target / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match="no such file"):
        load(target)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_projections_without_lora_are_exactly_the_base(tmp_path: Path) -> None:
    config = small_config(lora=LoraConfig(4, target_modules=("v_proj", "q_proj")))
    make_tiny(tmp_path / "some", config)
    assert not [name for name in expected_tensors(config) if "o_proj.lora" in name or "k_proj.lora" in name]
    attention = load(tmp_path / "some").llama.blocks[0].attention
    used = [bool(b.any()) for b in (*attention.qkv.lora_B, *attention.o.lora_B)]
    assert used == [True, False, True, False]


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_never_holds_a_second_copy(tmp_path: Path, dtype: torch.dtype) -> None:
    llama = LlamaConfig(512, 6, 8, 1408, 400)
    make_tiny(tmp_path / "large", small_config(llama=llama, lora=LoraConfig(4)))
    largest = 4 * 1408 * 512
    before, peak = anonymous_bytes(), 0

    def watch(done: int, total: int, name: str) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    model, _ = load_model(tmp_path / "large", CPU, dtype, watch)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 15 * largest * dtype.itemsize / 4
    assert peak - before < size + 3 * largest


def test_configurations_that_differ_in_what_no_tensor_shows_load_all_the_same(
    directory: Path, tmp_path: Path
) -> None:
    target = tmp_path / "renamed"
    shutil.copytree(directory, target)
    dataclasses.replace(SpeechLLMConfig.load(directory), name="other").save(target)
    assert load(target).config.name == "other"
