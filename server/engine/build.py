"""From an `EngineConfig` to a warm engine: device, weights, merge, sizes measured from memory, warm-up."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model.checkpoint import load_model
from model.config import SAMPLE_RATE, ConfigError, SpeechLLMConfig
from model.fused_llama import FusedLlama
from model.kv_cache import KVCache
from model.prompt import adapter_ids, build_prompt
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.engine.core import EngineCore
from server.engine.encoding import Encoding
from server.engine.factory import Progress
from server.engine.fingerprint import fingerprint
from server.engine.intake import Intake
from server.engine.memory import free_bytes
from server.engine.pages import PagePool
from server.engine.result_cache import ResultCache
from server.engine.runner import Runner, Threads
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.sequence import Sequence
from server.engine.warmup import Pace, warm_up
from server.errors import EngineError
from server.types import MAX_AUDIO_SECONDS, ON_CPU, ON_GPU, EngineConfig, EngineDefaults, ModelInfo

logger = logging.getLogger(__name__)

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MAX_SCALES = 4096
"""Instructions whose scale is remembered; each takes one row of D numbers."""
ANSWER_ROOM = 64
"""Tokens kept free of audio when the longest clip is worked out."""
PACKED_SHARE = 0.25
"""Of the free memory, for second copies of the weights on a CPU."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the engine has room for."""

    max_batch_size: int
    max_batch_tokens: int
    num_pages: int


@dataclass(frozen=True, slots=True)
class Budgets:
    """How an engine shares its time, once the machine's pace is known; without bounds as long as it is not.

    slice_s: seconds by which an encoder pass may make a step longer. encode_seconds, prefill_beside: see
    SchedulerLimits. threads: None for torch's own.
    """

    slice_s: float = math.inf
    encode_seconds: float = 30.0
    prefill_beside: int | None = None
    threads: Threads | None = None

    @classmethod
    def of(cls, pace: Pace, step_s: float, window_seconds: int) -> Budgets:
        """What fits into a step that is to be longer by at most `step_s`."""
        encode_seconds = pace.encode_budget(step_s, window_seconds)
        return cls(step_s, encode_seconds, pace.prefill_budget(step_s), pace.threads)


UNBOUNDED = Budgets()


def build_core(config: EngineConfig, progress: Progress | None = None) -> EngineCore:
    """Load, merge, size, warm up. Raises ConfigError, CheckpointError, TokenizerError or EngineError."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if device.type == "cuda":
        _settle(device)
    if dtype == torch.float32:
        # float32 means float32: TF32 keeps 10 bits of mantissa and would move answers.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    model, tokenizer = load_model(config.model_dir, device, dtype, progress)
    return warm_core(config, model, tokenizer)


def _settle(device: torch.device) -> None:
    """What this thread, which will also step, needs on a GPU before anything runs there."""
    # Triton and streams take the current device, whatever device the tensors are on.
    torch.cuda.set_device(device.index or 0)
    # cuDNN's attention plans anew for every shape, tens of ms each, and here nearly every chunk has its own.
    torch.backends.cuda.enable_cudnn_sdp(False)


def warm_core(config: EngineConfig, model: SpeechLLM, tokenizer: Tokenizer) -> EngineCore:
    """The same around a model that is loaded: merge, size, warm up."""
    device = model.device
    if config.merge_prompt is not None:
        model.merge(model.prompt_scale(adapter_ids(tokenizer, config.merge_prompt)))
    if device.type == "cpu":
        model.prepack(PACKED_SHARE * free_bytes())
    # In an engine of its own, so that the warm-up leaves no trace in caches and counters.
    pages = math.ceil(model.config.llama.max_position_embeddings / config.page_size)
    warm_config = config
    if device.type == "cpu":
        # A large model is asked about one clip twice, and is to prefill both prompts as if they were new.
        warm_config, pages = dataclasses.replace(config, prefix_cache=False), 2 * pages
    sizes = Sizes(2, 512, min(pages, config.num_pages or pages))
    pace = warm_up(assemble(warm_config, model, tokenizer, sizes), config.merge_prompt)
    sizes = measure(config, model)
    step_ms = config.encoder_step_ms or _defaults(device).encoder_step_ms
    budgets = Budgets.of(pace, step_ms / 1e3, model.config.window_seconds)
    core = assemble(config, model, tokenizer, sizes, budgets)
    if device.type == "cuda" and core.runner.fused is None:
        logger.warning("no fused kernels here, so decoding is slow")
    core.runner.prepare_decodes(sizes.max_batch_size)
    return core


def assemble(
    config: EngineConfig,
    model: SpeechLLM,
    tokenizer: Tokenizer,
    sizes: Sizes,
    budgets: Budgets = UNBOUNDED,
    make_runner: Callable[..., Runner] = Runner,
) -> EngineCore:
    """An engine of these sizes around a loaded model. make_runner: called like the class."""
    llama = model.config.llama
    token_bytes = llama.hidden_size * model.dtype.itemsize
    max_context = min(llama.max_position_embeddings, sizes.num_pages * config.page_size)
    scheduler = Scheduler(
        SchedulerLimits(
            sizes.max_batch_size, sizes.max_batch_tokens, budgets.encode_seconds, budgets.prefill_beside
        ),
        PagePool(sizes.num_pages, config.page_size, reuse=config.prefix_cache),
        clips=ResultCache[Sequence](int(config.encoder_cache_mb * 2**20)),
        scales=ResultCache[Sequence](MAX_SCALES),
        clip_token_cost=token_bytes,
    )
    fused = FusedLlama(model.llama) if FusedLlama.supports(model.llama) else None
    runner = make_runner(model, sizes.num_pages, config.page_size, fused, budgets.threads)
    intake = Intake(model.config, tokenizer, max_context, config.merge_prompt)
    info = ModelInfo(
        name=config.served_name or model.config.name,
        max_context_tokens=max_context,
        max_audio_seconds=longest_clip(model.config, tokenizer, max_context),
        vocab_size=llama.vocab_size,
        num_parameters=model.num_parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        random_weights=model.config.random_weights,
        merged_prompt=config.merge_prompt,
        fingerprint=fingerprint(config.model_dir),
    )
    return EngineCore(info, intake, scheduler, Encoding(runner, budgets.slice_s), runner, tokenizer)


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU, else the CPU. Raises ConfigError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not available on this machine")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is float32 on a CPU and bfloat16 on a GPU. Raises ConfigError for an unknown name."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype: {name!r} is not among {', '.join(DTYPES)}")
    return DTYPES[name]


def _defaults(device: torch.device) -> EngineDefaults:
    return ON_GPU if device.type == "cuda" else ON_CPU


def measure(config: EngineConfig, model: SpeechLLM) -> Sizes:
    """Batch and page numbers, from the free memory where the configuration leaves them open.

    More pages than all sequences at full length could hold are never taken.
    """
    on_gpu = model.device.type == "cuda"
    defaults = _defaults(model.device)
    batch_size = config.max_batch_size or defaults.max_batch_size
    batch_tokens = max(config.max_batch_tokens or defaults.max_batch_tokens, batch_size + 1)
    llama = model.config.llama
    longest = math.ceil(llama.max_position_embeddings / config.page_size)
    if config.num_pages is not None:
        return Sizes(batch_size, batch_tokens, config.num_pages)
    if on_gpu:
        torch.cuda.empty_cache()  # else what loading and warming up gave back counts as taken
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else free_bytes()
    share = config.kv_cache_fraction or defaults.kv_cache_fraction
    page_bytes = KVCache.bytes_per_page(llama, config.page_size, model.dtype)
    num_pages = min(int(free * share) // page_bytes, longest * batch_size)
    if num_pages < 1:
        raise EngineError(f"no memory for the KV cache: {free / 2**20:.0f} MiB free after loading")
    return Sizes(batch_size, batch_tokens, num_pages)


def longest_clip(config: SpeechLLMConfig, tokenizer: Tokenizer, max_context: int) -> float:
    """Whole seconds of audio that leave room for the template and a short answer, at most two minutes."""
    prompt = build_prompt(tokenizer, config.llama.bos_token_id, "", None, audio=True)
    room = max_context - len(prompt.left_ids) - len(prompt.right_ids) - ANSWER_ROOM
    fitting = (s for s in range(MAX_AUDIO_SECONDS, 0, -1) if config.num_audio_tokens(s * SAMPLE_RATE) <= room)
    return float(next(fitting, 0))
