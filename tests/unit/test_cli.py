"""The command line: light to import, helpful, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fakes import wav_clip

from server.cli_errors import CommandError, check_model_dir, check_server
from server.cli_serve import PANELS
from server.settings import Settings, flag_of

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "fastapi", "grpc", "numpy", "pydantic", "transformers", "uvicorn", "rich.progress")


def run(*args: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`wavllm ARGS`, with a wide terminal."""
    environment = {"COLUMNS": "200", "PYTHONPATH": str(ROOT), "TERM": "dumb", "NO_COLOR": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", *args],
        env=os.environ | environment,
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=60,
    )
    return subprocess.CompletedProcess(args, done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It failed with this code and one line that says these words."""
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("wavllm: ")
    for word in words:
        assert word in done.stderr


def test_importing_the_command_line_is_light():
    program = f"import sys, server.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"wavllm {project['version']}\n")


def test_help_lists_the_commands_and_each_has_an_example():
    top = run("--help")
    assert top.returncode == 0
    for command in ("serve", "ask", "convert", "export", "eval", "bench"):
        assert command in top.stdout
        text = run(command, "--help")
        assert text.returncode == 0
        assert f"wavllm {command}" in text.stdout


def test_serve_has_a_flag_for_every_setting():
    text = run("serve", "--help").stdout
    for name in Settings.model_fields:
        assert f"{flag_of(name)} " in text, name
    for panel in PANELS.values():
        assert panel in text
    assert set(PANELS) <= set(Settings.model_fields)


def test_print_config_shows_flags_over_environment_and_hides_keys():
    done = run(
        "serve",
        "--print-config",
        "--http-port=8123",
        "--api-key=sesame",
        "--api-key=second",
        "--drain-delay=0",
        "--merge-prompt=",
        WAVLLM_HTTP_PORT="1",
        WAVLLM_GRPC_PORT="50099",
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["http_port"], shown["grpc_port"], shown["drain_delay"]) == (8123, 50099, 0)
    assert shown["merge_prompt"] == ""
    assert len(shown["api_key"]) == 2
    assert "sesame" not in done.stdout


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["--http-port=99999"], "--http-port"),
        (["--queue-timeout=soon"], "--queue-timeout"),
        (["--tls-cert=a.pem"], "--tls-key"),
        (["--api-key-file=/nowhere"], "--api-key-file"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(args, flag):
    assert_one_line(run("serve", *args), 2, flag)


def test_a_bad_variable_is_named_by_its_flag():
    assert_one_line(run("serve", "--print-config", WAVLLM_DEVICE="gpu"), 2, "--device")


def test_an_unknown_flag_is_exit_code_2():
    done = run("serve", "--prot=1")
    assert done.returncode == 2
    assert "--prot" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_model_says_what_to_do(tmp_path: Path):
    assert_one_line(run("serve", f"--model={tmp_path}"), 1, "config.json", "wavllm convert")
    clip = tmp_path / "a.wav"
    clip.write_bytes(wav_clip())
    assert_one_line(run("ask", str(clip), "Hi", f"--model={tmp_path}"), 1, "config.json")


def test_the_missing_default_says_make_env(tmp_path: Path):
    with pytest.raises(CommandError, match="make env"):
        check_model_dir(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    check_model_dir(tmp_path, tmp_path)


@pytest.fixture
def odd_model(tmp_path: Path) -> Path:
    """A directory that passes for a model until it is loaded."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_ask_refuses_bad_audio_and_files_before_loading(tmp_path: Path, odd_model: Path):
    model = f"--model={odd_model}"
    assert_one_line(run("ask", str(tmp_path / "none.wav"), "Hi", model), 1, "none.wav", "No such file")
    assert_one_line(run("ask", "-", "Hi", model, stdin=b"%PDF-1.7"), 1)
    clip = tmp_path / "a.wav"
    clip.write_bytes(wav_clip())
    assert_one_line(run("ask", str(clip), "Hi", model, "--temperature=3"), 1, "temperature")
    assert_one_line(run("ask", str(clip), "Hi", model, "--max-tokens=0"), 2, "--max-tokens")


@pytest.mark.slow
def test_ask_says_why_a_model_does_not_load(tmp_path: Path, odd_model: Path):
    assert_one_line(run("ask", "-", "Hi", f"--model={odd_model}", stdin=wav_clip()), 1, "missing")


@pytest.mark.slow
def test_serve_says_why_a_model_does_not_load(odd_model: Path):
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0", "--host=127.0.0.1")
    done = run("serve", f"--model={odd_model}", *ports)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("wavllm: cannot load the model:")
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_clear_line(odd_model: Path):
    from server.http_server import bind

    with bind("127.0.0.1", 0)[0] as taken:
        port = taken.getsockname()[1]
        ports = (f"--http-port={port}", "--grpc-port=0", "--metrics-port=0", "--host=127.0.0.1")
        done = run("serve", f"--model={odd_model}", "--log-level=error", *ports)
    assert_one_line(done, 1, f"port {port}", "in use")


def test_a_grpc_port_in_use_is_one_clear_line(odd_model: Path):
    """gRPC's C core would write one of its own before it, unless the operator asks for that."""
    from server.http_server import bind

    with bind("127.0.0.1", 0)[0] as taken:
        port = taken.getsockname()[1]
        ports = ("--http-port=0", f"--grpc-port={port}", "--metrics-port=0", "--host=127.0.0.1")
        command = ("serve", f"--model={odd_model}", "--log-level=error", *ports)
        assert_one_line(run(*command), 1, "--grpc-port", str(port))
        done = run(*command, GRPC_VERBOSITY="ERROR")
    assert len(done.stderr.splitlines()) == 2


def test_convert_says_which_option_is_missing_or_too_many():
    published = ("convert", "--output=out", "--checkpoint=final.pt")
    assert_one_line(run("convert", "--output=out"), 2, "--checkpoint", "--peft")
    assert_one_line(run(*published), 2, "--tokenizer")
    assert_one_line(run(*published, "--base-model=llama"), 2, "--base-model")
    assert_one_line(run("convert", "--output=out", "--peft=adapter"), 2, "--base-model")


@pytest.mark.slow
def test_convert_and_export_say_which_file_is_bad(tmp_path: Path):
    checkpoint, tokenizer = tmp_path / "final.pt", tmp_path / "tokenizer.model"
    checkpoint.write_bytes(b"nonsense")
    tokenizer.write_bytes(b"nonsense")
    out = str(tmp_path / "out")
    inputs = (f"--checkpoint={checkpoint}", f"--tokenizer={tokenizer}")
    assert_one_line(run("convert", f"--output={out}", *inputs), 1, "final.pt")
    assert_one_line(run("export", f"--model={tmp_path / 'none'}", f"--peft={out}"), 1, "none")
    assert not Path(out).exists()


def test_bench_fails_in_one_line(tmp_path: Path):
    nobody = "--server=http://127.0.0.1:9"
    assert_one_line(run("bench", "--request-rate=1,fast"), 2, "--request-rate", "fast")
    assert_one_line(run("bench", nobody, f"--output={tmp_path}"), 1, "127.0.0.1:9", "cannot connect")
    assert list(tmp_path.iterdir()) == []
    assert_one_line(run("bench", "--server=http://localhost:abc"), 2, "--server", "localhost:abc")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "http://",
        "http:///v1",
        "http://localhost:abc",
        "http://localhost:99999",
        "http://localhost:0",
        "http://[::1",
        "http://xn--",
    ],
)
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(CommandError, match="--server") as caught:
        check_server(url, None)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", ["cl\u00e9", "two\nlines"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str):
    with pytest.raises(CommandError, match="--api-key") as caught:
        check_server("http://[::1]:8000/", key)
    assert caught.value.exit_code == 2
    assert key not in str(caught.value)
    check_server("http://[::1]:8000/", "sesame")
