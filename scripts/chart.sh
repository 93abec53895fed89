#!/usr/bin/env bash
# The Helm chart, and what is made from it.
#
#   chart.sh check       lints, renders, validates and tests; fails also if what is generated is not up to date
#   chart.sh generate    writes the chart's README.md and deploy/tcptracer.yaml
#
# It needs helm and helm-unittest (both Go modules), promtool (in Debian's prometheus) and python3 with venv. What Python
# needs is installed once, outside of the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."

chart=charts/tcptracer
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tcptracer
# Brings the schemas of the Kubernetes versions; the newest one is its own.
validator=kubernetes-validate==1.37.0
oldest=1.27
work=$(mktemp -d "${TMPDIR:-/tmp}/tcptracer-chart.XXXX")
trap 'rm -rf "$work"' EXIT

fail() {
	echo "chart: $*" >&2
	exit 1
}

need() {
	command -v "$1" >/dev/null 2>&1 || fail "$1 is missing: $2"
}

say() {
	echo "chart: $*" >&2
}

# Made beside its place and moved there: what is there is complete.
venv() {
	local folder=$cache/python/${validator//==/-} partial
	python=$folder/bin/python
	[ ! -x "$python" ] || return 0
	need python3 "install python3 and python3-venv"
	say "installing $validator"
	mkdir -p "$cache/python"
	partial=$(mktemp -d "$cache/python/partial.XXXX")
	python3 -m venv "$partial" || fail "cannot make a Python environment: install python3-venv"
	"$partial/bin/python" -m pip install --quiet --disable-pip-version-check "$validator"
	rm -rf "$folder"
	mv "$partial" "$folder"
}

# render OPTION…: the chart as it would be installed.
render() {
	helm template tcptracer "$chart" --namespace tcptracer "$@"
}

# readme: README.md, with a table of all values. It fails if one has no comment, or if the schema knows others.
readme() {
	"$python" - "$chart" <<-'END'
		import json, sys, yaml

		chart = sys.argv[1]
		text = open(f"{chart}/values.yaml").read()
		lines = text.splitlines()
		schema = json.load(open(f"{chart}/values.schema.json"))
		wrong = []


		def comment(line):
		    """The comment right above a line; None if it documents no value."""
		    found = []
		    while line > 0 and lines[line - 1].lstrip().startswith("#"):
		        line -= 1
		        found.insert(0, lines[line].lstrip()[1:].strip())
		        if found[0].startswith("-- "):
		            return " ".join(found)[3:]
		    return None


		def resolved(part):
		    return schema["definitions"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part


		def rows(node, path, known):
		    known = resolved(known)
		    names = {key.value for key, _ in node.value}
		    # A map of the user's own has defaults that the schema does not name.
		    named = set(known.get("properties", {}))
		    for name in sorted(named ^ names if known.get("additionalProperties") is False else named - names):
		        wrong.append(f"{'.'.join(path + [name])} is not in both values.yaml and values.schema.json")
		    for key, value in node.value:
		        name = path + [key.value]
		        about = comment(key.start_mark.line)
		        if about is not None:
		            yield ".".join(name), yaml.safe_load(yaml.serialize(value)), about
		        elif isinstance(value, yaml.MappingNode) and value.value:
		            yield from rows(value, name, known.get("properties", {}).get(key.value, {}))
		        else:
		            wrong.append(f"{'.'.join(name)} has no comment")


		def closed(part, path):
		    """Whatever is an object has to say what else it may have."""
		    if isinstance(part, dict):
		        if part.get("type") == "object" and "additionalProperties" not in part:
		            wrong.append(f"values.schema.json: {path} does not say additionalProperties")
		        for name, below in part.items():
		            closed(below, f"{path}/{name}")
		    elif isinstance(part, list):
		        for at, below in enumerate(part):
		            closed(below, f"{path}/{at}")


		def cell(text):
		    return text.replace("|", "\\|")


		closed(schema, "#")
		table = ["| value | default | |", "|---|---|---|"]
		for name, default, about in rows(yaml.compose(text), [], schema):
		    shown = json.dumps(default, ensure_ascii=False)
		    table.append(f"| `{name}` | `{cell(shown)}` | {cell(about)} |")
		if wrong:
		    sys.exit("\n".join(wrong))
		print(open(f"{chart}/README.md.in").read().replace("@VALUES@", "\n".join(table)), end="")
	END
}

# manifests: the chart's defaults for those who do not use Helm, for every Kubernetes from the oldest on.
manifests() {
	cat <<-END
		# Rendered from $chart with its defaults (scripts/chart.sh generate): kubectl apply -f deploy/tcptracer.yaml
		apiVersion: v1
		kind: Namespace
		metadata:
		  name: tcptracer
		  labels:
		    # Other levels refuse host paths and capabilities.
		    pod-security.kubernetes.io/enforce: privileged
	END
	# Nothing here is Helm's.
	render --skip-tests --kube-version "$oldest" |
		sed '/^ *helm\.sh\/chart: /d; /^ *app\.kubernetes\.io\/managed-by: /d; /^# Source: /d' | cat -s
}

# validate VERSION FILE…: against what that version of Kubernetes knows; other objects are left to their owners.
validate() {
	"$python" - "$@" <<-'END'
		import functools, sys, yaml
		from kubernetes_validate import utils

		# They belong to the Prometheus operator and to cert-manager.
		OTHERS = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "Certificate"}
		# Read once, not for every object.
		utils.schema_contents = functools.lru_cache(None)(utils.schema_contents)

		version, *files = sys.argv[1:]
		wrong = objects = 0
		for file in files:
		    for thing in yaml.safe_load_all(open(file)):
		        if not thing:
		            continue
		        if not {"apiVersion", "kind", "metadata"} <= thing.keys():
		            sys.exit(f"{file}: an object has no apiVersion, kind or metadata")
		        if thing["kind"] in OTHERS:
		            continue
		        objects += 1
		        try:
		            utils.validate(thing, version, strict=True)
		        except (utils.ValidationError, utils.SchemaNotFoundError) as e:
		            wrong += 1
		            at = ".".join(str(part) for part in getattr(e, "path", []))
		            name = thing["metadata"]["name"]
		            print(f"{file}: {thing['kind']} {name}, Kubernetes {version}: {at}: {e.message}", file=sys.stderr)
		print(f"Kubernetes {version}: {objects} objects, {wrong} wrong")
		sys.exit(bool(wrong) or not objects)
	END
}

# The versions of Kubernetes that there are schemas of, from the oldest that is supported.
versions() {
	"$python" -c '
import sys
from kubernetes_validate import utils
from packaging.version import Version
versions = {Version(v) for v in utils.all_versions()}
print(*sorted(v for v in versions if v >= Version(sys.argv[1])), sep="\n")' "$oldest"
}

# krew: fills the template in as a release would, and looks whether krew would take it.
krew() {
	sed -E 's/^( *)\{\{ *addURIAndSha "(.*)" \.TagName *\}\}$/\1uri: \2\n\1sha256: 0/; s/\{\{ *\.TagName *\}\}/v'"$1"'/g' \
		deploy/krew/tcptracer.yaml >"$work/krew.yaml"
	"$python" - "$work/krew.yaml" "v$1" <<-'END'
		import sys, yaml

		plugin = yaml.safe_load(open(sys.argv[1]))
		assert plugin["metadata"]["name"] == "tcptracer", "the name is not the file's"
		assert plugin["spec"]["version"] == sys.argv[2], "the version is not that of the tag"
		seen = set()
		for platform in plugin["spec"]["platforms"]:
		    of = platform["selector"]["matchLabels"]
		    name = f"kubectl-tcptracer-{of['os']}-{of['arch']}.tar.gz"
		    assert platform["uri"].endswith(f"/{sys.argv[2]}/{name}"), f"{platform['uri']} is not {name}"
		    wanted = "kubectl-tcptracer.exe" if of["os"] == "windows" else "kubectl-tcptracer"
		    assert platform["bin"] == wanted, f"{name} has no {platform['bin']}"
		    assert [f["from"] for f in platform["files"]] == [wanted, "LICENSE-*"], f"{name} lacks files"
		    seen.add(name)
		assert len(seen) == 5, "platforms are missing"
	END
}

# same FILE COMMAND: whether the command still says what is in the file.
same() {
	"$2" >"$work/new"
	diff -u "$1" "$work/new" || fail "$1 is not up to date: run scripts/chart.sh generate"
}

# alerts: what promtool says to the rules, and whether they fire when they should.
alerts() {
	local folder=$work/alerts
	mkdir -p "$folder"
	render --values "$chart/ci/monitoring-values.yaml" --show-only templates/prometheusrule.yaml |
		"$python" -c 'import sys, yaml; print(yaml.safe_dump(yaml.safe_load(sys.stdin)["spec"]))' >"$folder/rules.yaml"
	cp "$chart/ci/alerts.test.yaml" "$folder/"
	promtool check rules "$folder/rules.yaml"
	promtool test rules "$folder/alerts.test.yaml"
}

check() {
	local version values name file files
	need helm-unittest "it is the Go package github.com/helm-unittest/helm-unittest/cmd/helm-unittest"
	need promtool "Debian has it in prometheus"

	version=$(sed -n '/^\[workspace\.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
	[ -n "$version" ] || fail "found no version in Cargo.toml"
	for name in version appVersion; do
		grep -qx "$name: $version" "$chart/Chart.yaml" || fail "Chart.yaml: $name is not $version, that of Cargo.toml"
	done
	grep -q "image: .*:$version\$" "$chart/Chart.yaml" || fail "Chart.yaml: the image is not that of $version"

	say "what is generated"
	same "$chart/README.md" readme
	same deploy/tcptracer.yaml manifests
	krew "$version"

	say "lint"
	for values in "$chart"/ci/*-values.yaml; do
		helm lint --strict --quiet --values "$values" "$chart" || fail "$values: helm lint failed"
	done

	say "objects"
	for version in $(versions); do
		files=()
		for values in "$chart"/ci/*-values.yaml; do
			name=$(basename "$values" -values.yaml)
			# Older kubelets ask for more than the chart grants: it refuses, which is tested below.
			case $name-$version in
			kubelet-1.2?.* | kubelet-1.3[0-2].*) continue ;;
			esac
			file=$work/$name-$version.yaml
			render --kube-version "$version" --values "$values" >"$file" || fail "$values: cannot render for $version"
			files+=("$file")
		done
		validate "$version" "${files[@]}" deploy/tcptracer.yaml || fail "not valid for Kubernetes $version"
	done

	say "tests of the templates"
	helm-unittest --strict "$chart"

	say "alerts"
	alerts
}

[ $# -eq 1 ] || fail "usage: chart.sh check|generate"
need helm "it is the Go package helm.sh/helm/v4/cmd/helm"
case $1 in
check)
	venv
	check
	;;
generate)
	venv
	readme >"$work/README.md"
	manifests >"$work/tcptracer.yaml"
	cp "$work/README.md" "$chart/README.md"
	cp "$work/tcptracer.yaml" deploy/tcptracer.yaml
	;;
*) fail "$1 is neither check nor generate" ;;
esac
