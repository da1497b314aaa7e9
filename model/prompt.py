"""The published prompt template, to the letter, and what of it each part of the model reads.

With audio:     BOS left ids | audio embeddings | BOS in place of the first right id, the other right ids
Without audio:  BOS and the same template without its speech tags, one run of text
Prompt adapter: the instruction in double quotes, no BOS
"""

from __future__ import annotations

from dataclasses import dataclass

from model.tokenizer import Tokenizer

SYSTEM = (
    "As a helpful language and speech assistant, you are able to understand the speech content provided by "
    "the user, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one request. Without audio all of the text is in `left_ids`."""

    left_ids: tuple[int, ...]
    right_ids: tuple[int, ...]
    adapter_ids: tuple[int, ...]


def build_prompt(
    tokenizer: Tokenizer, bos_id: int, instruction: str, system: str | None, audio: bool
) -> Prompt:
    """Ids of `instruction`, which is never trimmed. system: replaces the template's text; None keeps it."""
    opening = f"[INST]<<SYS>>\n{SYSTEM if system is None else system}\n<</SYS>>\n\n"
    if not audio:
        return Prompt((bos_id, *tokenizer.encode(f"{opening}{instruction} [/INST]")), (), ())
    right = tokenizer.encode(f" </SPEECH> {instruction} [/INST]")
    return Prompt(
        left_ids=(bos_id, *tokenizer.encode(f"{opening}<SPEECH>")),
        right_ids=(bos_id, *right[1:]),
        adapter_ids=tuple(adapter_ids(tokenizer, instruction)),
    )


def adapter_ids(tokenizer: Tokenizer, instruction: str) -> list[int]:
    """What the prompt adapter reads of an instruction."""
    return tokenizer.encode(f'"{instruction}"')
