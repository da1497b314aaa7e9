"""A sequence's tokens and page hashes."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from server.engine.sequence import PromptTokens, Sequence
from tests.unit.scheduler_sim import make_sequence

CLIP, OTHER_CLIP = b"\1" * 32, b"\2" * 32
PROMPT = PromptTokens((1, 8, 9), (1, 7), 4, CLIP, (5, 6))


def sequence_of(prompt: PromptTokens, generated: tuple[int, ...] = ()) -> Sequence:
    sequence = make_sequence(0)
    fields = {"prompt": prompt, "instruction_key": prompt.instruction_key, "generated": list(generated)}
    return dataclasses.replace(sequence, **fields)


def hashes(sequence: Sequence, page_size: int) -> list[bytes]:
    return [sequence.hash_of_page(index, page_size) for index in range(len(sequence) // page_size)]


def test_positions_run_over_text_audio_text_and_answer() -> None:
    sequence = sequence_of(PROMPT, (30, 31))
    assert len(PROMPT) == 9
    assert PROMPT.audio_span == (3, 7)
    assert len(sequence) == 11
    text = [0, 1, 2, 7, 8, 9, 10]
    assert [sequence.token_at(position) for position in text] == [1, 8, 9, 1, 7, 30, 31]


def test_the_instruction_key_is_that_of_its_ids_and_empty_without_lora() -> None:
    assert PROMPT.instruction_key == dataclasses.replace(PROMPT, right_ids=(1,)).instruction_key
    assert PROMPT.instruction_key != dataclasses.replace(PROMPT, adapter_ids=(56,)).instruction_key
    assert dataclasses.replace(PROMPT, adapter_ids=()).instruction_key == b""


def test_text_alone_shares_no_page_with_the_same_tokens_read_with_the_lora() -> None:
    text = (1, 8, 9, 4, 4, 7)
    alone = sequence_of(PromptTokens(text, (), 0, b"", ()))
    with_lora = sequence_of(PromptTokens(text, (), 0, b"", (5, 6)))
    assert not set(hashes(alone, 2)) & set(hashes(with_lora, 2))


def test_hashes_of_the_same_tokens_agree_however_they_came() -> None:
    whole = sequence_of(PROMPT, (30, 31, 32))
    growing = sequence_of(PROMPT)
    early = hashes(growing, 4)
    growing.generated += [30, 31, 32]
    assert hashes(growing, 4) == hashes(whole, 4)
    assert hashes(growing, 4)[:2] == early


def test_a_page_asked_for_out_of_order_has_the_same_hash() -> None:
    assert sequence_of(PROMPT).hash_of_page(2, 3) == hashes(sequence_of(PROMPT), 3)[2]


token = st.integers(0, 3)
prompts = st.builds(
    PromptTokens,
    left_ids=st.lists(token, min_size=1, max_size=4).map(tuple),
    right_ids=st.lists(token, max_size=3).map(tuple),
    num_audio=st.integers(0, 4),
    audio_key=st.sampled_from([CLIP, OTHER_CLIP]),
    adapter_ids=st.lists(token, max_size=2).map(tuple),
)
answers = st.lists(token, max_size=4).map(tuple)


def plain_content(sequence: Sequence, stop: int) -> list[object]:
    """All that keys and values of tokens 0:stop depend on, as plain values."""
    prompt = sequence.prompt
    audio = [(prompt.audio_key, index) for index in range(prompt.num_audio)]
    items = [*prompt.left_ids, *audio, *prompt.right_ids, *sequence.generated]
    return [prompt.adapter_ids, *items[:stop]]


@given(prompts, answers, prompts, answers, st.integers(1, 3))
def test_two_pages_share_a_hash_just_where_everything_up_to_their_end_is_the_same(
    prompt: PromptTokens,
    answer: tuple[int, ...],
    other: PromptTokens,
    other_answer: tuple[int, ...],
    size: int,
) -> None:
    first, second = sequence_of(prompt, answer), sequence_of(other, other_answer)
    for i, one in enumerate(hashes(first, size)):
        for j, two in enumerate(hashes(second, size)):
            stop_one, stop_two = (i + 1) * size, (j + 1) * size
            same = plain_content(first, stop_one) == plain_content(second, stop_two)
            assert (one == two) == same
