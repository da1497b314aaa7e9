#!/usr/bin/env bash
# REST with curl: what is served, a whole answer, a streamed one, JSON, a transcription.
#
#   examples/curl.sh [CLIP [PROMPT]]
#
# WAVLLM_URL says where the server is (http://127.0.0.1:8000), WAVLLM_API_KEY who asks, where there are keys.
set -euo pipefail

url=${WAVLLM_URL:-http://127.0.0.1:8000}
clip=${1:-$(dirname "$0")/clips/evening.flac}
prompt=${2:-What is said?}
if [[ $prompt == *[\"\\[:cntrl:]]* ]]; then
  echo "curl.sh puts the prompt into JSON as it is: no quotes, backslashes and line feeds, please" >&2
  exit 2
fi

# --fail-with-body: a refusal is exit status 22, and its {"error": {...}} is printed all the same.
# --retry: a 429 or 503 is tried again after the seconds of its Retry-After (a 500, a 504 and
# a timeout sooner), for a minute at most; the body of each refusal is printed. --max-time: longer than the server's own 300 s.
options=(--silent --show-error --fail-with-body --max-time 330 --retry 3 --retry-max-time 60)
if [[ -n ${WAVLLM_API_KEY:-} ]]; then
  options+=(--header "authorization: Bearer $WAVLLM_API_KEY")
fi

ask() {
  curl "${options[@]}" "$@" || return
  echo
}

# The quotes inside of file="..." keep a name with commas or semicolons whole; --form-string takes the text as it is.
upload=(--form "file=@\"$clip\"" --form-string "prompt=$prompt")

echo "# the model and its limits"
ask "$url/v1/models"

echo "# a whole answer"
ask "$url/v1/speech/chat" "${upload[@]}"

echo "# a streamed answer: one event a line; without [DONE] at the end it broke off, which curl takes for success"
ask --no-buffer "$url/v1/speech/chat" "${upload[@]}" --form stream=true |
  awk '{ print; fflush() } /^data: \[DONE\]/ { done = 1 } END { exit !done }' ||
  exit $((PIPESTATUS[0] ? PIPESTATUS[0] : 1))

echo "# the same question as JSON, the clip in base64"
(printf '{"prompt": "%s", "max_tokens": 64, "audio": {"data": "' "$prompt"; base64 <"$clip" | tr -d '\n'; printf '"}}') |
  ask "$url/v1/speech/chat" --header 'content-type: application/json' --data-binary @-

echo "# a transcription, as OpenAI has it"
ask "$url/v1/audio/transcriptions" --form "file=@\"$clip\"" --form response_format=text
