"""The published checkpoint becomes a model directory exactly, or is refused by name, nothing written."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, WavLMConfig, WhisperConfig

from model.checkpoint_format import CheckpointError, expected_tensors, open_tensors
from model.config import BranchConfig, ConfigError, LoraConfig, SpeechLLMConfig
from model.convert import convert_published
from tests.model.published_layout import (
    LETTERS,
    LLAMA,
    hf_wavlm,
    hf_whisper,
    make_published,
    make_spec,
    published_tensors,
    save_published,
)

TINY = SpeechLLMConfig.tiny(name="wavllm")
TRAINED = dataclasses.replace(TINY, random_weights=False)
OTHER = dataclasses.replace(
    TRAINED,
    wavlm=dataclasses.replace(
        TINY.wavlm, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True, num_hidden_layers=2
    ),
    whisper_branch=BranchConfig(20, 36, 12, 40),
    lora=LoraConfig(4, ("q_proj", "v_proj")),
    wavlm_do_normalize=True,
)
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(folder with final.pt, spec.json, tokenizer.model; its tensors)"""
    folder = tmp_path_factory.mktemp("published")
    return folder, make_published(folder, TRAINED)


def convert(folder: Path, output: Path, **options) -> SpeechLLMConfig:
    options = {"spec": folder / "spec.json"} | options
    return convert_published(folder / "final.pt", folder / "tokenizer.model", output, **options)


def with_spec(folder: Path, target: Path, change) -> Path:
    """The folder's files under `target`, its specification changed in place by `change`."""
    target.mkdir()
    for name in ("final.pt", "tokenizer.model"):
        (target / name).symlink_to(folder / name)
    spec = json.loads((folder / "spec.json").read_text())
    change(spec)
    (target / "spec.json").write_text(json.dumps(spec))
    return target


# names


@pytest.mark.parametrize(
    "config", [TRAINED, OTHER, SpeechLLMConfig.released()], ids=["tiny", "other", "released"]
)
def test_the_encoders_have_the_names_and_shapes_of_transformers(config):
    modules = {
        "whisper.": hf_whisper(config),
        "wavlm.": hf_wavlm(config, mask_time_prob=0.0, mask_feature_prob=0.0),
    }
    for prefix, module in modules.items():
        theirs = {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        ours = {name: shape for name, shape in expected_tensors(config).items() if name.startswith(prefix)}
        assert ours == theirs


def renamed(tensors: dict[str, torch.Tensor], config: SpeechLLMConfig) -> dict[str, torch.Tensor]:
    """A few of the published tensors, of every kind, under the names that a model directory gives them."""
    names = {
        "whisper.layers.1.fc1.bias": "audio_encoder.model.layers.1.fc1.bias",
        "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original0": (
            "wavlm_encoder.model.encoder.pos_conv_embed.conv.weight_g"
        ),
        "wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
            "wavlm_encoder.model.encoder.pos_conv_embed.conv.weight_v"
        ),
        "wavlm.encoder.layers.0.attention.rel_attn_embed.weight": (
            "wavlm_encoder.model.encoder.layers.0.attention.rel_attn_embed.weight"
        ),
        "wavlm_layer_weights": "wavlm_encoder.output_weights",
        "fusion.weight": "wavlm_audio_proj.weight",
        "prompt_adapter.fc1.weight": LLAMA + "scale_fc_1.weight",
        "prompt_adapter.fc2.bias": LLAMA + "scale_fc_2.bias",
        "prompt_adapter.attention.bias": LLAMA + "scale_weight_attention.bias",
        "llama.embed_tokens.weight": LLAMA + "tok_embeddings.weight",
        "llama.lm_head.weight": LLAMA + "output.weight",
        "llama.norm.weight": LLAMA + "norm.weight",
    }
    for branch, encoder in (("whisper_branch", "audio_encoder"), ("wavlm_branch", "wavlm_encoder")):
        names[f"{branch}.subsampler.1.weight"] = f"{encoder}.subsample.conv_layers.1.weight"
        names[f"{branch}.bottleneck.down.bias"] = f"{encoder}.adapter.down_layer.bias"
        names[f"{branch}.bottleneck.up.bias"] = f"{encoder}.adapter.up_layer.bias"
        names[f"{branch}.bottleneck.norm.weight"] = f"{encoder}.adapter.layer_norm.weight"
        names[f"{branch}.projector.weight"] = f"{encoder}.projector.weight"
    for layer in range(config.llama.num_hidden_layers):
        ours, theirs = f"llama.layers.{layer}.", f"{LLAMA}layers.{layer}."
        for projection, letter in LETTERS.items():
            names[f"{ours}self_attn.{projection}.weight"] = f"{theirs}attention.w{letter}.weight"
        for projection in config.lora.target_modules:
            for half in ("lora_A", "lora_B"):
                name = f"{ours}self_attn.{projection}.{half}"
                names[name] = f"{theirs}attention.w{LETTERS[projection]}_{half}"
        names[ours + "mlp.gate_proj.weight"] = theirs + "feed_forward.w1.weight"
        names[ours + "mlp.up_proj.weight"] = theirs + "feed_forward.w3.weight"
        names[ours + "mlp.down_proj.weight"] = theirs + "feed_forward.w2.weight"
        names[ours + "input_layernorm.weight"] = theirs + "attention_norm.weight"
        names[ours + "post_attention_layernorm.weight"] = theirs + "ffn_norm.weight"
    return {ours: tensors[theirs] for ours, theirs in names.items()}


@pytest.mark.parametrize("config", [TRAINED, OTHER], ids=["tiny", "other"])
def test_conversion_is_exact(tmp_path, config):
    tensors = make_published(tmp_path / "in", config)
    seen: list[tuple[int, int, str]] = []
    result = convert(tmp_path / "in", tmp_path / "out", progress=lambda *args: seen.append(args))
    assert result == config == SpeechLLMConfig.load(tmp_path / "out")
    converted = open_tensors(tmp_path / "out")
    for name, tensor in renamed(tensors, config).items():
        assert torch.equal(converted.get(name), tensor), name
    assert len(converted.shapes) == len(tensors) - 3  # audio_proj's two, masked_spec_embed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (tmp_path / "in/tokenizer.model").read_bytes()
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1] == converted.num_bytes


def test_the_golden_checkpoint_converts(tmp_path):
    config = convert(GOLDEN, tmp_path / "out", name="golden")
    assert (config.name, config.lora.r, config.wavlm_do_normalize) == ("golden", 8, False)
    assert config.whisper_branch == BranchConfig(64, 48, 24, 64)
    assert config.wavlm_branch == BranchConfig(32, 48, 24, 64)
    reference = torch.load(GOLDEN / "final.pt", weights_only=False)["model"]
    converted = open_tensors(tmp_path / "out")
    for name, tensor in renamed(reference, config).items():
        assert torch.equal(converted.get(name), tensor), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_is_cast_to(published, tmp_path, dtype):
    folder, tensors = published
    convert(folder, tmp_path / "out", dtype=dtype)
    converted = open_tensors(tmp_path / "out")
    kind = getattr(torch, dtype)
    assert set(converted.dtypes.values()) == {kind}
    for name, tensor in renamed(tensors, TRAINED).items():
        assert torch.equal(converted.get(name), tensor.to(kind))


def test_each_tensor_keeps_its_dtype_unless_told_otherwise(tmp_path):
    tensors = make_published(tmp_path / "in", TRAINED)
    kinds = [torch.bfloat16, torch.float32, torch.float16]
    mixed = {name: tensor.to(kinds[i % 3]) for i, (name, tensor) in enumerate(tensors.items())}
    save_published(tmp_path / "in/final.pt", mixed)
    convert(tmp_path / "in", tmp_path / "out")
    converted = open_tensors(tmp_path / "out")
    for name, tensor in renamed(mixed, TRAINED).items():
        assert converted.dtypes[name] == tensor.dtype
        assert torch.equal(converted.get(name), tensor)


# refusals


def refused(folder: Path, tmp_path: Path, match: str | None, error=CheckpointError, **options) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match):
        convert(folder, tmp_path / "out", **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_unexpected_and_misshapen_tensors_are_named(published, tmp_path):
    folder, tensors = published
    changed = dict(tensors)
    del changed["wavlm_audio_proj.bias"]
    changed["audio_encoder.model.layers.9.fc1.bias"] = torch.ones(1)
    changed[LLAMA + "norm.weight"] = torch.ones(5)
    target = with_spec(folder, tmp_path / "in", lambda spec: None)
    (target / "final.pt").unlink()
    save_published(target / "final.pt", changed)
    refused(target, tmp_path, r"1 missing: wavlm_audio_proj\.bias")
    refused(target, tmp_path, r"1 unexpected: audio_encoder\.model\.layers\.9\.fc1\.bias")
    refused(target, tmp_path, r"1 of the wrong shape: .*\.norm\.weight is \[5\], not \[128\]")


def test_many_wrong_names_are_counted(published, tmp_path):
    folder, _ = published
    refused(
        folder,
        tmp_path,
        r"no spec is given\): 1114 missing: ([^, ]+, ){5}\.\.\.; 196 of the wrong",
        spec=None,
    )


def test_integer_weights_are_refused(published, tmp_path):
    folder, tensors = published
    target = with_spec(folder, tmp_path / "in", lambda spec: None)
    (target / "final.pt").unlink()
    save_published(target / "final.pt", tensors | {LLAMA + "norm.weight": torch.ones(128, dtype=torch.int64)})
    refused(target, tmp_path, r"norm\.weight is torch\.int64")


def test_a_number_that_the_dtype_cannot_hold_is_refused(published, tmp_path):
    folder, tensors = published
    target = with_spec(folder, tmp_path / "in", lambda spec: None)
    (target / "final.pt").unlink()
    save_published(target / "final.pt", tensors | {LLAMA + "norm.weight": torch.full((128,), 1e5)})
    refused(target, tmp_path, r"llama\.norm\.weight: holds numbers", dtype="float16")


def test_a_tokenizer_of_another_size_or_kind_is_refused(published, tmp_path):
    folder, _ = published
    target = with_spec(folder, tmp_path / "in", lambda spec: None)
    (target / "tokenizer.model").unlink()
    (target / "tokenizer.model").write_bytes((GOLDEN / "tokenizer.model").read_bytes())
    refused(target, tmp_path, "640 pieces, the language model's vocabulary 512")
    for garbage in (b"", b"no tokenizer"):
        (target / "tokenizer.model").write_bytes(garbage)
        refused(target, tmp_path, "tokenizer.model")


def test_an_unknown_dtype_is_refused(published, tmp_path):
    refused(published[0], tmp_path, "'int8' is not one of float32, bfloat16, float16", dtype="int8")


def test_an_output_that_holds_something_is_left_alone(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(published[0], tmp_path, "is not empty")


def test_an_empty_output_directory_is_taken(published, tmp_path):
    (tmp_path / "out").mkdir()
    convert(published[0], tmp_path / "out")
    assert open_tensors(tmp_path / "out").num_bytes > 0


def test_an_error_on_the_way_leaves_nothing(published, tmp_path):
    def stop(done, total, name):
        if done > total / 2:
            raise KeyboardInterrupt

    refused(published[0], tmp_path, None, error=KeyboardInterrupt, progress=stop)


DIE_HALFWAY = """
import os, signal, sys
from pathlib import Path
from model.convert import convert_published

def die(done, total, name):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

folder, output = map(Path, sys.argv[1:])
files = folder / "final.pt", folder / "tokenizer.model"
convert_published(*files, output, spec=folder / "spec.json", progress=die)
"""


def test_a_killed_conversion_leaves_no_directory_that_looks_whole(published, tmp_path):
    command = [sys.executable, "-c", DIE_HALFWAY, str(published[0]), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert not list(left.glob("*.safetensors*"))
    assert not (left / "config.json").exists()


# the specification

REFUSED = [
    ("whisper", "activation_function", "relu", r"whisper\.activation_function: 'relu' is not supported"),
    ("whisper", "scale_embedding", True, r"whisper\.scale_embedding"),
    ("whisper", "cross_attention_rank", 4, r"whisper\.cross_attention_rank: unknown field"),
    ("whisper", "encoder_attention_heads", 5, r"whisper\.encoder_attention_heads: 5 does not divide"),
    ("whisper", "d_model", "64", r"whisper\.d_model: expected int, got str"),
    ("whisper", "encoder_layers", 0, r"whisper\.encoder_layers: 0 is not positive"),
    ("wavlm", "hidden_act", "relu", r"wavlm\.hidden_act"),
    ("wavlm", "add_adapter", True, r"wavlm\.add_adapter"),
    ("wavlm", "feat_extract_norm", "batch", r"wavlm\.feat_extract_norm: 'batch'"),
    ("wavlm", "feat_extract_activation", "relu", r"wavlm\.feat_extract_activation: 'relu'"),
    ("wavlm", "conv_kernel", [10, 3], r"wavlm\.conv_dim: .* differ in length"),
    ("wavlm", "conv_dim", 32, r"wavlm\.conv_dim: expected a list"),
    ("llama", "hidden_act", "gelu", r"llama\.hidden_act"),
    ("llama", "attention_bias", True, r"llama\.attention_bias"),
    ("llama", "num_key_value_heads", 2, r"llama\.num_key_value_heads"),
    ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}, r"llama\.rope_scaling\.type: 'linear'"),
    (
        "llama",
        "rope_parameters",
        {"rope_theta": 5e5},
        r"llama\.rope_parameters\.rope_theta: 500000\.0",
    ),
    ("llama", "head_dim", 64, r"llama\.head_dim"),
    ("llama", "tie_word_embeddings", True, r"llama\.tie_word_embeddings"),
    ("llama", "sliding_window", 128, r"llama\.sliding_window: unknown field"),
    ("prompt_adapter", "min_scale", 1.0, r"prompt_adapter\.min_scale: unknown field"),
    ("feature_extractors", "llama", {}, r"feature_extractors\.llama: unknown field"),
    ("feature_extractors", "whisper", {"hop_length": 100}, r"feature_extractors\.whisper\.hop_length: 100"),
    ("feature_extractors", "whisper", {"feature_size": 128}, r"feature_extractors\.whisper\.feature_size"),
    ("feature_extractors", "whisper", {"chunk_length": 10}, r"max_source_positions: 1500 does not fit"),
    ("feature_extractors", "wavlm", {"sampling_rate": 8000}, r"feature_extractors\.wavlm\.sampling_rate"),
    ("feature_extractors", "wavlm", {"do_normalize": "no"}, r"wavlm_do_normalize: expected bool"),
]


@pytest.mark.parametrize(("section", "name", "value", "match"), REFUSED)
def test_what_would_change_the_mathematics_is_refused(published, tmp_path, section, name, value, match):
    target = with_spec(published[0], tmp_path / "in", lambda spec: spec[section].update({name: value}))
    refused(target, tmp_path, rf"spec\.json: .*{match}", error=ConfigError)


def test_unknown_and_missing_sections_are_named(published, tmp_path):
    target = with_spec(published[0], tmp_path / "a", lambda spec: spec.update(vocoder={}))
    refused(target, tmp_path, "vocoder: unknown field", error=ConfigError)
    target = with_spec(published[0], tmp_path / "b", lambda spec: spec.pop("llama"))
    refused(target, tmp_path, "llama: missing", error=ConfigError)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"whisper": 3}'])
def test_a_specification_that_is_none_is_refused(published, tmp_path, content):
    target = with_spec(published[0], tmp_path / "in", lambda spec: None)
    (target / "spec.json").write_text(content)
    refused(target, tmp_path, r"spec\.json", error=ConfigError)


def test_whole_hugging_face_configurations_are_understood(published, tmp_path):
    def to_full(spec):
        theta = spec["llama"].pop("rope_theta")
        spec["whisper"] = WhisperConfig(**spec["whisper"]).to_dict()
        spec["wavlm"] = WavLMConfig(**spec["wavlm"]).to_dict()
        llama = LlamaConfig(**spec["llama"], rope_parameters={"rope_type": "default", "rope_theta": theta})
        spec["llama"] = llama.to_dict()
        spec["lora"] = {"r": 8, "lora_alpha": 8, "target_modules": ["v_proj", "o_proj", "k_proj", "q_proj"]}

    target = with_spec(published[0], tmp_path / "in", to_full)
    assert convert(target, tmp_path / "out") == TRAINED


@pytest.mark.parametrize(
    ("extractors", "normalize"),
    [({}, False), ({"wavlm": {"do_normalize": True}}, True), ({"wavlm": {}}, True)],
)
def test_the_feature_extractor_decides_on_normalisation(published, tmp_path, extractors, normalize):
    target = with_spec(published[0], tmp_path / "in", lambda s: s.update(feature_extractors=extractors))
    assert convert(target, tmp_path / "out").wavlm_do_normalize is normalize


@pytest.mark.parametrize(
    ("lora", "error", "match"),
    [
        ({"lora_alpha": 16, "r": 8}, ConfigError, r"lora\.lora_alpha: 16 is not r"),
        ({"use_dora": True}, ConfigError, r"lora\.use_dora"),
        ({"target_modules": ["gate_proj"]}, ConfigError, r"gate_proj"),
        ({"r": 4}, CheckpointError, r"24 of the wrong shape: .*wq_lora_A is \[128, 8\], not \[128, 4\]"),
        ({"target_modules": ["q_proj"]}, CheckpointError, r"18 unexpected: .*wk_lora_A"),
    ],
)
def test_a_lora_that_the_checkpoint_does_not_have_is_refused(published, tmp_path, lora, error, match):
    target = with_spec(published[0], tmp_path / "in", lambda spec: spec.update(lora=lora))
    refused(target, tmp_path, match, error=error)


def test_sizes_cannot_be_read_off_tensors_that_are_missing(tmp_path):
    tensors = published_tensors(TRAINED)
    make_published(tmp_path / "in", TRAINED)
    without = {name: tensor for name, tensor in tensors.items() if "projector" not in name}
    save_published(tmp_path / "in/final.pt", without)
    refused(tmp_path / "in", tmp_path, r"final\.pt: 1 missing: audio_encoder\.projector\.weight")
    flat = tensors | {"audio_encoder.projector.weight": torch.ones(3)}
    save_published(tmp_path / "in/final.pt", flat)
    refused(tmp_path / "in", tmp_path, r"audio_encoder\.projector\.weight is \[3\]")
    assert make_spec(TRAINED)["whisper"]["d_model"] == 64
