"""A PEFT adapter out and back in: exact bit for bit, and what peft computes with it is what we mean."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoint_format import CheckpointError, ShardWriter, expected_tensors, open_tensors
from model.config import ConfigError, LoraConfig, SpeechLLMConfig
from model.convert_adapter import _scaling
from model.convert_llama_hf import to_half_split, to_interleaved
from model.peft_io import convert_peft, export_peft
from model.tiny import make_tiny

# peft still asks transformers by the name that transformers 6 drops
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TINY = SpeechLLMConfig.tiny()
CONFIG = dataclasses.replace(
    TINY,
    llama=dataclasses.replace(TINY.llama, rope_theta=20000.0, rms_norm_eps=3e-6),
    lora=LoraConfig(6, ("q_proj", "k_proj", "v_proj", "o_proj")),
    wavlm_do_normalize=True,
)
HEADS = CONFIG.llama.num_attention_heads


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A model directory."""
    directory = tmp_path_factory.mktemp("peft") / "ours"
    make_tiny(directory, CONFIG)
    return directory


@pytest.fixture(scope="module")
def base(ours):
    """The same language model without its LoRA as a Hugging Face directory."""
    return make_hf_llama(ours, ours.parent / "base")


@pytest.fixture(scope="module")
def adapter(ours):
    """The exported PEFT adapter."""
    export_peft(ours, ours.parent / "adapter")
    return ours.parent / "adapter"


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    files = open_tensors(directory)
    return {name: files.get(name) for name in files.shapes}


def hf_rows(weight: torch.Tensor) -> torch.Tensor:
    """Rows in Hugging Face's order, one by one: row i of a head is its even half, then its odd half."""
    size = weight.shape[0] // HEADS
    order = [*range(0, size, 2), *range(1, size, 2)]
    return weight[[head * size + row for head in range(HEADS) for row in order]]


def hf_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in tensors.items():
        if name.startswith("llama.") and "lora" not in name:
            inner = name.removeprefix("llama.")
            rotary = "q_proj" in name or "k_proj" in name
            key = inner if inner.startswith("lm_head") else f"model.{inner}"
            state[key] = hf_rows(tensor) if rotary else tensor.clone()
    return state


def hf_config(config: SpeechLLMConfig, **changes: Any) -> LlamaConfig:
    fields = dataclasses.asdict(config.llama)
    del fields["suppress_token_ids"]
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    return LlamaConfig(**(fields | {"rope_parameters": rope} | changes))


def make_hf_llama(directory: Path, target: Path, max_shard_size: str = "5GB") -> Path:
    """The language model of one of our directories, saved by transformers itself."""
    model = LlamaForCausalLM(hf_config(SpeechLLMConfig.load(directory)))
    model.load_state_dict(hf_state(tensors_of(directory)))
    model.save_pretrained(target, max_shard_size=max_shard_size)
    return target


def same(first: Path, second: Path) -> None:
    left, right = tensors_of(first), tensors_of(second)
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# there and back


def test_the_round_trip_is_exact(ours, base, adapter, tmp_path):
    seen: list[tuple[int, int, str]] = []
    result = convert_peft(base, adapter, tmp_path / "back", progress=lambda *args: seen.append(args))
    assert result == CONFIG == SpeechLLMConfig.load(tmp_path / "back")
    same(ours, tmp_path / "back")
    assert seen[-1][0] == seen[-1][1] == open_tensors(ours).num_bytes
    assert (tmp_path / "back/tokenizer.model").read_bytes() == (ours / "tokenizer.model").read_bytes()


def test_the_round_trip_keeps_bfloat16_and_a_part_of_the_projections(tmp_path):
    config = dataclasses.replace(CONFIG, lora=LoraConfig(3, ("k_proj", "v_proj")))
    make_tiny(tmp_path / "fp32", config)
    tokenizer = tmp_path / "fp32/tokenizer.model"
    with ShardWriter(tmp_path / "ours", config, tokenizer=tokenizer) as writer:
        for name, tensor in tensors_of(tmp_path / "fp32").items():
            writer.add(name, tensor.bfloat16())
    state = hf_state(tensors_of(tmp_path / "ours"))
    model = LlamaForCausalLM(hf_config(config)).bfloat16()
    model.load_state_dict(state)
    model.save_pretrained(tmp_path / "base", max_shard_size="200KB")
    assert (tmp_path / "base/model.safetensors.index.json").exists()
    export_peft(tmp_path / "ours", tmp_path / "adapter")
    assert convert_peft(tmp_path / "base", tmp_path / "adapter", tmp_path / "back") == config
    same(tmp_path / "ours", tmp_path / "back")
    convert_peft(tmp_path / "base", tmp_path / "adapter", tmp_path / "wide", dtype="float32")
    assert set(open_tensors(tmp_path / "wide").dtypes.values()) == {torch.float32}


def test_the_rotary_layouts_are_inverse_and_as_spelled_out():
    weight = torch.randn(CONFIG.llama.hidden_size, 5)
    assert torch.equal(to_half_split(weight, HEADS), hf_rows(weight))
    assert torch.equal(to_interleaved(hf_rows(weight), HEADS), weight)


# what peft computes


def reference_logits(tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The decoder in Meta's layout with the LoRA at scale 1, written down plainly. ids [N] -> [N, V]."""
    llama = CONFIG.llama
    x = tensors["llama.embed_tokens.weight"][ids]
    for layer in range(llama.num_hidden_layers):
        at = f"llama.layers.{layer}."
        x = x + attention(tensors, at + "self_attn.", norm(x, tensors[at + "input_layernorm.weight"]))
        h = norm(x, tensors[at + "post_attention_layernorm.weight"])
        gate, up, down = (tensors[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return norm(x, tensors["llama.norm.weight"]) @ tensors["llama.lm_head.weight"].T


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + CONFIG.llama.rms_norm_eps) * weight


def project(tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    low = x @ tensors[f"{name}.lora_A"] @ tensors[f"{name}.lora_B"]
    return x @ tensors[f"{name}.weight"].T + low


def attention(tensors: dict[str, torch.Tensor], at: str, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (project(tensors, f"{at}{p}_proj", x).unflatten(-1, (HEADS, -1)) for p in "qkv")
    q, k = rotate(q), rotate(k)
    heads = F.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), is_causal=True)
    return project(tensors, f"{at}o_proj", heads[0].transpose(0, 1).flatten(1))


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Channels 2i and 2i + 1 are one complex number. x: [N, H, d]."""
    size = x.shape[-1]
    frequency = CONFIG.llama.rope_theta ** (-torch.arange(0, size, 2).double() / size)
    angle = torch.arange(len(x)).double()[:, None] * frequency
    turned = (
        torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * torch.exp(1j * angle)[:, None]
    )
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def test_peft_loads_the_adapter_and_computes_what_it_means(ours, base, adapter):
    ids = torch.randint(3, CONFIG.llama.vocab_size, (23,), generator=torch.Generator().manual_seed(1))
    tensors = {name: tensor.double() for name, tensor in tensors_of(ours).items()}
    expected = reference_logits(tensors, ids)
    plain = LlamaForCausalLM.from_pretrained(base, dtype=torch.float64)
    with torch.no_grad():
        without = plain(ids[None]).logits[0]
        tuned = peft.PeftModel.from_pretrained(plain, adapter)
        found = tuned(ids[None]).logits[0]
    assert tuned.peft_config["default"].target_modules == set(CONFIG.lora.target_modules)
    # float64 but for transformers' rotary table, which is float32
    assert (found - expected).abs().max() < 1e-4
    assert (without - expected).abs().max() > 0.1


def test_the_export_holds_every_speech_tensor_and_nothing_of_the_base(ours, adapter):
    lora = load_file(adapter / "adapter_model.safetensors")
    speech = load_file(adapter / "speech/model.safetensors")
    assert len(lora) == 3 * 4 * 2
    assert set(speech) == {name for name in expected_tensors(CONFIG) if not name.startswith("llama.")}
    name = "base_model.model.model.layers.2.self_attn.q_proj.lora_{}.weight"
    assert lora[name.format("A")].shape == (6, 128)
    assert lora[name.format("B")].shape == (128, 6)
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "speech",
    ]


# adapters of others


@pytest.fixture
def foreign(base, tmp_path):
    """An adapter as peft itself saves one: other rank, alpha, projections; random B."""
    model = LlamaForCausalLM.from_pretrained(base)
    options = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=["v_proj", "q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model, options)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tuned.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_a_foreign_adapter_takes_the_speech_parts_from_elsewhere(
    ours, base, foreign, tmp_path, rank_stabilised
):
    edit_json(foreign / "adapter_config.json", use_rslora=rank_stabilised)
    config = convert_peft(base, foreign, tmp_path / "back", speech_from=ours)
    assert config == dataclasses.replace(CONFIG, lora=LoraConfig(4, ("q_proj", "v_proj")))
    back, mine = tensors_of(tmp_path / "back"), tensors_of(ours)
    assert all(torch.equal(back[name], mine[name]) for name in mine if "lora" not in name)
    theirs = load_file(foreign / "adapter_model.safetensors")
    scaling = 10 / math.sqrt(4) if rank_stabilised else 10 / 4
    for projection in ("q_proj", "v_proj"):
        name = f"base_model.model.model.layers.1.self_attn.{projection}.lora_"
        update = theirs[f"{name}B.weight"].double() @ theirs[f"{name}A.weight"].double() * scaling
        at = f"llama.layers.1.self_attn.{projection}.lora_"
        mine_update = (back[at + "A"].double() @ back[at + "B"].double()).T
        found = hf_rows(mine_update) if projection == "q_proj" else mine_update
        assert torch.allclose(found, update, rtol=0, atol=1e-6)


def refused(tmp_path: Path, match: str, base: Path, adapter: Path, error=CheckpointError, **options) -> None:
    with pytest.raises(error, match=match):
        convert_peft(base, adapter, tmp_path / "back", **options)
    assert not (tmp_path / "back").exists()


def test_a_foreign_adapter_alone_is_refused_with_the_way_out(base, foreign, tmp_path):
    refused(tmp_path, "has no speech/ directory.*--speech-from", base, foreign)


UNSUPPORTED = [
    ({"peft_type": "LOHA"}, "peft_type: 'LOHA'"),
    ({"use_dora": True}, "use_dora: not supported"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out: not supported"),
    ({"bias": "all"}, "bias: 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save: not supported"),
    ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}}, "alpha_pattern, rank_pattern: not"),
    ({"layers_to_transform": [1]}, "layers_to_transform: not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base"),
    ({"lora_bias": True}, "lora_bias: not supported"),
    ({"invented_later": {"x": 1}}, "invented_later: not supported"),
    ({"target_modules": ["q_proj", "up_proj"]}, "target_modules: up_proj"),
    ({"target_modules": "all-linear"}, "target_modules: 'all-linear' is not a list"),
    ({"target_modules": []}, "target_modules"),
    ({"r": 0}, "r: 0"),
    ({"r": None}, "r: None"),
    ({"lora_alpha": "x"}, "lora_alpha: 'x'"),
]


@pytest.mark.parametrize(("changes", "match"), UNSUPPORTED, ids=[str(c) for c, _ in UNSUPPORTED])
def test_options_that_are_not_understood_are_refused_by_name(base, adapter, tmp_path, changes, match):
    broken = copy(adapter, tmp_path / "broken")
    edit_json(broken / "adapter_config.json", **changes)
    refused(tmp_path, rf"adapter_config\.json: .*{match}", base, broken, ConfigError)


def test_adapter_tensors_must_be_exactly_those_of_the_configuration(base, adapter, tmp_path):
    broken = copy(adapter, tmp_path / "broken")
    edit_json(broken / "adapter_config.json", target_modules=["q_proj"])
    refused(tmp_path, r"18 unexpected: base_model\.model\.model\.layers\.0\.self_attn\.k_proj", base, broken)
    edit_json(broken / "adapter_config.json", target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], r=5)
    refused(tmp_path, r"24 of the wrong shape: .*is \[6, 128\], not \[5, 128\]", base, broken)
    (broken / "adapter_model.safetensors").write_bytes(b"\0" * 50)
    refused(tmp_path, r"adapter_model\.safetensors", base, broken)
    (broken / "adapter_model.safetensors").unlink()
    refused(tmp_path, r"adapter_model\.safetensors", base, broken)


def test_broken_speech_parts_are_refused(base, adapter, tmp_path):
    broken = copy(adapter, tmp_path / "broken")
    speech = load_file(broken / "speech/model.safetensors")
    del speech["fusion.bias"]
    save_file(speech, broken / "speech/model.safetensors")
    refused(tmp_path, r"1 missing: fusion\.bias", base, broken)


# base models of others


def test_old_and_new_spellings_of_the_base_configuration(ours, base, adapter, tmp_path):
    old = copy(base, tmp_path / "old")
    data = json.loads((old / "config.json").read_text())
    theta = data.pop("rope_parameters")["rope_theta"]
    data |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "float32", "pretraining_tp": 1}
    data |= {"_attn_implementation_autoset": True, "attn_implementation": "sdpa", "_commit_hash": "f5db02d"}
    data |= {"unsloth_version": "2024.9", "gradient_checkpointing": False, "quantization_config": None}
    (old / "config.json").write_text(json.dumps(data))
    state = load_file(old / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(state, old / "model.safetensors")
    convert_peft(old, adapter, tmp_path / "back")
    same(ours, tmp_path / "back")


def test_a_tied_output_layer_is_the_embedding(base, adapter, tmp_path):
    tied = copy(base, tmp_path / "tied")
    state = load_file(tied / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tied / "model.safetensors")
    refused(tmp_path, r"1 missing: lm_head\.weight", tied, adapter)
    edit_json(tied / "config.json", tie_word_embeddings=True)
    convert_peft(tied, adapter, tmp_path / "back")
    back = open_tensors(tmp_path / "back")
    assert torch.equal(back.get("llama.lm_head.weight"), state["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"model_type": "mistral"}, ConfigError, "model_type: 'mistral'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, ConfigError, "rope_type: 'llama3'"),
        (
            {"rope_parameters": {"rope_theta": 1e4}},
            CheckpointError,
            r"rope_theta is 10000\.0",
        ),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, ConfigError, "factor: unknown field"),
        ({"quantization_config": {"bits": 4}}, ConfigError, "quantization_config: unknown field"),
        ({"num_key_value_heads": 2}, ConfigError, "grouped-query"),
        ({"num_hidden_layers": None}, ConfigError, "num_hidden_layers: expected int, got NoneType"),
        ({"num_hidden_layers": 2}, CheckpointError, r"9 unexpected: model\.layers\.2"),
        ({"num_attention_heads": 8, "head_dim": 16, "num_key_value_heads": 8}, CheckpointError, "heads is 8"),
    ],
)
def test_another_base_model_is_refused(base, adapter, tmp_path, changes, error, match):
    broken = copy(base, tmp_path / "broken")
    edit_json(broken / "config.json", **changes)
    refused(tmp_path, match, broken, adapter, error)


@pytest.mark.parametrize("part", ["norm.weight", "embed_tokens.weight", "layers.2.self_attn.v_proj.weight"])
def test_a_base_model_of_the_same_sizes_but_other_weights_is_refused(base, adapter, tmp_path, part):
    other = copy(base, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state[f"model.{part}"] = state[f"model.{part}"] * 1.05
    save_file(state, other / "model.safetensors", {"format": "pt"})
    refused(tmp_path, rf"other: .*another base model \(llama\.{part} differs\).*chat", other, adapter)
    (copy(adapter, tmp_path / "old") / "speech/base_probe.safetensors").unlink()
    convert_peft(other, tmp_path / "old", tmp_path / "back")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_model_in_another_dtype_is_the_same(base, adapter, tmp_path, dtype):
    rounded = copy(base, tmp_path / "rounded")
    state = load_file(rounded / "model.safetensors")
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    save_file(state, rounded / "model.safetensors", {"format": "pt"})
    convert_peft(rounded, adapter, tmp_path / "back")


def test_a_broken_probe_is_named(base, adapter, tmp_path):
    broken = copy(adapter, tmp_path / "broken")
    (broken / "speech/base_probe.safetensors").write_bytes(b"\0" * 50)
    refused(tmp_path, r"base_probe\.safetensors", base, broken)


def test_the_probe_is_asked_where_the_speech_parts_come_from_elsewhere(ours, base, adapter, tmp_path):
    convert_peft(base, adapter, tmp_path / "back", speech_from=ours)
    make_tiny(tmp_path / "tiny", CONFIG, seed=7)
    other = make_hf_llama(tmp_path / "tiny", tmp_path / "other")
    refused(tmp_path / "x", "another base model", other, adapter, speech_from=ours)


def test_outputs_that_hold_something_are_left_alone(ours, base, adapter, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert_peft(base, adapter, tmp_path / "full")
    with pytest.raises(CheckpointError, match="is not empty"):
        export_peft(ours, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_alpha_is_pefts_own_where_an_adapter_does_not_say(tmp_path: Path) -> None:
    assert _scaling({"r": 16}, 16) == peft.LoraConfig(r=16).lora_alpha / 16
    with pytest.raises(ConfigError, match="lora_alpha"):
        _scaling({"lora_alpha": 10**400}, 16)
