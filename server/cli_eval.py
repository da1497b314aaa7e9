"""`wavllm eval`: run a plan, show its report."""

from __future__ import annotations

import asyncio
import os

import typer

from server.cli_errors import CommandError, check_model_dir, check_server
from server.cli_progress import progress_bar
from server.eval.run import Outcome, Plan, evaluate
from server.eval.types import EvalError
from server.os_process import computing_environment
from server.settings import DEFAULT_MODEL_DIR

INTERRUPTED = 130
"""The exit code that shells give a command ended by Ctrl-C."""


def run_plan(plan: Plan) -> None:
    """Evaluate and print the tables. Raises CommandError, also if a question failed."""
    if plan.server is None:
        check_model_dir(plan.model_dir, DEFAULT_MODEL_DIR)
        os.environ.update(computing_environment())  # before torch is loaded
    else:
        check_server(plan.server, plan.api_key)
    try:
        outcome = asyncio.run(evaluate(plan, progress_bar, _warn))
    except EvalError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename or plan.directory}: {error.strerror}") from error
    except KeyboardInterrupt as error:
        message = f"interrupted; the answers so far are in {plan.directory}: run it again to go on"
        raise CommandError(message, INTERRUPTED) from error
    _show(plan, outcome)


def _warn(text: str) -> None:
    typer.echo(f"wavllm: {text}", err=True)


def _show(plan: Plan, outcome: Outcome) -> None:
    if outcome.remark:
        _warn(outcome.remark)
    typer.echo((plan.directory / "report.md").read_text(encoding="utf-8"))
    num_errors = outcome.report["num_errors"]
    if num_errors:
        raise CommandError(
            f"{num_errors} questions failed (see answers.jsonl); run it again to ask them again"
        )
