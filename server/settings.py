"""Every setting of `wavllm serve` as one frozen, validated object; nothing else reads the environment.

Each field is a flag (`--http-port`), an environment variable (`WAVLLM_HTTP_PORT`) and a line of
`--print-config`; its description is the flag's help. Flags win over the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.types import MAX_AUDIO_SECONDS, ON_CPU, ON_GPU, EngineConfig

MIB = 2**20
BODY_SLACK_BYTES = 64 * 1024
"""What a body may hold beside the clip: the other fields, and the multipart or JSON around them."""
DEFAULT_MODEL_DIR = Path(__file__).resolve().parent.parent / "model" / "default"
DEFAULT_MAX_TOKENS = 256

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _defaults(name: str) -> str:
    """What a help text says of an engine's default."""
    return f"default: {getattr(ON_CPU, name):g} (CPU), {getattr(ON_GPU, name):g} (GPU)"


class SettingsError(ValueError):
    """Settings that no server can run with: one line per fault, each naming its flag."""


class Settings(BaseSettings):
    """What a server is started with. Sizes are in MiB, times in seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="WAVLLM_", frozen=True, extra="forbid", protected_namespaces=()
    )

    host: str = Field(
        "0.0.0.0",
        min_length=1,
        description="Address to listen on, for all ports; a name stands for all of its addresses.",
    )
    http_port: Port = Field(8000, description="Port of the REST API; 0 takes a free one.")
    grpc_port: Port = Field(50051, description="Port of the gRPC API; 0 takes a free one.")
    metrics_port: Port = Field(
        9090, description="Port of /metrics; 0 turns it off, the number of the REST port serves it there."
    )

    model: Path = Field(DEFAULT_MODEL_DIR, description="Checkpoint directory (see `wavllm convert`).")
    served_model_name: str | None = Field(
        None, min_length=1, description="Name that clients see; default: the checkpoint's own."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        "auto", description="Number format of the weights; auto: float32 on a CPU, bfloat16 on CUDA."
    )
    merge_prompt: str | None = Field(
        None, description="Serve this one instruction, with the LoRA merged into the weights."
    )

    max_batch_size: Count | None = Field(
        None, description=f"Requests that generate at once; {_defaults('max_batch_size')}."
    )
    max_batch_tokens: Count | None = Field(
        None, description=f"Tokens of one forward pass; {_defaults('max_batch_tokens')}."
    )
    kv_cache_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share, for the KV cache, of the device memory that is found free once the model is "
        f"loaded; {_defaults('kv_cache_fraction')}.",
    )
    encoder_step_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What encoding and prefilling may add to the time between two tokens of a running "
        f"answer, in ms; {_defaults('encoder_step_ms')}.",
    )

    max_queued_requests: Count = Field(256, description="Requests that may wait; more get a 503.")
    max_queued_audio_seconds: Seconds = Field(3600.0, description="Seconds of audio that may wait.")
    max_inflight_mb: Seconds = Field(512.0, description="MiB of request bodies and clips held at once.")
    queue_timeout: Seconds = Field(
        30.0,
        description="Seconds a request may wait in the queue, and as many for a process that decodes its "
        "audio, before it gets a 504.",
    )
    request_timeout: Seconds = Field(300.0, description="Seconds a request may take in all.")
    rate_limit: Seconds | None = Field(None, description="Requests per second and API key; default: off.")
    sse_keepalive: Seconds = Field(3.0, description="Seconds between keep-alive comments in a stream.")

    max_upload_mb: Seconds = Field(25.0, description="Largest clip in MiB, as it is uploaded.")
    max_audio_seconds: Seconds | None = Field(
        None,
        description="Longest clip in seconds; default: what the model has room for, "
        f"at most {MAX_AUDIO_SECONDS}.",
    )
    min_audio_seconds: float = Field(0.1, ge=0, allow_inf_nan=False, description="Shortest clip in seconds.")
    max_prompt_chars: Count = Field(4000, description="Longest instruction in characters.")
    max_new_tokens: Count = Field(512, description="Longest answer in tokens that a request may ask for.")
    audio_workers: Count = Field(2, le=256, description="Processes that decode audio.")

    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Key that clients must send as a bearer token; repeatable (in the environment: commas).",
    )
    api_key_file: Path | None = Field(None, description="File with one API key per line.")
    tls_cert: Path | None = Field(None, description="PEM certificate chain; serves both ports over TLS.")
    tls_key: Path | None = Field(None, description="PEM private key of --tls-cert.")
    tls_client_ca: Path | None = Field(
        None, description="PEM authorities; clients must then show a certificate signed by one of them."
    )

    drain_delay: float = Field(
        5.0, ge=0, allow_inf_nan=False, description="Seconds between failing readiness and refusing requests."
    )
    shutdown_timeout: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that running requests get to finish at shutdown.",
    )
    engine_timeout: float = Field(
        60.0,
        ge=1,
        allow_inf_nan=False,
        description="Seconds without a sign of life after which the engine is started again; more than its "
        "longest step, which with a large model on a CPU may be minutes.",
    )
    log_format: Literal["json", "text"] = Field("json", description="Shape of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")

    @field_validator("api_key", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        """The environment holds all keys in one string, with commas between them; an empty one means none."""
        if not isinstance(value, str):
            return value
        keys = [key.strip() for key in value.split(",") if key.strip()]
        if value and not keys:  # somebody meant to set one: an open server is not what they want
            raise ValueError("WAVLLM_API_KEY holds no key; leave it out, or empty, to serve without keys")
        return keys

    @field_validator("api_key")
    @classmethod
    def _keys_are_printable(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            _check_key(key.get_secret_value())
        return keys

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca: needs --tls-cert and --tls-key")
        if self.max_inflight_mb * MIB < self.max_body_bytes:
            raise ValueError("--max-inflight-mb: must hold at least one body of --max-upload-mb (4/3 of it)")
        if self.max_audio_seconds is not None and self.max_audio_seconds < self.min_audio_seconds:
            raise ValueError("--max-audio-seconds: is below --min-audio-seconds")
        taken = [port for port in (self.http_port, self.grpc_port) if port]
        if len(taken) != len(set(taken)) or (self.grpc_port and self.grpc_port == self.metrics_port):
            raise ValueError("--grpc-port: another port has the same number")
        return self

    @property
    def max_upload_bytes(self) -> int:
        """Largest clip in bytes, after base64."""
        return int(self.max_upload_mb * MIB)

    @property
    def max_body_bytes(self) -> int:
        """Largest HTTP body in bytes: the clip in base64 and the slack for all else."""
        return self.max_upload_bytes * 4 // 3 + BODY_SLACK_BYTES

    @property
    def max_inflight_bytes(self) -> int:
        """Bytes of bodies and waveforms held at once."""
        return int(self.max_inflight_mb * MIB)

    @property
    def default_max_tokens(self) -> int:
        """Answer length when the request names none."""
        return min(DEFAULT_MAX_TOKENS, self.max_new_tokens)

    def audio_limit_s(self, model_max_s: float) -> float:
        """Longest clip in seconds, given what the loaded model has room for."""
        return min(self.max_audio_seconds or MAX_AUDIO_SECONDS, model_max_s)

    def load_api_keys(self) -> tuple[str, ...]:
        """All keys, from flags and file. Raises SettingsError for a file that is unreadable or has none."""
        keys = [key.get_secret_value() for key in self.api_key]
        return tuple(keys + _read_keys(self.api_key_file)) if self.api_key_file else tuple(keys)

    def engine_config(self) -> EngineConfig:
        """The part that the engine is built from."""
        return EngineConfig(
            model_dir=self.model,
            served_name=self.served_model_name,
            device=self.device,
            dtype=self.dtype,
            merge_prompt=self.merge_prompt,
            max_batch_size=self.max_batch_size,
            max_batch_tokens=self.max_batch_tokens,
            kv_cache_fraction=self.kv_cache_fraction,
            encoder_step_ms=self.encoder_step_ms,
        )


def load_settings(given: dict[str, Any] | None = None) -> Settings:
    """Settings from flags (`given`, by field name), then the environment, then defaults.

    Raises SettingsError with one line per fault.
    """
    try:
        return Settings(**(given or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(_fault(fault) for fault in error.errors())) from error


def _fault(fault: Any) -> str:
    """One validation fault as a line, naming the flag and never the value (it may be a key)."""
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{flag_of(str(fault['loc'][0]))}: {message}" if fault["loc"] else message


def flag_of(field_name: str) -> str:
    """`http_port` -> `--http-port`."""
    return "--" + field_name.replace("_", "-")


def _check_key(key: str) -> None:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("an API key must be printable ASCII without spaces, and not empty")


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--api-key-file: {path}: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise SettingsError(f"--api-key-file: {path}: holds no key")
    for key in keys:
        try:
            _check_key(key)
        except ValueError as error:
            raise SettingsError(f"--api-key-file: {path}: {error}") from error
    return keys
