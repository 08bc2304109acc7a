#!/usr/bin/env bash
# Compares proto/ with what others already run, by buf breaking. Its arguments
# are the command that runs buf.
#
# What others run is BREAKING_AGAINST if set; else where HEAD left main (or
# origin/main); else, on main itself, the last release; else, before there is
# one, the commit before HEAD. A commit since then with a line "Breaks-Wire: why"
# says that the break is meant.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
	echo "breaking: skipped: $1"
	exit 0
}

commit() { git rev-parse --quiet --verify "$1^{commit}"; }

base() {
	if [ -n "${BREAKING_AGAINST:-}" ]; then
		commit "$BREAKING_AGAINST" || {
			echo "breaking: no such commit: $BREAKING_AGAINST" >&2
			return 1
		}
		return
	fi
	local head ref
	head=$(commit HEAD) || return 0
	for ref in main origin/main; do
		if ref=$(git merge-base "$ref" "$head" 2>/dev/null) && [ "$ref" != "$head" ]; then
			echo "$ref"
			return
		fi
	done
	ref=$(git describe --tags --abbrev=0 --match 'v*' "$head~1" 2>/dev/null) || ref="$head~1"
	commit "$ref" || true
}

[ -n "$(find proto -name '*.proto' 2>/dev/null)" ] || skip "no .proto here"
against=$(base)
[ -n "$against" ] || skip "this commit has none before it"
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
[ -n "$(git ls-tree -r --name-only "$against" proto | grep '\.proto$' || true)" ] ||
	skip "no .proto in $(git rev-parse --short "$against")"
meant=$(git log -1 --format='%h %(trailers:key=Breaks-Wire,separator=%x2C)' --grep '^Breaks-Wire: ' "$against..HEAD")
[ -z "$meant" ] || skip "$meant"
# A plain copy, and not buf's own git input, works in linked worktrees too.
git archive "$against" proto | tar -x -C "$old"
cp buf.yaml "$old"
"$@" breaking --against "$old" || {
	echo "breaking: compared with $(git log -1 --format='%h (%s)' "$against")." \
		"If the break is meant, end the commit's message with the line: Breaks-Wire: why" >&2
	exit 1
}
