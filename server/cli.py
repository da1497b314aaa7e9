"""`wavllm`: the command line. Imports nothing heavy, so that `--help` is quick; commands import their own."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from server.bench.types import Api, Plan, ReferenceTime
from server.cli_errors import CommandError

HELP = "Ask questions about speech: a server for WavLLM over REST and gRPC."
ASK_EXAMPLES = """Examples:

  wavllm ask clip.wav "What is said?"

  wavllm ask talk.mp3 "Summarise this." --max-tokens 100

  cat clip.wav | wavllm ask - "Is the speaker happy?"
"""
CONVERT_EXAMPLES = """Examples:

  wavllm convert --checkpoint final.pt --tokenizer tokenizer.model --output models/wavllm --dtype bfloat16

  wavllm convert --base-model Llama-2-7b-chat-hf --peft my-adapter --output models/mine

Then: wavllm serve --model models/wavllm
"""
EXPORT_EXAMPLES = """Example: wavllm export --model models/wavllm --peft my-adapter"""

EVAL_EXAMPLES = """Examples:

  wavllm eval asr.tsv --model models/wavllm --device cuda

  wavllm eval gaokao.tsv --server http://127.0.0.1:8000 --audio-root /data/gaokao

Run again to go on after an interruption.
"""
BENCH_EXAMPLES = """Examples:

  wavllm bench --request-rate 1,2,4,8,inf --goodput ttft:600 --goodput e2e:3000

  wavllm bench --manifest asr.tsv --audio-root /data --duration 60 --request-rate 4

  wavllm bench --api openai --server http://127.0.0.1:8000 --audio clip.wav --prompt "What is said?"
"""

ModelDir = Annotated[
    Path | None, typer.Option("--model", help="Checkpoint directory.", show_default="the embedded default")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")]
OutputDtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.", show_default="that of each tensor as it is"),
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
    output: Annotated[Path, typer.Option(help="New directory for the model.", show_default=False)],
    checkpoint: Annotated[
        Path | None, typer.Option(help="The published final.pt, or one in its layout.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece model (with --checkpoint).", show_default=False)
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="JSON with the sizes (with --checkpoint).", show_default="the released model's"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model calls itself (with --checkpoint).", show_default=False)
    ] = None,
    base_model: Annotated[
        Path | None,
        typer.Option(help="The adapter's LLaMA, a Hugging Face directory (with --peft).", show_default=False),
    ] = None,
    peft: Annotated[Path | None, typer.Option(help="PEFT adapter directory.", show_default=False)] = None,
    speech_from: Annotated[
        Path | None,
        typer.Option(
            help="Model directory that has the speech parts (with --peft).", show_default="the adapter's own"
        ),
    ] = None,
    dtype: OutputDtype = None,
) -> None:
    """Make a model directory that `wavllm serve --model` takes.

    From published weights (--checkpoint, --tokenizer), or from a PEFT adapter (--peft) over a Hugging Face
    LLaMA (--base-model).
    """
    if (checkpoint is None) == (peft is None):
        raise CommandError("give either --checkpoint or --peft", 2)
    adapter_options = {"--base-model": base_model, "--speech-from": speech_from}
    if checkpoint is not None:
        _refuse(adapter_options, "--checkpoint")
        if tokenizer is None:
            raise CommandError("--tokenizer: needed with --checkpoint", 2)
        from server.cli_convert import from_published

        from_published(checkpoint, output, tokenizer=tokenizer, spec=spec, dtype=dtype, name=name)
    elif peft is not None:
        _refuse({"--tokenizer": tokenizer, "--spec": spec, "--name": name}, "--peft")
        if base_model is None:
            raise CommandError("--base-model: needed with --peft", 2)
        from server.cli_convert import from_adapter

        from_adapter(peft, output, base_model=base_model, speech_from=speech_from, dtype=dtype)


def _refuse(options: Mapping[str, Path | str | None], with_option: str) -> None:
    """Options that would be ignored are refused, so that nobody believes they did something."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise CommandError(f"{given[0]}: does not go with {with_option}", 2)


def export(
    model: Annotated[Path, typer.Option(help="Model directory.", show_default=False)],
    peft: Annotated[
        Path, typer.Option(help="New directory for the adapter and the speech parts.", show_default=False)
    ],
) -> None:
    """Write a model's LoRA as a PEFT adapter, the speech parts beside it."""
    from server.cli_convert import to_adapter

    to_adapter(model, peft)


def evaluate(
    manifest: Annotated[Path, typer.Argument(help="TSV with the columns id, audio, prompt, tgt_text.")],
    server: Annotated[
        str | None, typer.Option(help="URL of a running server.", show_default="a model in this process")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Key for that server.", show_default=False)] = None,
    model: ModelDir = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="auto, float32, bfloat16, float16 or float64.", show_default="auto"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Task of rows without one.", show_default="the column task, else the file's name"),
    ] = None,
    audio_root: Annotated[
        Path | None,
        typer.Option(help="Where audio is that is not beside the manifest.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the results.", show_default="eval-results/MANIFEST")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions asked at the same time.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many rows.", show_default=False)
    ] = None,
    spelling: Annotated[
        Path | None,
        typer.Option(help="Whisper's British-American word list (JSON), for WER.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget the answers of earlier runs.")
    ] = False,
) -> None:
    """Ask all questions of a manifest, greedily, and score the answers per task.

    Exit code 1 if any question failed. Needs the extra `eval`.
    """
    local = {"--model": model, "--device": device, "--dtype": dtype}
    if server is None:
        _refuse({"--api-key": api_key}, "a model in this process; it needs --server")
    else:
        _refuse(local, "--server")
    from server.cli_eval import run_plan
    from server.eval.run import Plan

    run_plan(
        Plan(
            manifest=manifest,
            server=server,
            api_key=api_key,
            model=model,
            device=device or "auto",
            dtype=dtype or "auto",
            task=task,
            audio_root=audio_root,
            output=output,
            concurrency=concurrency,
            max_tokens=max_tokens,
            limit=limit,
            spelling=spelling,
            overwrite=overwrite,
        )
    )


def bench(
    server: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    api: Annotated[
        Api, typer.Option(help="speech: /v1/speech/chat; openai: /v1/chat/completions.")
    ] = Api.SPEECH,
    api_key: Annotated[str | None, typer.Option(help="Key for the server.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="Name to send.", show_default="with openai the first of /v1/models")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="TSV as `wavllm eval` reads it: what to ask.", show_default="example clips"),
    ] = None,
    audio_root: Annotated[
        Path | None,
        typer.Option(help="Where audio is that is not beside the manifest.", show_default=False),
    ] = None,
    audio: Annotated[
        list[Path] | None, typer.Option(help="A clip to ask about; repeatable.", show_default=False)
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="An instruction for every clip; repeatable.",
            show_default="What is said?",
        ),
    ] = None,
    request_rate: Annotated[
        str, typer.Option(help="Requests per second; several, one load after another: 1,2,4,inf.")
    ] = "1",
    num_requests: Annotated[int, typer.Option(min=1, help="Requests measured at each rate.")] = 100,
    duration: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds of arrivals, in place of --num-requests.", show_default=False),
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Requests at the start of each rate that are in no figure.")
    ] = 4,
    burstiness: Annotated[
        float, typer.Option(min=0.001, help="1: Poisson arrivals; less: bursts; more: steadier.")
    ] = 1.0,
    max_concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in flight at most; latency counts the wait.", show_default="any"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Makes arrivals and questions repeatable.")] = 0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="A bound in ms: ttft:600, tpot:50 or e2e:3000; repeatable.", show_default=False),
    ] = None,
    cancel_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of clients that leave in the middle.")
    ] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds from a send to its end, at most.")] = 300.0,
    reference: Annotated[
        ReferenceTime,
        typer.Option(help="When every question is asked alone, to compare answers; before also warms up."),
    ] = ReferenceTime.BEFORE,
    output: Annotated[
        Path | None, typer.Option(help="New directory of the results.", show_default="bench-results/TIME")
    ] = None,
) -> None:
    """Send requests to a server on a schedule and report what its users would have felt.

    Open loop: requests go out when they are due, and latency counts from then, so that a slow
    server cannot slow down its own measurement. Exit code 1 if any request failed. Needs the extra `eval`.
    """
    from server.cli_bench import default_output, parse_rates, parse_slos, run_plan

    run_plan(
        Plan(
            server=server,
            api=api,
            api_key=api_key,
            model=model,
            manifest=manifest,
            audio_root=audio_root,
            audio=tuple(audio or ()),
            prompts=tuple(prompt or ()),
            rates=parse_rates(request_rate),
            num_requests=num_requests,
            duration_s=duration,
            num_warmup=warmup,
            burstiness=burstiness,
            max_concurrency=max_concurrency,
            max_tokens=max_tokens,
            seed=seed,
            slos_ms=parse_slos(goodput or ()),
            cancel_share=cancel_share,
            timeout_s=timeout,
            reference=reference,
            output=output or default_output(),
        )
    )


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wavllm {importlib.metadata.version('wavllm-server')}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print it, and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


def build_app() -> typer.Typer:
    """All commands. Loads the settings, from which the flags of `serve` are made."""
    from server.cli_serve import SERVE_EXAMPLES, make_serve

    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback(help=HELP)(root)
    app.command("serve", epilog=SERVE_EXAMPLES)(make_serve())
    app.command("ask", epilog=ASK_EXAMPLES)(ask)
    app.command("convert", epilog=CONVERT_EXAMPLES)(convert)
    app.command("export", epilog=EXPORT_EXAMPLES)(export)
    app.command("eval", epilog=EVAL_EXAMPLES)(evaluate)
    app.command("bench", epilog=BENCH_EXAMPLES)(bench)
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
