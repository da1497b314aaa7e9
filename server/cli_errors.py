"""How a command fails: with lines for the operator, never with a traceback."""

from __future__ import annotations

from pathlib import Path


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
