#!/usr/bin/env bash
# report.sh: what the guests of run.sh wrote, as a table on stdout and as target/kernels/compatibility.md.
# Fails unless every scenario passed on every kernel, and tracing is complete there, also without
# tracefs; and, after a run of everything, unless docs/compatibility.md says what this run does, but for the patch levels.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/kernels

# One object a kernel: its series and version, what `check` said, and how each scenario ended. The
# guests wrote JSON, one object a line, with whatever the kernel had to say in between.
while read -r name version; do
	jq -nR --arg series "$name" --arg version "${version%%[-+~]*}" '
		[inputs | sub("\r$"; "") | fromjson? | objects] | {
			series: $series,
			version: $version,
			check: (map(select(.hooks)) | first),
			without_tracefs: (map(select(.hooks)) | last),
			exits: map(.exit // empty),
			suite: (map(select(.type == "suite" and .event != "started")) | first),
			hung: (map(select(.type == "test")) | last | if .event == "started" then .name else null end),
			tests: (map(select(.type == "test" and .event != "started")) |
				map({key: (.name | ltrimstr("root::")), value: .}) | from_entries)
		}' "$out/$name.console"
done <"$out/kernels" | jq -s . >"$out/results.json"

# rows FILTER: runs a jq program over the results that yields arrays, the rows.
rows() {
	jq -r "def mark: {ok: \"ok\", failed: \"FAILED\", ignored: \"-\"}[.event // \"\"] // \"\"; $1" "$out/results.json"
}

hooks='
	["", (.[] | .series)],
	["version", (.[] | .version)],
	["verdict", (.[] | .check.verdict // "?")],
	(([.[].check.hooks // [] | .[].name] | reduce .[] as $n ([]; if index($n) then . else . + [$n] end))[] as $hook |
		[$hook, (.[] | first((.check.hooks // [])[] | select(.name == $hook) | .state | gsub("_"; " ")) // "")])'
scenarios='
	["", (.[] | .series)],
	((map(.tests | keys_unsorted) | max_by(length))[] as $test | [$test, (.[] | .tests[$test] | mark)]),
	["passed", (.[] | (.suite.passed // 0 | tostring))]'

markdown() {
	awk -F '\t' '{
		printf "|"
		for (i = 1; i <= NF; i++) printf " %s |", $i
		print ""
		if (NR == 1) { printf "|---|"; for (i = 2; i <= NF; i++) printf "---|"; print "" }
	}'
}

while IFS= read -r line; do
	case $line in
	@HOOKS@) rows "($hooks) | @tsv" | markdown ;;
	@SCENARIOS@) rows "($scenarios) | @tsv" | markdown ;;
	*) printf '%s\n' "$line" ;;
	esac
done <docs/compatibility.md.in >"$out/compatibility.md"

echo
rows "($hooks) | @tsv" | column -t -s $'\t'
echo
rows "($scenarios) | @tsv" | column -t -s $'\t'
echo
jq -r '.[] | .version as $v | .tests | to_entries[] | select(.value.event == "failed") |
	"\(.key) on \($v): \(.value.stdout)"' "$out/results.json"

jq -r '.[] | select(.hung) | "\(.hung) on \(.version): did not end"' "$out/results.json"

stale=
if [ -z "${KERNELS:-}${FILTER:-}" ] && ! diff -q <(grep -v '^| version' docs/compatibility.md) \
	<(grep -v '^| version' "$out/compatibility.md") >/dev/null; then
	stale=1
	echo "kernels: docs/compatibility.md says something else than this run: make compatibility" >&2
fi
jq -r '.[] | select(.exits != [0, 0]) |
	"check on \(.version) ended with \(.exits), without tracefs: \(.without_tracefs)"' "$out/results.json"

if ! jq -e 'length > 0 and all(.[]; .suite.event == "ok" and .suite.passed > 0 and
	.exits == [0, 0])' "$out/results.json" >/dev/null; then
	echo "kernels: not everything passed everywhere; the consoles are in $out/*.console" >&2
	exit 1
fi
[ -z "$stale" ]
