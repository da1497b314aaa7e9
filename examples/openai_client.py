"""Chat, streamed chat and a transcription with the `openai` package.

    python examples/openai_client.py [CLIP [PROMPT]]

WAVLLM_URL says where the server is (http://127.0.0.1:8000), WAVLLM_API_KEY who asks, where there are keys.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import openai
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

DEFAULT_CLIP = Path(__file__).parent / "clips" / "evening.flac"


def question(prompt: str, clip: bytes) -> ChatCompletionUserMessageParam:
    """The one message that the model takes: an instruction and the clip it is about."""
    # OpenAI's types know two formats; the server looks at the bytes and takes every one that it knows.
    data = base64.b64encode(clip).decode()
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": prompt},
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        ],
    }


def run(client: OpenAI, clip: Path, prompt: str) -> None:
    """Ask three times, each time another way."""
    model = client.models.list().data[0].id
    messages = [question(prompt, clip.read_bytes())]

    whole = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=256)
    print("whole:", whole.choices[0].message.content)
    if whole.choices[0].finish_reason == "length":
        print("(cut: ask for more with max_completion_tokens)")

    print("streamed: ", end="")
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
        if chunk.choices[0].finish_reason == "length":
            print(" (cut)", end="")
    print()

    print("transcript:", client.audio.transcriptions.create(model=model, file=clip).text)


def main(arguments: list[str]) -> int:
    """Run with the arguments of the command line. Returns the exit status."""
    clip = Path(arguments[0]) if arguments else DEFAULT_CLIP
    prompt = arguments[1] if len(arguments) > 1 else "What is said?"
    url = os.environ.get("WAVLLM_URL", "http://127.0.0.1:8000")
    key = os.environ.get("WAVLLM_API_KEY", "none")
    # The package itself waits and tries again on a 429, a 5xx or a lost connection.
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=3, timeout=300) as client:
        try:
            run(client, clip, prompt)
        except openai.APIStatusError as error:
            print(f"refused with {error.status_code}: {error.message}", file=sys.stderr)
            print(f"request {error.request_id}", file=sys.stderr)
            return 1
        except openai.APIError as error:  # no connection, no answer in time, or an error inside of a stream
            print(f"failed: {error.message}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
