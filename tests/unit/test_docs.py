"""The pages under docs/ say what the code does: generated ones are fresh, and names lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from error_tree import all_errors

from server import docs_gen
from server.errors import RequestCancelled
from server.grpc_errors import status_of as grpc_status_of
from server.http_errors import status_of
from server.metrics import Metrics, Snapshot, error_codes
from server.settings import Settings, flag_of
from server.types import EngineStats

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
LIMITS = (DOCS / "limits.md").read_text(encoding="utf-8")
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
GUARANTEES = (DOCS / "guarantees.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted(DOCS.glob("*.md"))]
PAGES += [ROOT / name / "README.md" for name in ("docker", "examples", "examples/clips", "benchmarks")]
LOG_METHODS = {"debug", "info", "warning", "error", "exception"}


def rows(page: str, *columns: str) -> list[list[str]]:
    """The cells of the table with these columns."""
    head = "| " + " | ".join(columns)
    (table,) = [block for block in page.split("\n\n") if block.startswith(head)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def codes_in(cell: str) -> list[str]:
    """What a cell shows as code."""
    return re.findall(r"`([^`]+)`", cell)


def anchors(page: str) -> set[str]:
    """The anchors that a page's headings make, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_reference_is_what_the_server_and_the_proto_say() -> None:
    assert docs_gen.main(["--check"]) == 0, "run `make docs`"


def test_a_stale_reference_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "api.md"
    page.write_text("old", encoding="utf-8")
    monkeypatch.setattr(docs_gen, "OUTPUT", page)
    assert docs_gen.main(["--check"]) == 1
    assert docs_gen.main([]) == 0
    assert page.read_text(encoding="utf-8") == (DOCS / "api.md").read_text(encoding="utf-8")


def test_the_reference_has_every_route_schema_method_and_field() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    spec = docs_gen.document()
    for path, operations in spec["paths"].items():
        for method in operations:
            assert f"### {method.upper()} {path}\n" in page
    for name in spec["components"]["schemas"]:
        assert f"#### {name}\n" in page
    file = docs_gen.descriptor()
    for message in file.message_type:
        section = page.split(f"### Message {message.name}\n")[1].split("\n### ")[0]
        for field in message.field:
            (line,) = [line for line in section.splitlines() if line.startswith(f"| `{field.name}` |")]
            assert len(line.split(" | ")[-1]) > 5, "every field of the proto has a comment"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", page):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def named_tests(page: str) -> list[str]:
    """Every test that a page names."""
    return re.findall(r"`(tests/\S+::\w+)`", page)


def test_every_guarantee_names_tests() -> None:
    parts = re.split(r"^\*\*G(\d+)\. ", GUARANTEES, flags=re.M)[1:]
    named = dict(zip(map(int, parts[::2]), map(named_tests, parts[1::2]), strict=True))
    assert sorted(named) == list(range(1, 11))
    assert all(named.values())
    items = re.findall(r"^- (.+)$", GUARANTEES, re.M)
    assert len(items) == sum(map(len, named.values())), "each item is a test"


@pytest.mark.parametrize("name", named_tests(GUARANTEES))
def test_every_named_test_exists(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert function.startswith("test_")
    assert function in defined


def test_the_errors_table_is_the_error_tree() -> None:
    shown = {
        codes_in(code)[0]: (int(http), grpc)
        for code, http, grpc, *_ in rows(LIMITS, "code", "HTTP", "gRPC", "when", "what to do")
    }
    expected = {}
    for cls in all_errors():
        error = cls("what")
        expected[cls.code] = (status_of(error), grpc_status_of(error, "id").code.name)
    assert shown == expected
    assert set(shown) == {*error_codes(), RequestCancelled.code}


def test_the_limits_table_has_the_defaults_and_names_codes() -> None:
    table = rows(LIMITS, "what", "limit", "changed with", "beyond it")
    shown = {codes_in(flag)[0]: limit for _, limit, flag, _ in table if codes_in(flag)}
    for name, field in Settings.model_fields.items():
        limit = shown.pop(flag_of(name), None)
        if limit is not None and isinstance(field.default, int | float):
            assert f"{field.default:g}" in re.findall(r"[\d.]+\d|\d", limit), flag_of(name)
    assert shown == {}, "these are no flags"
    for *_, beyond in table:
        assert set(codes_in(beyond)) <= {*error_codes(), "finish_reason", "length"}


@pytest.mark.parametrize("page", [LIMITS, OPERATIONS], ids=["limits", "operations"])
def test_every_flag_and_variable_exists(page: str) -> None:
    flags = {flag_of(name) for name in Settings.model_fields} | {"--print-config", "--version"}
    variables = {f"WAVLLM_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) <= flags
    assert set(re.findall(r"\bWAVLLM_[A-Z_]+", page)) <= variables


def test_every_metric_is_explained_and_no_other() -> None:
    metrics = Metrics()
    metrics.watch(lambda: Snapshot(0, 0, 0.0, "ready", EngineStats()), tuple)
    exported = {
        family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()
    }
    listed = {name for row in rows(OPERATIONS, "metric", "means", "look when") for name in codes_in(row[0])}
    assert listed == exported
    elsewhere = set(re.findall(r"wavllm_\w+", OPERATIONS)) - {"wavllm_"}
    assert elsewhere <= exported


def logged_messages() -> set[str]:
    """The first argument of every call of a logger in the server and the model, and the access line's."""
    found = set()
    for path in (path for package in ("model", "server") for path in (ROOT / package).rglob("*.py")):
        if "eval" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                found |= set(_message_of(node, node.func))
    return found


def _message_of(call: ast.Call, function: ast.Attribute) -> Iterator[str]:
    owner = ast.unparse(function.value)
    is_logger = owner in ("logger", "_logger", "ACCESS")
    if is_logger and function.attr in LOG_METHODS | {"log"}:
        message = call.args[1 if function.attr == "log" else 0]
        assert isinstance(message, ast.Constant), ast.unparse(call)
        yield str(message.value)


def test_every_log_line_is_explained_and_no_other() -> None:
    listed = {name for row in rows(OPERATIONS, "message", "means", "do") for name in codes_in(row[0])}
    assert listed == logged_messages()


def test_alerts_are_explained() -> None:
    """Where alert rules are shipped, the runbook has exactly those."""
    listed = {codes_in(row[0])[0] for row in rows(OPERATIONS, "alert", "means", "do")}
    assert listed
    files = list((ROOT / "docker").rglob("rules.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    shipped = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert not files or listed == shipped
