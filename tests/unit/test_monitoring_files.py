"""What the dashboard and the alert rules ask for is what the server exports."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metrics, Snapshot
from server.types import EngineStats

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "wavllm.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
FROM_PROMETHEUS = {"up": {"job", "instance"}}
TARGET_LABELS = {"job", "instance"}
WORDS = {"and", "or", "unless", "bool", "offset", "group_left", "group_right"}


def load(path):
    return yaml.safe_load((DOCKER / path).read_text(encoding="utf-8"))


def rules():
    return [rule for group in load("prometheus/rules.yml")["groups"] for rule in group["rules"]]


def expressions():
    """Every PromQL expression that is shipped, by where it is."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules()}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


EXPRESSIONS = expressions()


def exported():
    """Name of each sample -> label -> values that it has at the start."""
    metrics = Metrics()
    metrics.watch(lambda: Snapshot(0, 0, 0.0, "ready", EngineStats()), tuple)
    found = {name: {label: set() for label in labels} for name, labels in FROM_PROMETHEUS.items()}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {label: set() for label in TARGET_LABELS})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


EXPORTED = exported()


def names_of(expression):
    """Metrics that it names: words that are neither functions, nor operators, nor labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    return {word for word in re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare) if word not in WORDS}


def selectors_of(expression):
    """(metric, label, operator, value) of each matcher."""
    for metric, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            yield metric, label, operator, value


def groupings_of(expression):
    return {
        label.strip()
        for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression)
        for label in labels.split(",")
        if label.strip()
    }


def test_the_parser_sees_metrics_alone():
    expression = 'sum by (instance, le) (rate(wavllm_x_total{code="a"}[5m])) / on (job) up > 0 or absent(y)'
    assert names_of(expression) == {"wavllm_x_total", "up", "y"}
    assert groupings_of(expression) == {"instance", "le"}
    assert list(selectors_of(expression)) == [("wavllm_x_total", "code", "=", "a")]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_exists(where):
    names = names_of(EXPRESSIONS[where])
    assert names
    assert names <= EXPORTED.keys()


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_label_and_its_value_exist(where):
    expression = EXPRESSIONS[where]
    for metric, label, operator, value in selectors_of(expression):
        labels = EXPORTED[metric]
        assert label in labels
        if label not in TARGET_LABELS and operator in ("=", "=~"):
            assert set(value.split("|")) <= labels[label]
    known = {label for name in names_of(expression) for label in EXPORTED[name]}
    assert groupings_of(expression) <= known


def test_rules_say_what_to_do():
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 5
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= {"instance"}
    jobs = {value for rule in rules() for _, label, _, value in selectors_of(rule["expr"]) if label == "job"}
    assert jobs == {job["job_name"] for job in load("prometheus/prometheus.yml")["scrape_configs"]}
    monitor = load("k8s/monitoring/servicemonitor.yaml")
    services = yaml.safe_load_all((DOCKER / "k8s" / "service.yaml").read_text(encoding="utf-8"))
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (labels,) = [s["metadata"]["labels"] for s in services if wanted <= s["metadata"]["labels"].items()]
    assert jobs == {labels[monitor["spec"]["jobLabel"]]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments):
    """Debian's prometheus brings it; where it is missing, this fails."""
    command = ["promtool", *arguments]
    done = subprocess.run(
        command, cwd=DOCKER / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_prometheus_reads_the_rules_and_scrapes_both_replicas():
    config = load("prometheus/prometheus.yml")
    for name in config["rule_files"]:
        assert (DOCKER / "prometheus" / name).exists()
    (job,) = config["scrape_configs"]
    (group,) = job["static_configs"]
    replicas = {name for name in COMPOSE["services"] if name.startswith("wavllm-")}
    assert set(group["targets"]) == {f"{name}:9090" for name in replicas}
    assert "./prometheus:/etc/prometheus:ro" in COMPOSE["services"]["prometheus"]["volumes"]


def test_grafana_finds_its_data_and_the_dashboard():
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    used |= {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
    used |= {variable["datasource"]["uid"] for variable in DASHBOARD["templating"]["list"]}
    assert used == {source["uid"]}

    (provider,) = load("grafana/provisioning/dashboards/wavllm.yaml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in COMPOSE["services"]["grafana"]["volumes"])
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"


def test_the_dashboard_is_well_formed():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    (variable,) = DASHBOARD["templating"]["list"]
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
    assert asked
    assert asked[1] in EXPORTED
    assert variable["name"] == asked[2] == "instance"
