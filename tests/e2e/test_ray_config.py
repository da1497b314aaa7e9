"""What the deployment asks Serve for, as Serve reads it; in a process of its own, for Ray warns at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings
from server.types import ON_CPU, ON_GPU

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DEFAULTS = Settings()
SCRIPT = """
import json, sys
import yaml
from ray.serve.schema import ServeDeploySchema
from server.ray_app import build
from server.settings import SettingsError

config = ServeDeploySchema.model_validate(yaml.safe_load(open("docker/ray/serve.yaml")))
(application,) = config.applications


def read(args):
    try:
        deployment = build(args)._bound_deployment
    except SettingsError as error:
        return str(error)
    options = deployment._deployment_config.model_dump(mode="json")
    return {**options, "resources": deployment.ray_actor_options, "name": deployment.name}


names = [deployment.name for deployment in application.deployments]
given = [read(args) for args in json.loads(sys.argv[1])]
print(json.dumps({"file": read(application.args), "names": names, "given": given}))
"""


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """Options of the deployment for the config file, and for some other settings."""
    given = [
        {},
        {"max_batch_size": 4, "max_queued_requests": 8, "audio_workers": 3, "shutdown_timeout": 600},
        {"device": "cuda:1"},
        {"tls_cert": "a.pem", "tls_key": "b.pem"},
        {"no_such_flag": 1},
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_file_is_for_the_deployment(asked: dict[str, Any]) -> None:
    assert asked["names"] == [asked["file"]["name"]]
    assert asked["file"]["resources"]["num_gpus"] == 1
    assert asked["file"]["max_ongoing_requests"] == ON_GPU.max_batch_size + DEFAULTS.max_queued_requests


def test_options_follow_from_the_settings(asked: dict[str, Any]) -> None:
    default, small, *_ = asked["given"]
    assert default["max_ongoing_requests"] == ON_CPU.max_batch_size + DEFAULTS.max_queued_requests
    assert "num_gpus" not in default["resources"]
    assert small["resources"]["num_cpus"] == 4
    assert (small["max_ongoing_requests"], small["max_queued_requests"]) == (12, 8)
    assert small["autoscaling_config"]["target_ongoing_requests"] == 3
    assert small["backpressure_config"] == {"status_code": 503, "retry_after_s": 1.0}
    assert default["graceful_shutdown_timeout_s"] > DEFAULTS.drain_delay + DEFAULTS.shutdown_timeout
    assert small["graceful_shutdown_timeout_s"] > DEFAULTS.drain_delay + 600


def test_what_ray_cannot_do_is_refused(asked: dict[str, Any]) -> None:
    *_, numbered, tls, unknown = asked["given"]
    assert numbered.startswith("--device")
    assert tls.startswith("--tls-cert")
    assert unknown.startswith("--no-such-flag")
