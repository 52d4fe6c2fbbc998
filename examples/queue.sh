#!/usr/bin/env bash
# Feeds and drains the queue with redis-cli alone.
#   queue.sh submit QUEUE ID BEFORE AFTER      prints the entry's id
#   queue.sh drain QUEUE GROUP                 prints and acknowledges the records that are there
# redis-cli's own options come from $REDIS_CLI, as in REDIS_CLI="redis-cli -s /run/redis.sock".
set -euo pipefail
read -ra cli <<<"${REDIS_CLI:-redis-cli}"
case ${1:-} in
submit)
  [ $# = 5 ] || { sed -n 2,5p "$0" >&2; exit 2; }
  # jq is not needed as long as ids and paths hold neither quotes nor backslashes
  "${cli[@]}" XADD "btc:{$2}:in" '*' key "$3" json "{\"id\":\"$3\",\"before\":\"$(realpath -m "$4")\",\"after\":\"$(realpath -m "$5")\"}" ;;
drain)
  [ $# = 3 ] || { sed -n 2,5p "$0" >&2; exit 2; }
  stream="btc:{$2}:out"
  "${cli[@]}" XGROUP CREATE "$stream" "$3" 0 MKSTREAM >/dev/null 2>&1 || true # it is there already
  # without a terminal a reply is one value a line: stream, then for each entry its id and its fields jid, idx, id, epoch, json
  "${cli[@]}" XREADGROUP GROUP "$3" me COUNT 100 STREAMS "$stream" '>' | {
    id='' name=''
    while IFS= read -r line; do
      if [[ $line =~ ^[0-9]+-[0-9]+$ && $name != json ]]; then id=$line name=''; continue; fi
      if [ "$name" = json ]; then
        printf '%s\n' "$line"
        "${cli[@]}" XACK "$stream" "$3" "$id" >/dev/null
        name=''
      else
        name=$line
      fi
    done
  } ;;
*) sed -n 2,5p "$0" >&2; exit 2 ;;
esac
