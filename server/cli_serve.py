"""`wavllm serve`: one flag per field of the settings, made from them, so that the two never differ."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from server.cli_errors import CommandError, check_model_dir
from server.settings import DEFAULT_MODEL_DIR, Settings, SettingsError, flag_of, load_settings

SERVE_EXAMPLES = """Examples:

  wavllm serve

  wavllm serve --model models/wavllm --device cuda --api-key-file keys.txt

Every flag is also an environment variable: --http-port is WAVLLM_HTTP_PORT.
"""
PANELS = {
    "host": "Addresses",
    "model": "Model",
    "max_batch_size": "Batching",
    "max_queued_requests": "Admission",
    "max_upload_mb": "Limits of one request",
    "api_key": "Security",
    "drain_delay": "Life cycle and logs",
}
"""The first field of each panel of the help."""
REPEATABLE = frozenset({"api_key"})
HIDDEN_DEFAULTS = frozenset({"model"})


def make_serve() -> Callable[..., None]:
    """The command's function, with a signature made from the settings' fields."""

    def serve(*, print_config: bool = False, **given: Any) -> None:
        """Serve the model over REST and gRPC until SIGTERM or Ctrl-C (a second one ends it at once)."""
        settings = _settings({name: value for name, value in given.items() if value not in (None, [])})
        if print_config:
            typer.echo(json.dumps(shown(settings), indent=2, ensure_ascii=False))
        else:
            _run(settings)

    parameters = [*_field_parameters(), _print_config_parameter()]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return serve


def shown(settings: Settings) -> dict[str, Any]:
    """All settings as plain values, keys masked."""
    return settings.model_dump(mode="json")


def _settings(given: dict[str, Any]) -> Settings:
    if "api_key" in given:
        given["api_key"] = tuple(SecretStr(key) for key in given["api_key"])
    try:
        settings = load_settings(given)
        settings.load_api_keys()
    except SettingsError as error:
        raise CommandError(str(error), 2) from error
    return settings


def _run(settings: Settings) -> None:
    check_model_dir(settings.model, DEFAULT_MODEL_DIR)
    from server.logs import configure

    configure(settings.log_format, settings.log_level)  # before the imports that bring grpc
    from server.cli_progress import progress_bar
    from server.http_server import PortInUse
    from server.serve import StartFailure, run

    try:
        with progress_bar("Loading the model") as report:
            run(settings, report)
    except (StartFailure, PortInUse, SettingsError) as error:
        raise CommandError(str(error)) from error


def _field_parameters() -> list[inspect.Parameter]:
    parameters, panel = [], ""
    for name, field in Settings.model_fields.items():
        panel = PANELS.get(name, panel)
        parameters.append(_parameter(name, field, panel))
    return parameters


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """Flags are taken as text; the settings parse and check them, as they do the environment."""
    is_shown = field.default is not None and name not in REPEATABLE | HIDDEN_DEFAULTS
    text = f"{field.description} Default: {field.default}." if is_shown else field.description
    option = typer.Option(
        None, flag_of(name), help=text, show_default=False, rich_help_panel=panel, metavar=_metavar(field)
    )
    annotation = list[str] | None if name in REPEATABLE else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _metavar(field: FieldInfo) -> str:
    """What kind of text the flag wants, for the help."""
    kinds = _kinds(field.annotation)
    named = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    return next((name for kind, name in named.items() if kind in kinds), "TEXT")


def _kinds(annotation: Any) -> list[Any]:
    """An annotation and all that it is made of, through unions and Annotated."""
    return [annotation, *(kind for part in typing.get_args(annotation) for kind in _kinds(part))]


def _print_config_parameter() -> inspect.Parameter:
    option = typer.Option(False, "--print-config", help="Print the settings as JSON and exit.")
    return inspect.Parameter("print_config", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool)
