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
from packaging.requirements import Requirement

from server.bench import run as benchmark
from server.cli import build_app
from server.eval import run as evaluation
from server.grpc_api import EXPIRE_S
from server.http_server import CLOSE_GRACE_S
from server.serve import GRPC_GRACE_S
from server.settings import Settings, flag_of

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
README = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
GPU = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text(encoding="utf-8"))
NGINX = yaml.safe_load((ROOT / "docker" / "compose.nginx.yaml").read_text(encoding="utf-8"))
REPLICAS = ("wavllm-1", "wavllm-2")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FLAGS = {flag_of(name) for name in Settings.model_fields}
VARIABLES = {f"WAVLLM_{name.upper()}" for name in Settings.model_fields}
CLOSE_S = GRPC_GRACE_S + EXPIRE_S + CLOSE_GRACE_S
"""What the server takes at most to close its ports after the last answer."""
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


def instructions(keyword):
    """The arguments of every `keyword` line, continuation lines joined."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [line.removeprefix(keyword).strip() for line in lines if line.startswith(f"{keyword} ")]


def copied():
    """Paths of the checkout that COPY takes."""
    sources = [line.split()[:-1] for line in instructions("COPY") if not line.startswith("--from")]
    return list(dict.fromkeys(source for line in sources for source in line))


def stages():
    """Name -> what it is built from."""
    return dict(reversed(line.split(" AS ")) for line in instructions("FROM"))


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
    (copied_to,) = set(re.findall(r"^COPY model (\S+)", DOCKERFILE, re.M))
    assert DEFAULTS["model"] == ROOT / copied_to / "default"
    size = sum(path.stat().st_size for path in DEFAULTS["model"].iterdir())
    assert 10 * 2**20 < size < 40 * 2**20
    assert all(path.stat().st_size <= 15.5 * 2**20 for path in DEFAULTS["model"].iterdir())


def test_arguments_of_the_build():
    arguments = {line.split("=")[0] for line in instructions("ARG")}
    assert arguments == {"BASE_IMAGE", "TORCH_INDEX"}
    assert set(re.findall(r"--build-arg (\w+)=", README)) == arguments
    assert instructions("ARG")[0].startswith("BASE_IMAGE=")
    assert {stages()[name] for name in ("builder", "runtime")} == {"${BASE_IMAGE}"}


def test_targets():
    """CPU is the default, which is the last; each takes its own build of torch."""
    assert list(stages())[-1] == "cpu"
    for target in ("cpu", "cuda"):
        assert stages()[target] == "runtime"
        assert f"COPY --from=builder-{target} /opt/wavllm /opt/wavllm" in DOCKERFILE
    cuda, cpu = re.findall(r"^ARG TORCH_INDEX=\S+/whl/(\w+)$", DOCKERFILE, re.M)
    assert (cuda[:2], cpu) == ("cu", "cpu")
    assert list(stages()).index("builder-cuda") < list(stages()).index("builder-cpu")
    assert set(re.findall(r"--target (\w+)", README)) <= {"cpu", "cuda"}
    assert COMPOSE["services"]["wavllm-1"]["build"]["target"] == "cpu"
    assert GPU["services"]["wavllm-1"]["build"]["target"] == "cuda"


def test_a_model_is_a_volume():
    (volume,) = json.loads(instructions("VOLUME")[0])
    for name in REPLICAS:
        command = GPU["services"][name]["command"]
        assert command[command.index("--model") + 1] == volume
        (mount,) = GPU["services"][name]["volumes"]
        assert mount.endswith(f":{volume}:ro")
    assert f":{volume}:ro" in README


def test_hadolint_has_nothing_to_say():
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_entry_point_is_the_console_script():
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert set(json.loads(entry)) <= set(PROJECT["scripts"])
    assert json.loads(command) == ["serve"]


def test_the_image_does_not_run_as_root():
    assert instructions("USER") == ["1000:1000"] * 2
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)
    final = [stage for stage in stages if stage.startswith("runtime AS ")]
    assert len(final) == 2
    assert all(stage.rstrip().endswith("USER 1000:1000") for stage in final)
    assert "--uid 1000" in DOCKERFILE


def test_ports_are_the_defaults():
    ports = [DEFAULTS[name] for name in ("http_port", "grpc_port", "metrics_port")]
    assert [int(port) for port in instructions("EXPOSE")[0].split()] == ports
    inside = [int(port.split(":")[-1]) for port in COMPOSE["services"]["balancer"]["ports"]]
    assert inside == ports[:2]
    assert not any("ports" in COMPOSE["services"][name] for name in REPLICAS)
    assert {int(port) for port in re.findall(r"-p \d+:(\d+)", README)} == set(ports[:2])


def run_check(command, status):
    """Exit code of a check against a server that answers so, and what it asked for."""
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
        # A proxy of the environment's is none of the check's business.
        port = str(server.server_port)
        environment = os.environ | {"WAVLLM_HTTP_PORT": port, "http_proxy": "http://127.0.0.1:9"}
        assert command[0] == "python"
        here = f'"127.0.0.1", {port}'
        arguments = [argument.replace('"127.0.0.1", 8000', here) for argument in command[1:]]
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        thread.join(5)
    return done.returncode, asked


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_tells_a_live_server_from_a_hung_one(status, code):
    assert run_check(health_command(), status) == (code, ["/livez"])


def test_the_health_check_asks_a_route_of_the_server():
    assert '"/livez"' in (ROOT / "server" / "http_api.py").read_text(encoding="utf-8")


def test_compose_has_two_equal_replicas_and_what_stands_around_them():
    services = COMPOSE["services"]
    assert set(services) == {*REPLICAS, "balancer", "prometheus", "grafana"}
    assert services["wavllm-1"] == services["wavllm-2"]


def test_compose_builds_from_the_dockerfile():
    build = COMPOSE["services"]["wavllm-1"]["build"]
    context = (ROOT / "docker" / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).exists()


def test_compose_gives_variables_and_flags_that_exist():
    for name in REPLICAS:
        assert set(COMPOSE["services"][name]["environment"]) <= VARIABLES
        for services in (COMPOSE["services"], GPU["services"]):
            assert own_flags(services[name]["command"]) <= FLAGS


@pytest.mark.parametrize("file", [COMPOSE, GPU], ids=["cpu", "gpu"])
def test_compose_waits_for_the_drain(file):
    for name in REPLICAS:
        words = file["services"][name]["command"]
        drain_s, shutdown_s = (
            float(words[words.index(flag) + 1]) for flag in ("--drain-delay", "--shutdown-timeout")
        )
        for stopped in (name, "balancer"):
            grace_s = int(COMPOSE["services"][stopped]["stop_grace_period"].removesuffix("s"))
            assert grace_s >= drain_s + shutdown_s + CLOSE_S
    needed_s = DEFAULTS["drain_delay"] + DEFAULTS["shutdown_timeout"] + CLOSE_S
    assert {int(seconds) >= needed_s for seconds in re.findall(r"--stop-timeout (\d+)", README)} == {True}


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_compose_takes_for_healthy_what_is_ready(status, code):
    """So that `up --wait` returns when a replica answers, which its port alone does not show."""
    for name in REPLICAS:
        kind, *command = COMPOSE["services"][name]["healthcheck"]["test"]
        assert kind == "CMD"
        assert run_check(command, status) == (code, ["/readyz"])


def test_compose_hands_the_keys_to_whoever_needs_them():
    services = COMPOSE["services"]
    keys = {services[name]["environment"]["WAVLLM_API_KEY"] for name in (*REPLICAS, "balancer")}
    assert keys == {"${WAVLLM_API_KEY:-}"}


def size_of(options):
    """Bytes that a tmpfs with these options may hold; without a size it is half of the machine's memory."""
    (size,) = [option.removeprefix("size=") for option in options if option.startswith("size=")]
    assert size.endswith("g")
    return int(size[:-1]) * 2**30


def test_what_nginx_buffers_is_bounded():
    """Whole bodies, of whoever sends them: it asks for no key."""
    (volume,) = NGINX["volumes"]
    room = size_of(NGINX["volumes"][volume]["driver_opts"]["o"].split(","))
    config = (ROOT / "docker" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    assert "client_body_temp_path /tmp/" in config
    assert f"{volume}:/tmp" in NGINX["services"]["balancer"]["volumes"]
    (largest,) = re.findall(r"client_max_body_size (\d+)m;", config)
    assert room >= 20 * int(largest) * 2**20


def test_every_tmpfs_of_the_readme_has_a_size():
    mounts = re.findall(r"--tmpfs /tmp:(\S+)", README)
    assert mounts
    assert {size_of(mount.split(",")) for mount in mounts} == {2**30}


def test_compose_shuts_the_replicas_in():
    for name in REPLICAS:
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        (options,) = [mount.removeprefix("/tmp:").split(",") for mount in service["tmpfs"]]
        assert "exec" in options  # Triton and Numba load what they compiled
        assert size_of(options) == 2**30
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def mounted_files(file):
    """Paths of the checkout that services mount."""
    mounts = [mount for service in file["services"].values() for mount in service.get("volumes", ())]
    return [ROOT / "docker" / mount.split(":")[0] for mount in mounts if mount.startswith("./")]


@pytest.mark.parametrize("file", [COMPOSE, NGINX], ids=["haproxy", "nginx"])
def test_what_is_mounted_exists(file):
    assert mounted_files(file)
    assert all(path.exists() for path in mounted_files(file))


def test_nginx_in_compose_knows_the_replicas_by_addresses_that_stay():
    fixed = {f"{name}:{NGINX['services'][name]['networks']['default']['ipv4_address']}" for name in REPLICAS}
    for name in ("balancer", "readiness"):
        assert set(NGINX["services"][name]["extra_hosts"]) == fixed
    script, directory, *urls = NGINX["services"]["readiness"]["entrypoint"]
    assert f"./nginx{script}:{script}:ro" in NGINX["services"]["readiness"]["volumes"]
    assert urls == [f"{name}=http://{name}:8000/readyz" for name in REPLICAS]
    config = (ROOT / "docker" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    assert set(re.findall(r"-f (\S+)\)", config)) == {f"{directory}/{name}.out" for name in REPLICAS}


def test_the_readme_says_which_commands_the_image_can_run():
    installed = {Requirement(line).name for line in PROJECT["dependencies"]}
    needs = {"eval": evaluation.EXTRA, "bench": benchmark.EXTRA}
    assert all(set(extra) - installed for extra in needs.values())
    text = " ".join(README.split())
    able = re.search(r"((?:`\w+`(?:, | and )?)+) work the same way", text)
    unable = re.search(r"((?:`\w+`(?:, | and )?)+) need the extra `eval`, which the image lacks", text)
    assert set(re.findall(r"\w+", unable[1])) - {"and"} == needs.keys()
    commands = {command.name for command in build_app().registered_commands}
    assert set(re.findall(r"\w+", able[1])) - {"and"} == commands - {"serve"} - needs.keys()


def test_the_readme_names_flags_variables_and_files_that_exist():
    commands = README.replace("\\\n", " ").splitlines()
    serving = [line.split() for line in commands if "docker run" in line and " serve " in line]
    assert serving
    for words in serving:
        assert own_flags(words) <= FLAGS
    assert set(re.findall(r"WAVLLM_[A-Z_]+", README)) <= VARIABLES
    for path in re.findall(r"docker/[\w./]+\.(?:ya?ml|json|cfg|conf|lua|sh)|tests/[\w/]+\.py", README):
        assert (ROOT / path).exists()
