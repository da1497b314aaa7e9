#!/usr/bin/env bash
# gRPC from the shell with grpcurl. It learns the messages from the server by reflection and needs no file.
#
#   examples/grpcurl.sh [CLIP [PROMPT]]
#
# WAVLLM_GRPC says where the server is (127.0.0.1:50051), WAVLLM_API_KEY who asks, where there are keys.
set -euo pipefail

server=${WAVLLM_GRPC:-127.0.0.1:50051}
clip=${1:-$(dirname "$0")/clips/evening.flac}
prompt=${2:-What is said?}
if [[ $prompt == *[\"\\[:cntrl:]]* ]]; then
  echo "grpcurl.sh puts the prompt into JSON as it is: no quotes, backslashes and line feeds, please" >&2
  exit 2
fi

# -max-time is the call's deadline. An error is exit status 64 + its code, printed with its details.
options=(-plaintext -max-time 60)
if [[ -n ${WAVLLM_API_KEY:-} ]]; then
  options+=(-H "authorization: Bearer $WAVLLM_API_KEY")
fi

call() {
  grpcurl "${options[@]}" -d @ "$server" "$1"
}

echo "# services and methods"
grpcurl "${options[@]}" "$server" list
grpcurl "${options[@]}" "$server" describe wavllm.v1.SpeechChat

echo "# health"
call grpc.health.v1.Health/Check <<<'{"service": "wavllm.v1.SpeechChat"}'

echo "# the model and its limits"
call wavllm.v1.SpeechChat/GetModelInfo <<<'{}'

# bytes are base64 in JSON
data=$(base64 <"$clip" | tr -d '\n')

echo "# a whole answer"
call wavllm.v1.SpeechChat/Chat <<<"{\"prompt\": \"$prompt\", \"audio\": {\"data\": \"$data\"}}"

echo "# a streamed answer"
call wavllm.v1.SpeechChat/ChatStream <<<"{\"prompt\": \"$prompt\", \"audio\": {\"data\": \"$data\"}}"

echo "# an upload: the config, then the clip in pieces"
{
  echo "{\"config\": {\"prompt\": \"$prompt\", \"generation\": {\"max_tokens\": 64}}}"
  base64 <"$clip" | tr -d '\n' | fold -w 65536 | while IFS= read -r piece || [[ -n $piece ]]; do
    echo "{\"chunk\": \"$piece\"}"
  done
} | call wavllm.v1.SpeechChat/ChatUpload
