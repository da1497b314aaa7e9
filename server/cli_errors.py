"""How a command fails: with lines for the operator, never with a traceback."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit


class CommandError(Exception):
    """A command cannot go on. exit_code: 1, or 2 when it was called wrongly."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_model_dir(model: Path, default: Path) -> None:
    """Raise CommandError, with the way out, unless the directory looks like a model."""
    if (model / "config.json").is_file():
        return
    if model == default:
        raise CommandError(f"the embedded default model is missing ({default}): run `make env`")
    raise CommandError(f"--model: {model} holds no config.json; `wavllm convert` makes such a directory")


def check_server(url: str, api_key: str | None) -> None:
    """Raise CommandError unless this can be the address of a server, and the key stand in a header."""
    if not url.startswith(("http://", "https://")):
        raise CommandError("--server: must start with http:// or https://", 2)
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0 and _is_httpx_url(url)
    except ValueError:  # a port that is none, a bracket that is left open
        is_address = False
    if not is_address:
        raise CommandError(f"--server: {url} is no address of a server such as http://127.0.0.1:8000", 2)
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise CommandError("--api-key: a header takes only printable ASCII characters", 2)


def _is_httpx_url(url: str) -> bool:
    """Whether the client takes it; without the client, whose absence is told elsewhere, nothing is known."""
    if importlib.util.find_spec("httpx") is None:
        return True
    import httpx

    try:
        return bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False
