"""`wavllm`: the command line. Imports nothing heavy, so that `--help` is quick; commands import their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from server.cli_errors import CommandError

HELP = "Ask questions about speech: a server for WavLLM over REST and gRPC."
ASK_EXAMPLES = """Examples:

  wavllm ask clip.wav "What is said?"

  wavllm ask talk.mp3 "Summarise this." --max-tokens 100

  cat clip.wav | wavllm ask - "Is the speaker happy?"
"""
CONVERT_EXAMPLES = """Examples:

  wavllm convert final.pt models/wavllm --tokenizer tokenizer.model --dtype bfloat16

  wavllm convert my-adapter models/mine --base-model Llama-2-7b-hf --speech-from models/wavllm

Then: wavllm serve --model models/wavllm
"""
EXPORT_EXAMPLES = """Example: wavllm export models/wavllm my-adapter"""

ModelDir = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint directory.", show_default="the embedded default")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")]
OutputDtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.", show_default="that of each tensor in SOURCE"),
]


def ask(
    file: Annotated[str, typer.Argument(help="Audio file of any usual format; - reads standard input.")],
    instruction: Annotated[str, typer.Argument(help="What to do with the clip, in plain words.")],
    model: ModelDir = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    system: Annotated[str | None, typer.Option(help="Replaces the template's system text.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 (greedy) to 2.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Above 0, at most 1 (off).")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 (off) or more.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> None:
    """Answer one question about a clip, without a server; the answer streams to the terminal."""
    from server.cli_ask import Question, answer
    from server.types import SamplingParams

    sampling = SamplingParams(max_tokens, temperature, top_p, top_k, seed)
    answer(Question(file, instruction, sampling, system, model, device, dtype))


def convert(
    source: Annotated[Path, typer.Argument(help="The published final.pt, or a PEFT adapter's directory.")],
    output: Annotated[Path, typer.Argument(help="New directory for the model.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece model (for a final.pt).", show_default=False)
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="JSON with the sizes (for a final.pt).", show_default="the released model's"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model calls itself (for a final.pt).", show_default=False)
    ] = None,
    base_model: Annotated[
        Path | None, typer.Option(help="Hugging Face LLaMA directory (for an adapter).", show_default=False)
    ] = None,
    speech_from: Annotated[
        Path | None,
        typer.Option(
            help="Model directory that has the speech parts (for an adapter).", show_default="its own"
        ),
    ] = None,
    dtype: OutputDtype = None,
) -> None:
    """Make a model directory that `wavllm serve --model` takes, from published weights or a PEFT adapter."""
    from server.cli_convert import from_adapter, from_published

    if source.is_dir():
        from_adapter(source, output, base_model=base_model, speech_from=speech_from, dtype=dtype)
    else:
        from_published(source, output, tokenizer=tokenizer, spec=spec, dtype=dtype, name=name)


def export(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    output: Annotated[Path, typer.Argument(help="New directory for the adapter and the speech parts.")],
) -> None:
    """Write a model's LoRA as a PEFT adapter, the speech parts beside it."""
    from server.cli_convert import to_adapter

    to_adapter(model, output)


def build_app() -> typer.Typer:
    """All commands. Loads the settings, from which the flags of `serve` are made."""
    from server.cli_serve import SERVE_EXAMPLES, make_serve

    app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.command("serve", epilog=SERVE_EXAMPLES)(make_serve())
    app.command("ask", epilog=ASK_EXAMPLES)(ask)
    app.command("convert", epilog=CONVERT_EXAMPLES)(convert)
    app.command("export", epilog=EXPORT_EXAMPLES)(export)
    return app


def main() -> None:
    """Console entry: failures are one line each on standard error, exit code 1 (or 2 for wrong usage)."""
    try:
        build_app()()
    except CommandError as error:
        for line in str(error).splitlines():
            typer.secho(f"wavllm: {line}", err=True, fg="red")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
