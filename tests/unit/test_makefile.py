"""`make env-tools` brings what the tests drive to a fresh machine. Nothing is installed here."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.locks import pins

ROOT = Path(__file__).parents[2]
SOUGHT = re.compile(r'(?:\bwhich|\btool)\("([\w-]+)"')
WITH_OTHERS = {"promtool": "prometheus", "grpcurl": "", "flite": ""}
"""What brings it: a package of another name, or nothing of apt's here (the lock, `make env-train`)."""


def make(*arguments: str) -> str:
    """Output of make in the checkout; it must succeed."""
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """In place of apt-get: says what it was asked."""
    program = tmp_path / "apt"
    program.write_text("#!/bin/sh\necho apt: $*\n", encoding="utf-8")
    program.chmod(0o755)
    return program


def asked_of(apt: Path, tools: str) -> list[str]:
    lines = make("-s", "env-tools", f"TOOLS={tools}", f"APT={apt}").splitlines()
    return [line.removeprefix("apt: ") for line in lines]


def test_what_is_missing_is_installed_after_the_lists_were_fetched(apt: Path) -> None:
    update, install = asked_of(apt, "sh no-such-tool ls another")
    assert update.split()[0] == "update"
    assert install == "install -y --no-install-recommends no-such-tool another"


def test_nothing_is_asked_for_where_all_is_there(apt: Path) -> None:
    assert asked_of(apt, "sh ls") == []


def test_a_failed_installation_stops_make(apt: Path) -> None:
    apt.write_text('#!/bin/sh\n[ "$1" = update ]\n', encoding="utf-8")
    with pytest.raises(AssertionError):
        asked_of(apt, "no-such-tool")


def test_every_program_that_tests_look_for_is_brought() -> None:
    (tools,) = re.findall(r"^TOOLS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    sought = {name for text in texts for name in SOUGHT.findall(text)}
    assert {"nginx", "chromium", "npm"} <= sought
    assert {WITH_OTHERS.get(name, name) for name in sought} - {""} <= set(tools.split())


def test_every_tool_comes_before_all_tests_run() -> None:
    (needed,) = re.findall(r"^test-all: (.+) ##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {"env-train", "env-ray", "env-tools", "bench-env", "lint"} == set(needed.split())


def test_the_readme_offers_the_small_torch_before_it_brings_the_large_one() -> None:
    """`make env` does nothing where .venv is there, whatever the flags."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^make (.+PIP_FLAGS=.+)$", readme, re.M)
    assert readme.index(command) < readme.index("\nmake serve\n")
    targets, flags = command.split(" PIP_FLAGS=")
    assert targets.split() == ["clean", "env"]
    made = make("--dry-run", "--always-make", *targets.split(), "PIP_FLAGS=" + flags.strip('"'))
    assert made.index("rm -rf .venv") < made.index(flags.strip('"') + " -r requirements.lock")


def test_everything_that_the_project_asks_for_is_pinned() -> None:
    """The Docker image and `make env` install nothing but the lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pinned = pins("requirements.lock")
    asked = [Requirement(line) for line in [*project["dependencies"], *extras["eval"], *extras["dev"]]]
    assert [str(one) for one in asked if not one.specifier.contains(pinned.get(one.name.lower(), "0"))] == []
