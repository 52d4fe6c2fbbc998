#!/usr/bin/env bash
# Installs Debian packages: setup.sh [--if-missing] PACKAGE...
# With --if-missing it is silent and quick when all of them are there.
set -euo pipefail

if [ "${1:-}" = --if-missing ]; then
  shift
  if dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>/dev/null | sort | uniq -c | awk -v n=$# '$2=="installed" && $1==n {ok=1} END {exit !ok}'; then
    exit 0
  fi
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: this is not Debian: install the equivalents of: $*" >&2
  exit 1
fi
run=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "setup: run as root, or install sudo; needed packages: $*" >&2; exit 1; }
  run=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${run[@]}" apt-get update -qq
"${run[@]}" apt-get install -y -qq --no-install-recommends "$@"
