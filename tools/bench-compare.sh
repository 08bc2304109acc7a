#!/usr/bin/env bash
# Runs the Go benchmarks of the root module at another commit and here, in turn, and compares them.
# BASE is the commit (default HEAD), COUNT how often each is run (6), BENCH which (all), BENCHTIME for how long.
# Its arguments are the command that runs benchstat.
set -euo pipefail
cd "$(dirname "$0")/.."

base=${BASE:-HEAD} count=${COUNT:-6} which=${BENCH:-.} long=${BENCHTIME:-100ms}
tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/base" 2>/dev/null || true; rm -rf "$tmp"' EXIT
git worktree add --quiet --detach "$tmp/base" "$base"
for ((i = 1; i <= count; i++)); do # in turn, so that both see the same machine
	echo "bench-compare: round $i of $count" >&2
	go -C "$tmp/base" test -run '^$' -bench "$which" -benchtime "$long" ./... >>"$tmp/before"
	go test -run '^$' -bench "$which" -benchtime "$long" ./... >>"$tmp/after"
done
"$@" "before=$tmp/before" "after=$tmp/after"
