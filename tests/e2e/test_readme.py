"""Every command that the README shows is run here, against the server it describes.

Ports, model paths and `wavllm` are swapped for what this machine has; nothing else is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import CONSOLE_SCRIPT, ServerProcess

from tests.model.test_peft_io import make_hf_llama

ROOT = Path(__file__).parent.parent.parent
GOLDEN = "tests/golden"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: dict[str, list[str]] = {
    language: re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) for language in ("sh", "python")
}


def shell(script: str) -> str:
    """Standard output of a README block; it must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def local(script: str, server: ServerProcess) -> str:
    """A block with this server's ports."""
    return (
        script.replace("http://127.0.0.1:8000", server.url)
        .replace("127.0.0.1:9090", f"127.0.0.1:{server.ports['metrics']}")
        .replace("127.0.0.1:50051", server.grpc_target)
    )


CURLS = [block for block in BLOCKS["sh"] if "curl" in block]


@pytest.mark.parametrize("block", CURLS, ids=range(len(CURLS)))
def test_curl(server: ServerProcess, block: str) -> None:
    printed = shell(local(block, server))
    if "stream=true" in block:
        assert printed.startswith("data: {")
        assert printed.rstrip().endswith("data: [DONE]")
    elif "/v1/speech/chat" in block or "/v1/chat/completions" in block:
        assert '"choices":[{' in printed
    elif "/v1/audio/" in block:
        assert printed.startswith('{"text":"')
        assert '"usage":{"type":"tokens"' in printed
    else:
        assert "max_audio_seconds" in printed
        assert "num_requests_running" in printed
        assert "wavllm_kv_cache_usage_perc" in printed


@pytest.mark.parametrize("block", BLOCKS["python"], ids=range(len(BLOCKS["python"])))
def test_python(server: ServerProcess, block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", local(block, server)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_rest_are_known_and_each_is_tested_somewhere() -> None:
    """`make`'s are what this set runs under; conversion, evaluation and benchmark have tests below."""
    others = [block.split()[:2] for block in BLOCKS["sh"] if "curl" not in block]
    kinds = {first if first == "make" else second for first, second in others}
    assert kinds == {"make", "ask", "convert", "export", "eval", "bench"}


def test_ask() -> None:
    (block,) = [block for block in BLOCKS["sh"] if " ask " in block]
    assert shell(block.replace(".venv/bin/wavllm", str(CONSOLE_SCRIPT)))


def test_convert_and_export(golden_model: Path, tmp_path: Path) -> None:
    published, adapter = [block for block in BLOCKS["sh"] if ".venv/bin/wavllm convert" in block]
    base = make_hf_llama(golden_model, tmp_path / "base")
    swaps = {
        "--device cuda": "--print-config",
        "--dtype bfloat16": f"--spec {GOLDEN}/spec.json --dtype bfloat16",
        "final.pt": f"{GOLDEN}/final.pt",
        " tokenizer.model": f" {GOLDEN}/tokenizer.model",
        "models/wavllm": f"{tmp_path}/w",
        "models/mine": f"{tmp_path}/mine",
        "my-adapter": f"{tmp_path}/adapter",
        "Llama-2-7b-chat-hf": str(base),
        ".venv/bin/wavllm ": f"{CONSOLE_SCRIPT} ",
    }
    for block in (published, adapter):
        script = block
        for shown, here in swaps.items():
            script = script.replace(shown, here)
        shell(script)
    assert (tmp_path / "mine" / "config.json").is_file()


def test_eval(golden_model: Path, server: ServerProcess, tmp_path: Path) -> None:
    """Both lines, on a manifest of one clip; only what the files are called differs."""
    (block,) = [block for block in BLOCKS["sh"] if "wavllm eval" in block]
    row = f"1\t{ROOT / GOLDEN / 'audio' / 'kitchen.wav'}\tWhat is said?\tB\n"
    for name in ("asr.tsv", "gaokao.tsv"):
        (tmp_path / name).write_text("id\taudio\tprompt\ttgt_text\n" + row, encoding="utf-8")
    script = local(block, server).replace(".venv/bin/wavllm", str(CONSOLE_SCRIPT))
    swaps = {"models/wavllm": str(golden_model), " --device cuda": "", "gaokao --": f"{ROOT} --"}
    for shown, here in swaps.items():
        assert shown in script
        script = script.replace(shown, here)
    shell(f"cd {tmp_path}\n{script}")
    assert len(list(tmp_path.glob("eval-results/*/*.json"))) >= 2


def test_bench(server: ServerProcess, tmp_path: Path) -> None:
    """With fewer requests than the command shows, and this server's address."""
    (block,) = [block for block in BLOCKS["sh"] if "wavllm bench" in block]
    script = block.strip().replace(".venv/bin/wavllm", str(CONSOLE_SCRIPT))
    fewer = f"--num-requests 6 --warmup 0 --max-tokens 4 --server {server.url}"
    printed = shell(f"cd {tmp_path}\n{script} {fewer}")
    assert "goodput" in printed
    assert list(tmp_path.glob("bench-results/*/results.json"))


def test_flags_that_the_readme_names_exist() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)", README))
    helps = "".join(shell(f"{CONSOLE_SCRIPT} {command} --help") for command in ("serve", "convert", "ask"))
    assert {flag for flag in flags if flag not in helps} == set()
