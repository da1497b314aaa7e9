"""Serve's config and the KubeRay manifest refer to what exists, and their numbers agree. Needs no Ray."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import yaml

from server.settings import Settings, load_settings
from server.types import ON_GPU
from tests.locks import pins

ROOT = Path(__file__).parents[2]
SERVE = yaml.safe_load((ROOT / "docker" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
SERVICE, GRPC = yaml.safe_load_all((ROOT / "docker" / "ray" / "rayservice.yaml").read_text(encoding="utf-8"))
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
TEMPLATES = [CLUSTER["headGroupSpec"]["template"], *(g["template"] for g in CLUSTER["workerGroupSpecs"])]
CONTAINERS = [container for t in TEMPLATES for container in t["spec"]["containers"]]
(APPLICATION,) = SERVE["applications"]
(DEPLOYMENT,) = APPLICATION["deployments"]
DEFAULTS = Settings()


def functions(path):
    """Top-level functions of a module, read without importing it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_manifest_holds_the_config():
    assert yaml.safe_load(SERVICE["spec"]["serveConfigV2"]) == SERVE


def test_what_is_named_exists():
    (servicer,) = SERVE["grpc_options"]["grpc_servicer_functions"]
    paths = [APPLICATION["import_path"], servicer]
    for container in CONTAINERS:
        variables = {entry["name"]: entry.get("value") for entry in container["env"]}
        callback = variables.pop("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
        paths.append(":".join(callback.rsplit(".", 1)))
        own = [name for name in variables if not name.startswith("RAY_")]
        assert {name.removeprefix("WAVLLM_").lower() for name in own} <= set(Settings.model_fields)
    for path in paths:
        module, name = path.split(":")
        assert name in functions(module.replace(".", "/") + ".py"), path


def test_the_settings_hold():
    settings = load_settings(APPLICATION["args"])
    assert settings.device == "cuda"
    assert DEPLOYMENT["ray_actor_options"] == {"num_gpus": 1, "num_cpus": 1 + settings.audio_workers}
    assert DEPLOYMENT["autoscaling_config"]["target_ongoing_requests"] == 0.75 * ON_GPU.max_batch_size


def test_ports_and_timeouts_agree():
    for transport, port in (("http", DEFAULTS.http_port), ("grpc", DEFAULTS.grpc_port)):
        options = SERVE[f"{transport}_options"]
        assert options["port"] == port
        assert options["request_timeout_s"] == DEFAULTS.request_timeout + DEFAULTS.queue_timeout
        name = "serve" if transport == "http" else transport
        for container in CONTAINERS:
            assert {"name": name, "containerPort": port} in container["ports"]
    for group in CLUSTER["workerGroupSpecs"]:
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        drains_s = DEFAULTS.drain_delay + DEFAULTS.shutdown_timeout + 10
        variables = {v["name"]: v.get("value") for v in group["template"]["spec"]["containers"][0]["env"]}
        assert grace_s > float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) >= drains_s
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == str(DEPLOYMENT["ray_actor_options"]["num_gpus"])


def test_the_operator_finds_rays_own_ports_by_name():
    """Of a head that names any port, KubeRay takes none for granted (its BuildServeService)."""
    names = {port["name"]: port["containerPort"] for port in CONTAINERS[0]["ports"]}
    assert names.items() >= {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}.items()


def test_grpc_has_a_service_of_pods_that_serve():
    (port,) = GRPC["spec"]["ports"]
    assert port["port"] == DEFAULTS.grpc_port
    selector = dict(GRPC["spec"]["selector"])
    assert selector.pop("ray.io/serve") == "true"
    assert all(selector.items() <= template["metadata"]["labels"].items() for template in TEMPLATES)


def test_nobody_gets_in_unasked():
    """Ray's own ports want a token; the service's keys come from a Secret that must be there."""
    assert CLUSTER["authOptions"] == {"mode": "token"}
    for container in CONTAINERS:
        (keys,) = [v for v in container["env"] if v["name"] == "WAVLLM_API_KEY"]
        assert not keys["valueFrom"]["secretKeyRef"].get("optional", False)


def test_the_image_can_be_built():
    folder = ROOT / "docker" / "ray"
    dockerfile = (folder / "Dockerfile").read_text(encoding="utf-8")
    assert f"ray:{CLUSTER['rayVersion']}-" in dockerfile
    ignored = (folder / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {project["readme"], *project["license-files"], "pyproject.toml", "model", "server"}
    assert let_in == needed | {"requirements.lock", "requirements-ray.lock"}
    for lock in ("requirements.lock", "requirements-ray.lock"):
        assert f"/{lock}" in dockerfile


def test_the_lock_fits():
    """One version of Ray everywhere, and no pin of the default environment is moved."""
    ours, theirs = pins("requirements-ray.lock"), pins("requirements.lock")
    assert CLUSTER["rayVersion"] == ours["ray"]
    assert ours["ray"] in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert {name: ours[name] for name in ours.keys() & theirs.keys()} == {
        name: theirs[name] for name in ours.keys() & theirs.keys()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["ray"] == ["ray[serve]>=" + ours["ray"].rsplit(".", 1)[0]]
