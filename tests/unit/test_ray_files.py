"""Serve's config and the KubeRay manifest refer to what exists, and their numbers agree. Needs no Ray."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import yaml

from server.settings import Settings, load_settings
from server.types import GPU_BATCH_SIZE

ROOT = Path(__file__).parents[2]
SERVE = yaml.safe_load((ROOT / "docker" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
SERVICE = yaml.safe_load((ROOT / "docker" / "ray" / "rayservice.yaml").read_text(encoding="utf-8"))
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
TEMPLATES = [CLUSTER["headGroupSpec"]["template"], *(g["template"] for g in CLUSTER["workerGroupSpecs"])]
CONTAINERS = [container for t in TEMPLATES for container in t["spec"]["containers"]]
(APPLICATION,) = SERVE["applications"]
(DEPLOYMENT,) = APPLICATION["deployments"]
DEFAULTS = Settings()


def pins(name):
    """Versions that a lock pins, by package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


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
        assert {name.removeprefix("WAVLLM_").lower() for name in variables} <= set(Settings.model_fields)
    for path in paths:
        module, name = path.split(":")
        assert name in functions(module.replace(".", "/") + ".py"), path


def test_the_settings_hold():
    settings = load_settings(APPLICATION["args"])
    assert settings.device == "cuda"
    assert DEPLOYMENT["ray_actor_options"] == {"num_gpus": 1, "num_cpus": 1 + settings.audio_workers}
    assert DEPLOYMENT["autoscaling_config"]["target_ongoing_requests"] == 0.75 * GPU_BATCH_SIZE


def test_ports_and_timeouts_agree():
    for transport, port in (("http", DEFAULTS.http_port), ("grpc", DEFAULTS.grpc_port)):
        options = SERVE[f"{transport}_options"]
        assert options["port"] == port
        assert options["request_timeout_s"] == DEFAULTS.request_timeout + DEFAULTS.queue_timeout
        for container in CONTAINERS:
            assert {"name": transport, "containerPort": port} in container["ports"]
    for group in CLUSTER["workerGroupSpecs"]:
        grace_s = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s >= DEFAULTS.drain_delay + DEFAULTS.shutdown_timeout + 10
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == str(DEPLOYMENT["ray_actor_options"]["num_gpus"])


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
