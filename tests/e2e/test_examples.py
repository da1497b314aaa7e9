"""The examples, run as a user would, against a real server with the golden model and an API key."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from e2e_client import GOLDEN, SHORT, golden_ids, metrics_of, read_sse, until
from server_process import ServerProcess

from model.checkpoint import load_model

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
KEY = "example-key"
SHORT_CLIP = GOLDEN / "audio" / SHORT["audio"]
GRPCURL = shutil.which("grpcurl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_grpcurl = pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed")
needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="Node and npm are not installed")


@pytest.fixture(scope="module")
def keyed(golden_model: Path) -> Iterator[ServerProcess]:
    """A server that asks for the key."""
    with ServerProcess(golden_model, "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples in a file of several pieces, twice over and in 32 bits, under a name to be quoted."""
    samples, rate = soundfile.read(SHORT_CLIP, dtype="float64")
    file = tmp_path_factory.mktemp("clips") / "a, b;c.wav"
    soundfile.write(file, np.stack([samples, samples], axis=1), rate, subtype="FLOAT")
    assert file.stat().st_size > 96 * 1024
    return file


@pytest.fixture(scope="module")
def answer(golden_model: Path) -> str:
    """The published answer to SHORT, as text."""
    _, tokenizer = load_model(golden_model, torch.device("cpu"), torch.float32)
    return tokenizer.decode(golden_ids(SHORT))


def run(server: ServerProcess, *command: str, key: str = KEY, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Exit status, output and errors of an example about this server."""
    where = {"WAVLLM_URL": server.url, "WAVLLM_GRPC": server.grpc_target, "WAVLLM_API_KEY": key}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **where, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    return done.returncode, done.stdout, done.stderr


def succeed(server: ServerProcess, *command: str, cwd: Path = ROOT) -> str:
    """The output of an example that has nothing to complain of."""
    code, output, errors = run(server, *command, cwd=cwd)
    assert (code, errors) == (0, ""), output + errors
    return output


def question(clip: Path) -> list[str]:
    """An example's arguments: the golden question about this clip."""
    return [str(clip), SHORT["prompt"]]


def sections(output: str) -> dict[str, str]:
    """What a shell example printed, by its headings."""
    parts = re.split(r"^# (.+)\n", output, flags=re.M)
    assert parts[0] == ""
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def messages(text: str) -> list[dict[str, Any]]:
    """JSON values end to end."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def cancelled(server: ServerProcess) -> float:
    """Requests whose client left."""
    counts = metrics_of(server).items()
    return sum(count for name, count in counts if name.startswith("wavllm_requests_cancelled_total/"))


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    """A file that is no clip, with a name that has to be quoted."""
    file = tmp_path / "a, b;c.wav"
    file.write_bytes(b"%PDF-1.7 and so on")
    return file


def test_every_example_is_run_here() -> None:
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*") if path.is_file()}
    assert files == {"README.md", "curl.sh", "grpcurl.sh", "openai_client.py", "grpc_client.py"}


@needs_curl
def test_curl(keyed: ServerProcess, answer: str, clip: Path) -> None:
    printed = sections(succeed(keyed, "examples/curl.sh", *question(clip)))
    models, whole, stream, as_json, transcript = printed.values()
    assert json.loads(models)["data"][0]["max_upload_bytes"] == 25 * 2**20
    for text in (whole, as_json):
        assert json.loads(text)["choices"][0]["message"]["content"] == answer
    read_sse(stream + "\n\n")
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == answer
    assert transcript
    assert not transcript.startswith("{")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([str(EXAMPLES / "curl.sh")], marks=needs_curl),
        pytest.param([str(EXAMPLES / "grpcurl.sh")], marks=needs_grpcurl),
        [sys.executable, str(EXAMPLES / "openai_client.py")],
        [sys.executable, str(EXAMPLES / "grpc_client.py")],
    ],
    ids=lambda command: Path(command[-1]).name,
)
def test_without_arguments_and_from_another_folder(
    keyed: ServerProcess, tmp_path: Path, command: list[str]
) -> None:
    assert succeed(keyed, *command, cwd=tmp_path)


@pytest.mark.parametrize("script", ["curl.sh", "grpcurl.sh"])
@pytest.mark.parametrize("prompt", ['Who said "no"?', "One\\two", "One,\ntwo"])
def test_a_prompt_that_would_break_the_json_is_not_sent(
    keyed: ServerProcess, clip: Path, script: str, prompt: str
) -> None:
    code, output, errors = run(keyed, f"examples/{script}", str(clip), prompt)
    assert (code, output) == (2, "")
    assert "no quotes, backslashes and line feeds" in errors


@needs_curl
def test_curl_shows_a_refusal(keyed: ServerProcess, clip: Path, pdf: Path) -> None:
    code, output, errors = run(keyed, "examples/curl.sh", *question(pdf))
    assert code == 22
    assert json.loads(output.splitlines()[-1])["error"]["code"] == "unsupported_audio"
    assert "415" in errors
    code, output, _ = run(keyed, "examples/curl.sh", *question(clip), key="wrong")
    assert (code, json.loads(output.splitlines()[-1])["error"]["code"]) == (22, "invalid_api_key")


def test_openai(keyed: ServerProcess, clip: Path, answer: str) -> None:
    printed = succeed(keyed, sys.executable, "examples/openai_client.py", *question(clip))
    transcript = httpx.post(
        f"{keyed.url}/v1/audio/transcriptions",
        headers={"authorization": f"Bearer {KEY}"},
        files={"file": clip.read_bytes()},
        timeout=60,
    ).json()["text"]
    assert printed == f"whole: {answer}\nstreamed: {answer}\ntranscript: {transcript}\n"


def test_openai_shows_a_refusal(keyed: ServerProcess, pdf: Path) -> None:
    code, _, errors = run(keyed, sys.executable, "examples/openai_client.py", *question(pdf))
    assert code == 1
    assert re.fullmatch(r"refused with 415: .+\nrequest \w+\n", errors), errors


def test_openai_without_a_server(keyed: ServerProcess, clip: Path) -> None:
    code, _, errors = run(
        keyed,
        "env",
        "WAVLLM_URL=http://127.0.0.1:9",
        sys.executable,
        "examples/openai_client.py",
        *question(clip),
    )
    assert (code, errors) == (1, "failed: Connection error.\n")


def test_grpc(keyed: ServerProcess, clip: Path, answer: str) -> None:
    before = cancelled(keyed)
    printed = succeed(keyed, sys.executable, "examples/grpc_client.py", *question(clip))
    told = f"{answer}\n(stop, {len(golden_ids(SHORT))} tokens)\n"
    start = f"streamed: {told}uploaded: {told}cancelled: "
    assert printed.startswith(start)
    left = printed.removeprefix(start)
    assert re.fullmatch(r"chatcmpl-\w+ after `accepted`, status CANCELLED\n", left)
    until(lambda: cancelled(keyed) == before + 1, "the server did not see the cancellation")


def test_grpc_deadline(keyed: ServerProcess, clip: Path) -> None:
    code, _, errors = run(keyed, sys.executable, "examples/grpc_client.py", *question(clip), "0.02")
    assert code == 1
    assert errors.startswith("DEADLINE_EXCEEDED: "), errors


def test_grpc_shows_a_refusal(keyed: ServerProcess, pdf: Path) -> None:
    code, _, errors = run(keyed, sys.executable, "examples/grpc_client.py", *question(pdf))
    assert code == 1
    assert re.fullmatch(r"INVALID_ARGUMENT: .+, code unsupported_audio, field audio\n", errors), errors


@needs_grpcurl
def test_grpcurl(keyed: ServerProcess, clip: Path, answer: str) -> None:
    printed = sections(succeed(keyed, "examples/grpcurl.sh", *question(clip)))
    listed, health, model, whole, stream, upload = printed.values()
    assert "rpc ChatUpload ( stream .wavllm.v1.ChatUploadRequest )" in listed
    assert json.loads(health) == {"status": "SERVING"}
    assert json.loads(model)["max_upload_bytes"] == str(25 * 2**20)
    assert json.loads(whole)["text"] == answer
    for text in (stream, upload):
        accepted, *deltas, done = messages(text)
        assert "accepted" in accepted
        assert "".join(event["delta"]["text"] for event in deltas) == answer
        assert done["done"]["finish_reason"] == "stop"


@needs_grpcurl
def test_grpcurl_shows_a_refusal(keyed: ServerProcess, pdf: Path) -> None:
    code, _, errors = run(keyed, "examples/grpcurl.sh", *question(pdf))
    assert code == 64 + 3
    assert "Code: InvalidArgument" in errors
    assert "unsupported_audio" in errors


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example installed from its lock, outside of the checkout, beside the contract it reads."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "proto", root / "proto")
    shutil.copytree(EXAMPLES / "clips", root / "examples" / "clips")
    shutil.copytree(
        EXAMPLES / "node", root / "examples" / "node", ignore=shutil.ignore_patterns("node_modules")
    )
    folder = root / "examples" / "node"
    done = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@needs_node
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_node(keyed: ServerProcess, clip: Path, answer: str, node: Path) -> None:
    printed = succeed(keyed, "node", "client.mjs", *question(clip), cwd=node)
    told = f"{answer}\n(stop, {len(golden_ids(SHORT))} tokens)\n"
    assert printed == f"streamed: {told}uploaded: {told}"
    assert succeed(keyed, "node", str(node / "client.mjs"), cwd=clip.parent), "and with what it brings along"


@needs_node
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_node_shows_a_refusal(keyed: ServerProcess, clip: Path, node: Path, pdf: Path) -> None:
    code, _, errors = run(keyed, "node", "client.mjs", *question(pdf), cwd=node)
    assert code == 1
    assert errors.startswith("INVALID_ARGUMENT: The bytes"), errors
    code, _, errors = run(keyed, "node", "client.mjs", *question(clip), key="wrong", cwd=node)
    assert (code, errors) == (1, "UNAUTHENTICATED: The API key is not known here.\n")


def test_the_lock_of_node_pins_what_the_package_asks_for() -> None:
    package = json.loads((EXAMPLES / "node" / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text(encoding="utf-8"))
    locked = {name: entry["version"] for name, entry in lock["packages"].items() if name}
    for name, version in package["dependencies"].items():
        assert locked[f"node_modules/{name}"] == version
