"""The container files refer to what exists: files, flags, ports, routes, variables. Needs no engine."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from server.settings import Settings, flag_of

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
README = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
GPU = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FLAGS = {flag_of(name) for name in Settings.model_fields}
VARIABLES = {f"WAVLLM_{name.upper()}" for name in Settings.model_fields}
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


def instructions(keyword):
    """The arguments of every `keyword` line, continuation lines joined."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.removeprefix(keyword).strip() for line in lines if line.startswith(f"{keyword} ")]


def copied():
    """Paths of the checkout that COPY takes."""
    sources = [line.split()[:-1] for line in instructions("COPY") if not line.startswith("--from")]
    return [source for line in sources for source in line]


def health_command():
    (check,) = instructions("HEALTHCHECK")
    return json.loads(check[check.index("CMD") + 3 :])


def own_flags(words):
    """The flags of `wavllm serve` among the words of a command that starts it."""
    return {word for word in words[words.index("serve") :] if word.startswith("--")}


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_exists(path):
    assert (ROOT / path).exists()


def test_what_is_copied_reaches_the_engine_and_nothing_else_does():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())
    (excluded,) = [rule for rule in rules[1:] if not rule.startswith("!")]
    assert fnmatch.fnmatch("server/engine/__pycache__", excluded)


def test_the_package_can_be_built_from_what_is_copied():
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "model", "server"}
    assert needed <= set(copied())


def test_the_default_model_is_in_the_image_and_small():
    (copied_to,) = re.findall(r"^COPY model (\S+)", DOCKERFILE, re.M)
    assert DEFAULTS["model"] == ROOT / copied_to / "default"
    size = sum(path.stat().st_size for path in DEFAULTS["model"].iterdir())
    assert 10 * 2**20 < size < 40 * 2**20
    assert all(path.stat().st_size <= 15.5 * 2**20 for path in DEFAULTS["model"].iterdir())


def test_arguments_of_the_build():
    arguments = {line.split("=")[0] for line in instructions("ARG")}
    assert arguments == {"BASE_IMAGE", "TORCH_INDEX"}
    assert set(re.findall(r"--build-arg (\w+)=", README)) == arguments
    assert set(GPU["services"]["wavllm"]["build"]["args"]) <= arguments


def test_the_entry_point_is_the_console_script():
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert set(json.loads(entry)) <= set(PROJECT["scripts"])
    assert json.loads(command) == ["serve"]


def test_the_image_does_not_run_as_root():
    assert instructions("USER") == ["1000:1000"]
    assert "--uid 1000" in DOCKERFILE


def test_ports_are_the_defaults():
    ports = [DEFAULTS[name] for name in ("http_port", "grpc_port", "metrics_port")]
    assert [int(port) for port in instructions("EXPOSE")[0].split()] == ports
    inside = [int(port.split(":")[-1]) for port in COMPOSE["services"]["wavllm"]["ports"]]
    assert inside == ports[:2]
    assert {int(port) for port in re.findall(r"-p \d+:(\d+)", README)} == set(ports[:2])


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_tells_a_live_server_from_a_hung_one(status, code):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        environment = os.environ | {"WAVLLM_HTTP_PORT": str(server.server_port)}
        program, *arguments = health_command()
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        thread.join()
    assert (program, done.returncode, asked) == ("python", code, ["/livez"])


def test_the_health_check_asks_a_route_of_the_server():
    assert '"/livez"' in (ROOT / "server" / "http_api.py").read_text(encoding="utf-8")


def test_compose_builds_from_the_dockerfile():
    build = COMPOSE["services"]["wavllm"]["build"]
    context = (ROOT / "docker" / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).exists()


def test_compose_gives_variables_and_flags_that_exist():
    service = COMPOSE["services"]["wavllm"]
    assert set(service["environment"]) <= VARIABLES
    for command in (service["command"], GPU["services"]["wavllm"]["command"]):
        assert own_flags(command) <= FLAGS


def test_compose_waits_for_the_drain():
    grace_s = int(COMPOSE["services"]["wavllm"]["stop_grace_period"].removesuffix("s"))
    needed_s = DEFAULTS["drain_delay"] + DEFAULTS["shutdown_timeout"]
    assert grace_s > needed_s
    assert {int(seconds) > needed_s for seconds in re.findall(r"--stop-timeout (\d+)", README)} == {True}


def test_prometheus_scrapes_the_service():
    prometheus = COMPOSE["services"]["prometheus"]
    (mount,) = prometheus["volumes"]
    config = yaml.safe_load((ROOT / "docker" / mount.split(":")[0]).read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    ((target,),) = [group["targets"] for group in job["static_configs"]]
    host, port = target.split(":")
    assert host in COMPOSE["services"]
    assert int(port) == DEFAULTS["metrics_port"]


def test_the_readme_names_flags_variables_and_files_that_exist():
    commands = README.replace("\\\n", " ").splitlines()
    serving = [line.split() for line in commands if "docker run" in line and " serve " in line]
    assert serving
    for words in serving:
        assert own_flags(words) <= FLAGS
    assert set(re.findall(r"WAVLLM_[A-Z_]+", README)) <= VARIABLES
    for path in re.findall(r"docker/[\w.]+\.ya?ml|tests/[\w/]+\.py", README):
        assert (ROOT / path).exists()
