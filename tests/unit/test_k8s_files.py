"""The kustomize base fits Kubernetes' schemas, the server, and itself."""

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from server.grpc_api import EXPIRE_S
from server.http_server import CLOSE_GRACE_S
from server.serve import GRPC_GRACE_S
from server.settings import Settings, flag_of
from tests.unit.test_monitoring_files import EXPORTED

BASE = Path(__file__).parents[2] / "docker" / "k8s"
ROOT = BASE.parents[1]
FOLDERS = (BASE, BASE / "monitoring")
IMAGES = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))["images"]
VERSIONS = ("1.29", "1.32", "1.35")
NOT_KUBERNETES_OWN = {"ServiceMonitor"}


def resources():
    """Everything of the base and of what is added to it, by kind and name."""
    found = {}
    for path in (folder / name for folder in FOLDERS for name in listed(folder)):
        for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            key = f"{resource['kind']}/{resource['metadata']['name']}"
            assert key not in found
            found[key] = resource
    return found


def listed(folder):
    """The files that a kustomization names."""
    return yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]


RESOURCES = resources()
DEPLOYMENT = RESOURCES["Deployment/wavllm"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
PROBES = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
LABELS = DEPLOYMENT["template"]["metadata"]["labels"]


def argument(flag):
    return float(CONTAINER["args"][CONTAINER["args"].index(flag) + 1])


def test_the_base_is_complete():
    for folder in FOLDERS:
        assert {path.name for path in folder.glob("*.yaml")} == {*listed(folder), "kustomization.yaml"}
    assert RESOURCES.keys() == {
        "Deployment/wavllm",
        "Service/wavllm",
        "Service/wavllm-grpc",
        "PodDisruptionBudget/wavllm",
        "HorizontalPodAutoscaler/wavllm",
        "ServiceMonitor/wavllm",
    }


def test_the_base_asks_for_nothing_that_a_plain_cluster_lacks():
    texts = [(BASE / name).read_text(encoding="utf-8") for name in listed(BASE)]
    kinds = {resource["kind"] for text in texts for resource in yaml.safe_load_all(text)}
    assert not kinds & NOT_KUBERNETES_OWN


def test_no_service_can_change_a_setting():
    """Kubernetes would set WAVLLM_GRPC_PORT=tcp://... for a Service called wavllm-grpc."""
    assert POD["enableServiceLinks"] is False


def test_the_image_is_the_one_that_the_readme_builds():
    (image,) = IMAGES
    name = f"{CONTAINER['image']}:{image['newTag']}"
    assert image["name"] == CONTAINER["image"]
    assert f"-t {name} " in (ROOT / "docker" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("key", [key for key in RESOURCES if key.split("/")[0] not in NOT_KUBERNETES_OWN])
def test_it_fits_the_schema(key, version):
    assert kubernetes_validate.validate(RESOURCES[key], version, strict=True) == version


def test_the_schemas_are_not_blind():
    spoilt = {**RESOURCES["Deployment/wavllm"], "spec": {**DEPLOYMENT, "minReadySecond": 5}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", PROBES)
def test_probes_ask_routes_that_exist(name):
    asked = PROBES[name]["httpGet"]
    assert asked["path"] == {"liveness": "/livez"}.get(name, "/readyz")
    routes = (ROOT / "server" / "http_api.py").read_text(encoding="utf-8")
    assert f'@app.get("{asked["path"]}"' in routes
    assert PORTS[asked["port"]] == Settings().http_port
    assert PROBES[name]["timeoutSeconds"] <= PROBES[name]["periodSeconds"]


def test_probes_give_time_to_load_and_do_not_kill_in_haste():
    startup, liveness = PROBES["startup"], PROBES["liveness"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 30


def test_a_rollout_is_not_given_up_while_a_pod_may_still_load():
    """The same time again for pulling the image; Kubernetes' own deadline is ten minutes in all."""
    startup = PROBES["startup"]
    load_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert DEPLOYMENT["progressDeadlineSeconds"] >= 2 * load_s + DEPLOYMENT["minReadySeconds"]


def test_the_grace_period_covers_everything_before_the_end():
    command, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert (argument("--drain-delay"), argument("--shutdown-timeout")) == (5, 60)
    closing_s = GRPC_GRACE_S + EXPIRE_S + CLOSE_GRACE_S
    needed_s = float(seconds) + argument("--drain-delay") + argument("--shutdown-timeout") + closing_s
    assert needed_s <= POD["terminationGracePeriodSeconds"] < needed_s + 10


def test_a_draining_pod_is_seen_before_it_refuses():
    readiness = PROBES["readiness"]
    noticed_s = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert noticed_s < argument("--drain-delay")


def test_the_command_line_and_ports_are_the_servers():
    assert CONTAINER["args"][0] == "serve"
    flags = {word for word in CONTAINER["args"] if word.startswith("--")}
    assert flags <= {flag_of(name) for name in Settings.model_fields}
    settings = Settings()
    expected = {"http": settings.http_port, "grpc": settings.grpc_port, "metrics": settings.metrics_port}
    assert expected == PORTS
    (image,) = IMAGES
    assert image["name"] == CONTAINER["image"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{image["newTag"]}"' in project


def test_the_pod_is_shut_in():
    assert POD["securityContext"]["runAsNonRoot"] is True
    (user,) = set(re.findall(r"^USER (\d+):\d+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M))
    assert POD["securityContext"]["runAsUser"] == int(user)
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert CONTAINER["securityContext"]["allowPrivilegeEscalation"] is False
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]


def test_everything_selects_the_pods():
    selectors = [
        DEPLOYMENT["selector"]["matchLabels"],
        RESOURCES["Service/wavllm"]["spec"]["selector"],
        RESOURCES["Service/wavllm-grpc"]["spec"]["selector"],
        RESOURCES["PodDisruptionBudget/wavllm"]["spec"]["selector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]),
    ]
    assert all(selector == LABELS for selector in selectors)


def test_services():
    rest, grpc = RESOURCES["Service/wavllm"]["spec"], RESOURCES["Service/wavllm-grpc"]["spec"]
    assert "clusterIP" not in rest
    assert grpc["clusterIP"] == "None"
    for service in (rest, grpc):
        for port in service["ports"]:
            assert port["port"] == PORTS[port["targetPort"]]
    assert [port["name"] for port in rest["ports"]] == ["http"]
    assert {port["name"] for port in grpc["ports"]} == {"grpc", "metrics"}


def test_one_service_is_scraped():
    monitor = RESOURCES["ServiceMonitor/wavllm"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [resource for key, resource in RESOURCES.items() if key.startswith("Service/")]
    (service,) = [one for one in services if wanted <= one["metadata"]["labels"].items()]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])


def test_the_autoscaler_reads_the_queue():
    scaler = RESOURCES["HorizontalPodAutoscaler/wavllm"]["spec"]
    target = scaler["scaleTargetRef"]
    assert RESOURCES[f"{target['kind']}/{target['name']}"]["apiVersion"] == target["apiVersion"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "wavllm_num_requests_waiting"
    assert metric["pods"]["metric"]["name"] in EXPORTED
    assert "replicas" not in DEPLOYMENT, "a rollout would undo what the autoscaler did"
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    budget = RESOURCES["PodDisruptionBudget/wavllm"]["spec"]
    assert budget["maxUnavailable"] < scaler["minReplicas"]
    assert DEPLOYMENT["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
