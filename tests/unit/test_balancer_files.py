"""Numbers in the balancers' files agree with the server's. Whether they work: tests/e2e/test_balancers.py."""

import json
import re
from pathlib import Path

import pytest
from error_tree import all_errors

from server.grpc_servicer import SERVICE_NAME
from server.http_errors import error_body
from server.http_server import KEEP_ALIVE_S
from server.service_types import Load
from server.settings import MIB, Settings

DOCKER = Path(__file__).parents[2] / "docker"
NGINX = (DOCKER / "nginx" / "nginx.conf").read_text(encoding="utf-8")
HAPROXY = (DOCKER / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
LUA = (DOCKER / "haproxy" / "load.lua").read_text(encoding="utf-8")
ROUTES = (Path(__file__).parents[2] / "server" / "http_api.py").read_text(encoding="utf-8")
REPLICAS = ["wavllm-1", "wavllm-2"]


def seconds(text, directive):
    """All values of a directive, in seconds."""
    found = re.findall(rf"^\s*{directive} (\d+)s;?$", text, re.MULTILINE)
    assert found, directive
    return [int(value) for value in found]


@pytest.fixture(scope="module")
def settings():
    return Settings()


@pytest.mark.parametrize(
    ("text", "directive"),
    [
        (NGINX, "proxy_read_timeout"),
        (NGINX, "grpc_read_timeout"),
        (NGINX, "grpc_send_timeout"),
        (NGINX, "client_body_timeout"),
        (HAPROXY, "timeout server"),
        (HAPROXY, "timeout client"),
    ],
)
def test_the_server_gives_up_first(text, directive, settings):
    assert min(seconds(text, directive)) > settings.request_timeout


def test_the_balancer_closes_idle_connections_first():
    """HAProxy closes half of the idle ones at each purge: of a hundred, the last after seven."""
    (purge_s,) = re.findall(r"^\s*default-server .* pool-purge-delay (\d+)s", HAPROXY, re.MULTILINE)
    assert 7 * int(purge_s) < KEEP_ALIVE_S
    assert "keepalive " not in NGINX, "a pool of nginx's would have to be shorter than the server's patience"


def test_a_draining_replica_is_out_before_it_refuses(settings):
    """HAProxy needs `fall` failed checks in a row; readiness.sh its pause, and its question's limit."""
    interval, fall = re.search(r"^\s*default-server inter (\d+)s fall (\d+) ", HAPROXY, re.MULTILINE).groups()
    assert int(interval) * (int(fall) + 1) < settings.drain_delay
    script = (DOCKER / "nginx" / "readiness.sh").read_text(encoding="utf-8")
    (pause,) = re.findall(r"^\s*sleep (\d+) &$", script, re.MULTILINE)
    (limit,) = re.findall(r"--max-time (\d+)", script)
    assert int(pause) + int(limit) < settings.drain_delay


def test_ports_and_replicas(settings):
    for port in (settings.http_port, settings.grpc_port):
        assert re.search(rf"^\s*listen {port}\b", NGINX, re.MULTILINE)
        assert re.search(rf"^\s*bind :{port}\b", HAPROXY, re.MULTILINE)
        assert sorted(set(re.findall(rf"^\s*server (\S+):{port}\b", NGINX, re.MULTILINE))) == REPLICAS
        assert re.findall(rf"^\s*server \S+ (\S+):{port}\b", HAPROXY, re.MULTILINE) == REPLICAS
    groups = re.findall(r"upstream (\w+) \{\n(.*?)\n    \}", NGINX, re.DOTALL)
    assert len(groups) == 6
    for name, body in groups:
        spare = re.findall(r"server wavllm-(\d):\d+ max_fails=0 backup;", body)
        assert spare == re.findall(r"_without_(\d)$", name)
        assert len(re.findall(r"server wavllm-\d:\d+ max_fails=0", body)) == 2


def test_nginx_leaves_refusals_to_the_server(settings):
    """Its own page for a body that is too large is for what is larger than any the server would take."""
    (limit,) = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    assert settings.max_body_bytes < int(limit) * MIB < settings.max_body_bytes + 4 * MIB


@pytest.mark.parametrize(("text", "count"), [(NGINX, 4), (HAPROXY, 3)], ids=["nginx", "haproxy"])
def test_refusals_of_its_own_have_the_servers_shape(text, count):
    errors = {error.code: error for error in all_errors()}
    bodies = [json.loads(body) for body in re.findall(r"'(\{.*\})'", text)]
    assert len(bodies) == count
    for body in bodies:
        told = body["error"]
        assert error_body(errors[told["code"]](told["message"])) == body


def test_routes_and_fields_exist():
    (asked,) = re.findall(r"^\s*http-check send meth GET uri (\S+) ", HAPROXY, re.MULTILINE)
    assert f'"{asked}"' in ROUTES
    assert '"/v1/load"' in ROUTES
    assert "/v1/load" in LUA
    assert set(re.findall(r'"(num_\w+)"', LUA)) <= set(Load.__dataclass_fields__)
    backends = set(re.findall(r"^backend (\w+)$", HAPROXY, re.MULTILINE))
    assert set(re.findall(r'core\.backends\["(\w+)"\]', LUA)) == backends
    assert SERVICE_NAME not in NGINX + HAPROXY, "health and reflection must pass as well"
