#!/bin/sh
# readiness.sh DIRECTORY NAME=URL...
#
# Asks each URL once a second. While it does not answer 200, DIRECTORY/NAME.out exists. Ends with its parent's
# signal; needs curl.
set -eu

directory=$1
shift
mkdir -p "$directory"

ask() {
    if curl --silent --fail --output /dev/null --max-time 2 "${1#*=}"; then
        rm -f "$directory/${1%%=*}.out"
    else
        : > "$directory/${1%%=*}.out"
    fi
}

trap 'exit 0' TERM INT
while :; do
    for replica in "$@"; do
        ask "$replica" &
    done
    wait
    sleep 1 &
    wait
done
