"""A local Ray with the deployment on it, in a process of its own; `ray_cluster.RayCluster` starts it.

Commands come as JSON lines on standard input, answers go as JSON lines to standard output; it ends at the end
of its input.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve._private import api as serve_api
from ray.serve.config import gRPCOptions

from server.ray_app import NAME, deployment
from server.settings import load_settings

OBJECT_STORE_BYTES = 100 * 2**20
START_ATTEMPTS = 5
"""Ray gives its own processes 30 s to come up, which nothing can change and which a busy machine outlasts."""
TOO_SLOW = "timed out during startup"
serve_api.HTTP_PROXY_TIMEOUT = 600
"""In place of 60 s for Serve's proxies, for the same reason."""


def start_patiently(options: dict[str, Any]) -> None:
    """Ray and Serve; once more from the beginning where Ray found itself too slow."""
    for attempt in range(START_ATTEMPTS):
        try:
            start_ray(options)
            break
        except Exception as error:  # Ray raises no type of its own
            if TOO_SLOW not in str(error) or attempt == START_ATTEMPTS - 1:
                raise
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    serve.start(
        http_options={"host": "127.0.0.1", "port": options["http_port"]},
        grpc_options=gRPCOptions(
            port=options["grpc_port"], grpc_servicer_functions=["server.ray_ingress:add_speech_chat"]
        ),
    )


def start_ray(options: dict[str, Any]) -> None:
    """Ray, with nothing that the tests do not need."""
    ray.init(
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=True,
        _temp_dir=options["temp_dir"],
        _metrics_export_port=options["metrics_port"],
    )


def deploy(args: dict[str, Any], given: dict[str, Any], wait: bool) -> None:
    """Deploy, or change what is deployed; `given` are options of the deployment."""
    application = deployment(load_settings(args)).options(**given).bind(args)
    (serve.run if wait else serve._run)(application, **({} if wait else {"_blocking": False}))


def replicas() -> list[dict[str, Any]]:
    """Process and running requests of every replica that is up."""
    found = []
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if f"#{NAME}#" in entry["name"]:
            with contextlib.suppress(ray.exceptions.RayActorError, ValueError):  # it just went
                actor = ray.get_actor(entry["name"], namespace=entry["namespace"])
                found.append(ray.get(actor.__ray_call__.remote(look)))
    return [replica for replica in found if replica["is_up"]]


def look(replica: Any) -> dict[str, Any]:
    """Runs in a replica."""
    inner = replica._replica_impl
    is_up = inner._user_callable_initialized and not inner._shutting_down
    return {"pid": os.getpid(), "ongoing": inner.get_num_ongoing_requests(), "is_up": is_up}


def say(**answer: Any) -> None:
    """One answer, as one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Start, deploy, obey."""
    options = json.loads(sys.argv[1])
    start_patiently(options)
    deploy(options["args"], options["deployment"], wait=True)
    say(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "replicas":
            say(replicas=replicas())
        else:
            deploy(options["args"], {**options["deployment"], **command["options"]}, command["wait"])
            say(deployed=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
