"""The decoder against transformers + PEFT in float64, however its work is cut, paged and batched."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kv_cache import KVCache
from model.llama import DecodeRows, FlatBatch, Llama, PrefillSpan, rotary_table, rotate
from tests.model.llama_oracle import CONFIG, Oracle, build_ours

ATOL = 1e-9
CPU = torch.device("cpu")


@functools.cache
def ours() -> Llama:
    return build_ours()


@functools.cache
def oracle() -> Oracle:
    return Oracle(ours())


@dataclass
class Request:
    """One sequence: its embeddings [n, D], scale [D] and block table; `hidden` grows as it is computed."""

    embeddings: Tensor
    scale: Tensor
    pages: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)

    @property
    def num_computed(self) -> int:
        return sum(len(rows) for rows in self.hidden)


class Pages:
    """Shuffled pages of one cache, filled with what earlier requests left there."""

    def __init__(self, page_size: int, seed: int = 0) -> None:
        self.size = page_size
        num_pages = -(-400 // page_size) + 20
        self.cache = KVCache(CONFIG, num_pages, page_size, torch.float64, CPU)
        generator = torch.Generator().manual_seed(seed)
        self.cache.keys.normal_(generator=generator)
        self.cache.values.normal_(generator=generator)
        self._free = torch.randperm(num_pages, generator=generator).tolist()

    def reserve(self, request: Request, stop: int) -> None:
        while len(request.pages) * self.size < stop:
            request.pages.append(self._free.pop())

    def slots(self, request: Request, start: int, stop: int) -> list[int]:
        return [request.pages[i // self.size] * self.size + i % self.size for i in range(start, stop)]


def make_request(seed: int, length: int) -> Request:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(length, CONFIG.hidden_size, generator=generator, dtype=torch.float64)
    scale = 3 * torch.rand(CONFIG.hidden_size, generator=generator, dtype=torch.float64)
    return Request(embeddings, scale)


@torch.no_grad()
def forward(pages: Pages, prefills: list[tuple[Request, int]], decodes: list[Request] = ()) -> None:
    """One forward: so many tokens of each prefilling request, one of each decoding request."""
    rows: list[tuple[Request, int, int]] = []
    spans: list[PrefillSpan] = []
    first = 0
    for request, count in prefills:
        start, stop = request.num_computed, request.num_computed + count
        pages.reserve(request, stop)
        spans.append(PrefillSpan(first, first + count, torch.tensor(request.pages), stop))
        rows.append((request, start, stop))
        first += count
    for request in decodes:
        pages.reserve(request, request.num_computed + 1)
        rows.append((request, request.num_computed, request.num_computed + 1))
    batch = FlatBatch(
        embeddings=torch.cat([request.embeddings[a:b] for request, a, b in rows]),
        positions=torch.cat([torch.arange(a, b) for _, a, b in rows]),
        slots=torch.tensor([slot for request, a, b in rows for slot in pages.slots(request, a, b)]),
        scale=torch.cat([request.scale.expand(b - a, -1) for request, a, b in rows]),
        prefills=tuple(spans),
        decodes=decode_rows(first, list(decodes)) if decodes else None,
    )
    hidden = ours()(batch, pages.cache)
    for (request, a, b), part in zip(rows, hidden.split([b - a for _, a, b in rows]), strict=True):
        assert len(part) == b - a
        request.hidden.append(part)


def decode_rows(first: int, requests: list[Request]) -> DecodeRows:
    width = max(len(request.pages) for request in requests)
    tables = [request.pages + request.pages[:1] * (width - len(request.pages)) for request in requests]
    contexts = [request.num_computed + 1 for request in requests]
    return DecodeRows(first, torch.tensor(tables), torch.tensor(contexts))


def check(*requests: Request) -> None:
    """All that was computed equals what the oracle computes of each request alone."""
    for request in requests:
        done = request.embeddings[: request.num_computed]
        hidden = torch.cat(request.hidden)
        assert torch.allclose(hidden, oracle().hidden(done, request.scale), rtol=0, atol=ATOL)
        expected = oracle().logits(done, request.scale)
        assert torch.allclose(ours().logits(hidden), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("length", [1, 2, 17, 40])
def test_a_whole_prefill(length: int) -> None:
    request = make_request(length, length)
    forward(Pages(16), [(request, length)])
    check(request)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 39])
def test_a_prefill_in_chunks(page_size: int, chunk: int) -> None:
    request, pages = make_request(1, 40), Pages(page_size)
    while request.num_computed < 40:
        forward(pages, [(request, min(chunk, 40 - request.num_computed))])
    check(request)


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_decoding_token_by_token(page_size: int) -> None:
    request, pages = make_request(2, 40), Pages(page_size)
    forward(pages, [(request, 5)])
    while request.num_computed < 40:
        forward(pages, [], [request])
    check(request)


def test_many_requests_with_different_scales_in_one_batch() -> None:
    pages = Pages(4)
    requests = [make_request(seed, 30) for seed in range(6)]
    first, second, third, *late = requests
    first.scale.zero_()
    second.scale.fill_(1.0)
    forward(pages, [(first, 9), (second, 1), (third, 16)])
    forward(pages, [(late[0], 7), (late[1], 30)], [first, second, third])
    forward(pages, [(late[0], 5), (late[2], 2)], [third, first])
    forward(pages, [], [late[2], second, first, third])
    check(*requests)


@settings(max_examples=40, deadline=None)
@given(
    page_size=st.sampled_from([1, 3, 4, 16]),
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    data=st.data(),
)
def test_any_cut_of_any_batch(page_size: int, lengths: list[int], data: st.DataObject) -> None:
    pages = Pages(page_size, seed=sum(lengths))
    requests = [make_request(i, length) for i, length in enumerate(lengths)]
    for _ in range(60):
        open_ones = [r for r in requests if r.num_computed < len(r.embeddings)]
        if not open_ones:
            break
        chosen = data.draw(st.lists(st.sampled_from(open_ones), min_size=1, unique_by=id))
        prefills, decodes = [], []
        for request in chosen:
            left = len(request.embeddings) - request.num_computed
            if request.num_computed and data.draw(st.booleans()):
                decodes.append(request)
            else:
                prefills.append((request, data.draw(st.integers(1, left))))
        forward(pages, prefills, decodes)
    check(*requests)


@torch.no_grad()
def test_no_scale_is_the_base_model() -> None:
    request = make_request(4, 20)
    steps, page = torch.arange(20), torch.tensor([0])
    hidden = []
    for scale in (None, torch.zeros_like(request.embeddings)):
        cache = KVCache(CONFIG, 1, 20, torch.float64, CPU)
        batch = FlatBatch(request.embeddings, steps, steps, scale, (PrefillSpan(0, 20, page, 20),), None)
        hidden.append(ours()(batch, cache))
    assert torch.equal(hidden[0], hidden[1])
    assert torch.allclose(hidden[0], oracle().hidden(request.embeddings, None), rtol=0, atol=ATOL)
    assert not torch.allclose(
        hidden[0], oracle().hidden(request.embeddings, request.scale), rtol=0, atol=1e-2
    )


def test_the_scale_acts_channel_by_channel() -> None:
    """Raising one entry changes the answer as the oracle's does: no permutation is off."""
    request = make_request(5, 12)
    request.scale.zero_()
    for channel in (0, 1, 7, CONFIG.hidden_size - 1):
        one = Request(request.embeddings, request.scale.clone())
        one.scale[channel] = 3.0
        forward(Pages(4), [(one, 12)])
        check(one)


def test_rotation_turns_pairs_and_keeps_their_length() -> None:
    x = torch.randn(6, 2, CONFIG.head_dim, dtype=torch.float64)
    cos, sin = rotary_table(CONFIG, CPU, torch.float64)
    turned = rotate(x, (cos[:6, None], sin[:6, None]))
    assert torch.equal(turned[0], x[0])
    pairs, before = turned.unflatten(-1, (-1, 2)), x.unflatten(-1, (-1, 2))
    # The table's numbers are float32.
    assert torch.allclose(pairs.norm(dim=-1), before.norm(dim=-1), rtol=0, atol=1e-6)
    angle = torch.tensor(5.0 / CONFIG.rope_theta ** (2 / CONFIG.head_dim), dtype=torch.float64)
    x0, x1 = before[5, 0, 1]
    expected = torch.stack([x0 * angle.cos() - x1 * angle.sin(), x0 * angle.sin() + x1 * angle.cos()])
    assert torch.allclose(pairs[5, 0, 1], expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rotates_in_float32(dtype: torch.dtype) -> None:
    table = rotary_table(CONFIG, CPU, torch.float32)
    x = torch.randn(4, 2, CONFIG.head_dim).to(dtype)
    rotary = (table[0][100:104, None], table[1][100:104, None])
    assert torch.equal(rotate(x, rotary), rotate(x.float(), rotary).to(dtype))


@torch.no_grad()
def test_a_model_cast_after_its_first_use_keeps_its_precision() -> None:
    model = build_ours(torch.float32)
    request = make_request(6, 12)
    steps = torch.arange(12)
    span = PrefillSpan(0, 12, torch.tensor([0]), 12)

    def run(model: Llama, dtype: torch.dtype) -> Tensor:
        cache = KVCache(CONFIG, 1, 12, dtype, CPU)
        batch = FlatBatch(request.embeddings.to(dtype), steps, steps, None, (span,), None)
        return model(batch, cache)

    assert run(model, torch.float32).dtype == torch.float32
    cast = model.double()
    fresh = build_ours(torch.float32).double()
    assert torch.equal(run(cast, torch.float64), run(fresh, torch.float64))


def test_clearing_a_page_leaves_the_others_alone() -> None:
    pages = Pages(4)
    keys, values = pages.cache.keys.clone(), pages.cache.values.clone()
    pages.cache.clear(torch.tensor([2, 5]))
    for before, after in ((keys, pages.cache.keys), (values, pages.cache.values)):
        assert not after[:, [2, 5]].any()
        before[:, [2, 5]] = 0
        assert torch.equal(before, after)
    pages.cache.clear(torch.tensor([], dtype=torch.long))
    assert torch.equal(keys, pages.cache.keys)


def test_bytes_of_a_page_are_those_of_the_cache() -> None:
    cache = KVCache(CONFIG, 7, 16, torch.bfloat16, CPU)
    stored = cache.keys.nbytes + cache.values.nbytes
    assert stored == 7 * KVCache.bytes_per_page(CONFIG, 16, torch.bfloat16)
