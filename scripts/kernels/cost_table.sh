#!/usr/bin/env bash
# cost_table.sh: docs/performance.md, from the results of cost.sh on stdin.
set -euo pipefail
cd "$(dirname "$0")/../.."

results=$(cat)

# table: a line for each row of the results, a column for each kernel. What rows are called stands here.
table() {
	awk -F '\t' '
		BEGIN {
			label["base"] = "a connection, without any tool"
			label["base-ipv6"] = "over IPv6"
			label["base-writes"] = "with 1,000 writes of a byte"
			label["floor"] = "three programs that do nothing"
			label["host-none"] = "`tcptracer -N` with another network namespace"
			label["host"] = "`tcptracer`"
			label["host-json"] = "`tcptracer -o json`"
			label["host-ipv6"] = "`tcptracer`, over IPv6"
			label["host-writes"] = "`tcptracer`, with 1,000 writes"
			label["bcc-tcptracer"] = "tcptracer of libbpf-tools (4 lines)"
			label["tcplife"] = "tcplife of libbpf-tools (2 lines)"
			label["agent-idle"] = "agent, nobody subscribes"
			label["agent-unselected"] = "agent with a subscriber, of a pod that is not selected"
			label["agent-selected"] = "agent and plugin, selected"
			label["agent-nested"] = "agent and plugin, two cgroups deeper"
			label["agent-10-filters"] = "agent and plugin, which hides pods by 10 selectors"
			label["agent-100-filters"] = "agent and plugin, beside three subscribers with 90 more selectors, who receive nothing"
			label["agent-selected-of-500"] = "agent and plugin, one of 500 containers"
		}
		function grouped(n,    digits, s) {
			digits = sprintf("%d", n < 0 ? -n : n)
			while (length(digits) > 3) {
				s = "," substr(digits, length(digits) - 2) s
				digits = substr(digits, 1, length(digits) - 3)
			}
			return (n < 0 ? "-" : "") digits s
		}
		!($1 in seen) { seen[$1] = 1; kernels[++columns] = $1; version[$1] = $2 }
		!($3 in known) { known[$3] = 1; rows[++lines] = $3 }
		{ cell[$3, $1] = $3 ~ /^base/ ? grouped($4) : grouped($4) " / " grouped($5) }
		END {
			printf "| instructions |"
			for (k = 1; k <= columns; k++) printf " %s |", version[kernels[k]]
			printf "\n|---|"
			for (k = 1; k <= columns; k++) printf "---|"
			for (r = 1; r <= lines; r++) {
				printf "\n| %s |", label[rows[r]]
				for (k = 1; k <= columns; k++) printf " %s |", cell[rows[r], kernels[k]]
			}
			print ""
		}' <<<"$results"
}

while IFS= read -r line; do
	case $line in
	@TABLE@) table ;;
	*) printf '%s\n' "$line" ;;
	esac
done <docs/performance.md.in
