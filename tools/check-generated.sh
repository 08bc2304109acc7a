#!/usr/bin/env bash
# Generates the code of proto/ into a temporary directory and compares it with
# what lies in the tree. Its arguments are the command that runs buf.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "$(find proto -name '*.proto' 2>/dev/null)" ]; then
	echo "check-generated: skipped: no .proto here"
	exit 0
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/tree" "$tmp/generated"
find proto -name '*.pb.go' -print0 | tar -c --null -T - | tar -x -C "$tmp/tree"
"$@" generate -o "$tmp/generated"
if ! diff -ruN "$tmp/tree" "$tmp/generated"; then
	echo "check-generated: the generated code isn't current: run make generate"
	exit 1
fi
