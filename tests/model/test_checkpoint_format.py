"""A model directory is written whole, read strictly, and refused by name where it is damaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from model.checkpoint_format import CheckpointError, ShardWriter, expected_tensors, open_tensors
from model.config import LoraConfig, SpeechLLMConfig

TINY = SpeechLLMConfig.tiny()
GOLDEN = Path(__file__).parents[1] / "golden"


def write(directory: Path, shard_bytes: int) -> dict[str, torch.Tensor]:
    shapes = expected_tensors(TINY)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tokenizer = GOLDEN / "tokenizer.model"
    with ShardWriter(directory, TINY, tokenizer=tokenizer, shard_bytes=shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return tensors


def test_shards_and_their_index_read_back(tmp_path):
    tensors = write(tmp_path / "out", 600_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 4
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(shard.stat().st_size < 700_000 for shard in shards)
    read = open_tensors(tmp_path / "out")
    assert all(torch.equal(read.get(name), tensor) for name, tensor in tensors.items())
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == read.num_bytes


def test_tensors_lie_at_multiples_of_their_item_size(tmp_path):
    """One bfloat16 number would shift every float32 tensor after it by two bytes."""
    with ShardWriter(tmp_path / "out", TINY, tokenizer=GOLDEN / "tokenizer.model") as writer:
        for name, shape in expected_tensors(TINY).items():
            odd = name == "prompt_adapter.attention.bias"
            writer.add(name, torch.ones(shape, dtype=torch.bfloat16 if odd else torch.float32))
    sizes = {"F32": 4, "BF16": 2}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        content = shard.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        del header["__metadata__"]
        for entry in header.values():
            assert (8 + length + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0
    assert open_tensors(tmp_path / "out").dtypes["prompt_adapter.attention.bias"] == torch.bfloat16


def test_a_writer_takes_exactly_the_expected_tensors(tmp_path):
    tokenizer = GOLDEN / "tokenizer.model"
    with (  # noqa: PT012
        pytest.raises(CheckpointError, match=r"199 missing: whisper\.conv1\.bias"),
        ShardWriter(tmp_path / "out", TINY, tokenizer=tokenizer) as writer,
    ):
        writer.add("whisper.conv1.weight", torch.ones(64, 80, 3))
        with pytest.raises(CheckpointError, match="written twice"):
            writer.add("whisper.conv1.weight", torch.ones(64, 80, 3))
        with pytest.raises(CheckpointError, match="not a tensor of this model"):
            writer.add("whisper.conv3.weight", torch.ones(1))
        with pytest.raises(CheckpointError, match=r"fusion\.bias is \[3\], not \[128\]"):
            writer.add("fusion.bias", torch.ones(3))
        with pytest.raises(CheckpointError, match=r"torch\.int64"):
            writer.add("fusion.bias", torch.ones(128, dtype=torch.int64))
    assert not list(tmp_path.iterdir())


def test_damaged_directories_are_refused_with_the_path(tmp_path):
    write(tmp_path / "out", 600_000)
    first, second, *_ = sorted((tmp_path / "out").glob("model-*.safetensors"))
    whole = first.read_bytes()
    for content in (b"", b"\0" * 100, whole[:1000], whole[:-1], b"\xff" * 8 + whole[8:]):
        first.write_bytes(content)
        with pytest.raises(CheckpointError, match=first.name):
            open_tensors(tmp_path / "out")
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="is also in"):
        open_tensors(tmp_path / "out")
    first.unlink()
    with pytest.raises(CheckpointError, match=first.name):
        open_tensors(tmp_path / "out")


def test_an_index_cannot_reach_outside_or_lie(tmp_path):
    write(tmp_path / "out", 600_000)
    path = tmp_path / "out/model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "fusion.bias"
    for shard, match in (("../x.safetensors", "not the name of a file"), ("model-00001", "model-00001")):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: shard}}))
        with pytest.raises(CheckpointError, match=match):
            open_tensors(tmp_path / "out")
    last = max(index["weight_map"].values())
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"whisper.conv1.weight": last}}))
    with pytest.raises(CheckpointError, match=r"disagree, first on whisper\.conv1\.weight"):
        open_tensors(tmp_path / "out")
    for content in ("", "[]", "{}", '{"weight_map": {}}'):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=path.name):
            open_tensors(tmp_path / "out")


def test_a_directory_whose_config_wants_other_tensors_is_refused(tmp_path):
    write(tmp_path / "out", 2**31)
    dataclasses.replace(TINY, lora=LoraConfig(8, ("q_proj",))).save(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"18 unexpected: llama\.layers\.0\.self_attn\.k_proj\.lora_A"):
        open_tensors(tmp_path / "out")
