{{/* What names of objects begin with. Room is left for the longest suffix. */}}
{{- define "tcptracer.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tcptracer.agentName" -}}
{{- include "tcptracer.fullname" . }}-agent
{{- end -}}

{{- define "tcptracer.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{/*
What the agents' pods are selected by. `kubectl tcptracer` finds them by name and component, so neither follows
nameOverride.
*/}}
{{- define "tcptracer.selectorLabels" -}}
app.kubernetes.io/name: tcptracer
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{/* Labels of an object: list ROOT COMPONENT MORE. */}}
{{- define "tcptracer.labels" -}}
{{- $root := index . 0 -}}
{{- $labels := dict
  "app.kubernetes.io/name" "tcptracer"
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/component" (index . 1)
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")
-}}
{{- toYaml (merge (deepCopy (index . 2)) $root.Values.commonLabels $labels) -}}
{{- end -}}

{{/* Labels of the agents' pods. Not the chart's version: another one alone starts nothing again. */}}
{{- define "tcptracer.podLabels" -}}
{{- $labels := fromYaml (include "tcptracer.selectorLabels" .) -}}
{{- $_ := set $labels "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- toYaml (merge (deepCopy .Values.podLabels) .Values.commonLabels $labels) -}}
{{- end -}}

{{/*
Annotations of the agents' pods. `kubectl tcptracer` sees by one that they speak TLS, and which name to expect in the
certificate; that of a Secret of the user's may have another.
*/}}
{{- define "tcptracer.podAnnotations" -}}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" "agent" -}}
{{- if and .Values.appArmorProfile (not (include "tcptracer.hasAppArmorField" .)) -}}
{{- $_ := set $annotations "container.apparmor.security.beta.kubernetes.io/agent" (include "tcptracer.appArmorAnnotation" .) -}}
{{- end -}}
{{- if .Values.grpc.tls.enabled -}}
{{- $_ := set $annotations "tcptracer/tls-server-name" (first (fromJsonArray (include "tcptracer.dnsNames" .))) -}}
{{- end -}}
{{- toYaml (merge (deepCopy .Values.podAnnotations) $annotations) -}}
{{- end -}}

{{- define "tcptracer.image" -}}
{{- $registry := default .Values.image.registry .Values.global.image.registry -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if or .Values.image.tag (not .Values.image.digest) }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "tcptracer.imagePullSecrets" -}}
{{- with concat .Values.global.image.pullSecrets .Values.image.pullSecrets | uniq -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "tcptracer.serviceAccountName" -}}
{{- default (include "tcptracer.agentName" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* ADDRESS:PORT; an IPv6 address in brackets. List ADDRESS PORT. */}}
{{- define "tcptracer.address" -}}
{{- $address := index . 0 -}}
{{- if contains ":" $address }}{{ $address = printf "[%s]" $address }}{{ end -}}
{{- printf "%s:%d" $address (int (index . 1)) -}}
{{- end -}}

{{- define "tcptracer.grpcListen" -}}
{{- $address := ternary .Values.listenAddress "127.0.0.1" .Values.grpc.expose -}}
{{- include "tcptracer.address" (list $address .Values.grpc.port) -}}
{{- end -}}

{{- define "tcptracer.httpListen" -}}
{{- $address := ternary .Values.listenAddress "127.0.0.1" .Values.metrics.enabled -}}
{{- include "tcptracer.address" (list $address .Values.http.port) -}}
{{- end -}}

{{/* The Secret with the server's certificate. */}}
{{- define "tcptracer.tlsSecret" -}}
{{- default (printf "%s-tls" (include "tcptracer.fullname" .)) .Values.grpc.tls.existingSecret -}}
{{- end -}}

{{- define "tcptracer.clientTlsSecret" -}}
{{- include "tcptracer.fullname" . }}-client-tls
{{- end -}}

{{/*
Names in the server's certificate, as a list in JSON. Clients that connect to a pod by its address ask for the
Service's name; those of a port-forward come to localhost.
*/}}
{{- define "tcptracer.dnsNames" -}}
{{- $service := printf "%s.%s" (include "tcptracer.agentName" .) (include "tcptracer.namespace" .) -}}
{{- concat (list (printf "%s.svc" $service) $service "localhost") .Values.grpc.tls.extraDnsNames | uniq | toJson -}}
{{- end -}}

{{- define "tcptracer.ipAddresses" -}}
{{- concat (list "127.0.0.1") .Values.grpc.tls.extraIpAddresses | uniq | toJson -}}
{{- end -}}

{{/* Numbers of a file of values are floating point: 1000000 would be 1e+06. */}}
{{- define "tcptracer.scalar" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* The agent's options that the chart sets, as an object in JSON; `true` for one without a value. */}}
{{- define "tcptracer.args" -}}
{{- $v := .Values -}}
{{- $args := dict
  "pods" $v.podSource
  "grpc-listen" (include "tcptracer.grpcListen" .)
  "history" (int64 $v.history | toString)
  "detach-after" (int64 $v.detachAfter | toString)
  "queue" (int64 $v.queue | toString)
  "max-streams" (int64 $v.maxStreams | toString)
  "max-containers" (int64 $v.maxContainers | toString)
  "max-connections" (int64 $v.maxConnections | toString)
  "grace-period" (int64 $v.gracePeriod | toString)
  "log" $v.log.level
  "log-format" $v.log.format
-}}
{{- if eq $v.podSource "kubelet" -}}
{{- $_ := set $args "kubelet-url" (default "https://$(NODE_IP):10250" $v.kubelet.url) -}}
{{- if $v.kubelet.insecureSkipVerify }}{{ $_ := set $args "kubelet-insecure" true }}{{ end -}}
{{- end -}}
{{- with $v.eventLabels }}{{ $_ := set $args "pod-labels" (join "," .) }}{{ end -}}
{{- if $v.record }}{{ $_ := set $args "record" true }}{{ end -}}
{{- if $v.metrics.byPod }}{{ $_ := set $args "metrics-by-pod" true }}{{ end -}}
{{- $sets := list -}}
{{- range $name, $selection := $v.filterSets }}{{ $sets = append $sets (printf "%s=%s" $name $selection) }}{{ end -}}
{{- with $sets }}{{ $_ := set $args "filter-set" (join ";" .) }}{{ end -}}
{{- if $v.grpc.tls.enabled -}}
{{- $_ := set $args "tls-cert" "/etc/tcptracer/tls/tls.crt" -}}
{{- $_ := set $args "tls-key" "/etc/tcptracer/tls/tls.key" -}}
{{- if $v.grpc.tls.requireClientCert }}{{ $_ := set $args "tls-client-ca" "/etc/tcptracer/tls/ca.crt" }}{{ end -}}
{{- end -}}
{{- toJson $args -}}
{{- end -}}

{{/*
How the agent is asked at PATH: list ROOT PATH PROBE. The kubelet's requests would go to the pod's address; while the
agent listens on loopback only, a process in the container has to ask.
*/}}
{{- define "tcptracer.probe" -}}
{{- $root := index . 0 -}}
{{- $path := index . 1 -}}
{{- if $root.Values.metrics.enabled -}}
httpGet:
  path: /{{ $path }}
  port: http
{{- else -}}
exec:
  command: [/usr/bin/tcptracer-agent, probe, {{ $path }}]
{{- end }}
{{- range $name, $value := index . 2 }}
{{ $name }}: {{ int $value }}
{{- end }}
{{- end -}}

{{- define "tcptracer.securityContext" -}}
{{- $v := .Values -}}
{{- $context := deepCopy $v.securityContext -}}
{{- if $v.privileged -}}
{{- $context = merge (dict "privileged" true) (omit $context "allowPrivilegeEscalation" "capabilities" "seccompProfile") -}}
{{- else -}}
{{- $add := concat (default list $context.capabilities.add) $v.extraCapabilities | uniq -}}
{{- $_ := set $context.capabilities "add" $add -}}
{{- end -}}
{{- with $v.seLinuxOptions }}{{ $_ := set $context "seLinuxOptions" . }}{{ end -}}
{{- if and $v.appArmorProfile (include "tcptracer.hasAppArmorField" .) -}}
{{- $_ := set $context "appArmorProfile" $v.appArmorProfile -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{- define "tcptracer.hasAppArmorField" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}true{{ end -}}
{{- end -}}

{{/* The profile as the annotation names it that the field has replaced. */}}
{{- define "tcptracer.appArmorAnnotation" -}}
{{- $type := .Values.appArmorProfile.type -}}
{{- if eq $type "RuntimeDefault" -}}runtime/default
{{- else if eq $type "Unconfined" -}}unconfined
{{- else -}}localhost/{{ .Values.appArmorProfile.localhostProfile }}
{{- end -}}
{{- end -}}

{{/*
Reading only, of what is mounted below as well: on nodes with cgroups v1 those are mounts of their own. Before
Kubernetes 1.31 there is no such field.
*/}}
{{- define "tcptracer.readOnly" -}}
readOnly: true
{{- if semverCompare ">=1.31.0-0" .Capabilities.KubeVersion.Version }}
recursiveReadOnly: IfPossible
{{- end }}
{{- end -}}

{{/* What `kubectl tcptracer` takes. */}}
{{- define "tcptracer.userRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# A tunnel over WebSockets begins with a GET, which is all that counts before Kubernetes 1.35; since then it takes
# create as well.
- apiGroups: [""]
  resources: [pods/portforward]
  verbs: [get, create]
{{- end -}}

{{/* Fails with everything that does not fit together. */}}
{{- define "tcptracer.validate" -}}
{{- $v := .Values -}}
{{- $tls := $v.grpc.tls -}}
{{- $errors := list -}}
{{- $own := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart" -}}
{{- range $where, $labels := dict "commonLabels" $v.commonLabels "podLabels" $v.podLabels -}}
{{- range $key := keys $labels | sortAlpha -}}
{{- if has $key $own -}}
{{- $errors = append $errors (printf "%s: %s is a label that the chart sets itself: objects are found by it" $where $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.podSource "kubelet") $v.rbac.create (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) -}}
{{- $errors = append $errors "podSource: kubelet takes Kubernetes 1.33: before, kubelets hand out pods only to who may do anything on the node (nodes/proxy), which this chart does not grant" -}}
{{- end -}}
{{- if and (ne $v.podSource "kubelet") (or $v.kubelet.url $v.kubelet.insecureSkipVerify) -}}
{{- $errors = append $errors "kubelet: it is asked with podSource kubelet only" -}}
{{- end -}}
{{- $args := merge (fromJson (include "tcptracer.args" .)) (dict "node-name" "" "http-listen" "" "proc" "" "cgroupfs" "" "pin-dir" "") -}}
{{- range $name := keys $v.extraArgs | sortAlpha -}}
{{- if hasKey $args $name -}}
{{- $errors = append $errors (printf "extraArgs: the chart sets --%s itself: use the value for it" $name) -}}
{{- end -}}
{{- end -}}
{{- if ne (int $v.securityContext.runAsUser) 0 -}}
{{- $errors = append $errors "securityContext.runAsUser: Kubernetes gives capabilities to uid 0 only" -}}
{{- end -}}
{{- if and $v.privileged $v.extraCapabilities -}}
{{- $errors = append $errors "extraCapabilities: privileged has all of them" -}}
{{- end -}}
{{- if and (eq (default "" $v.appArmorProfile.type) "Localhost") (not $v.appArmorProfile.localhostProfile) -}}
{{- $errors = append $errors "appArmorProfile.localhostProfile: name the profile" -}}
{{- end -}}
{{- if and (not $v.serviceAccount.create) (not $v.serviceAccount.name) -}}
{{- $errors = append $errors "serviceAccount.name: name the account to use" -}}
{{- end -}}
{{- if and (not $v.userRole.create) (or $v.userRole.subjects $v.userRole.aggregateTo) -}}
{{- $errors = append $errors "userRole.create: there is no role to give away" -}}
{{- end -}}
{{- if eq (int $v.grpc.port) (int $v.http.port) -}}
{{- $errors = append $errors "grpc.port and http.port have to differ" -}}
{{- end -}}
{{- if and $v.grpc.expose (not $tls.enabled) -}}
{{- $errors = append $errors "grpc.expose: anybody on the pod network could see every connection: it takes grpc.tls.enabled" -}}
{{- end -}}
{{- if and $v.hostNetwork (not (and $tls.enabled $tls.requireClientCert)) -}}
{{- $errors = append $errors "hostNetwork: any process of the node could see every connection: it takes grpc.tls.enabled and grpc.tls.requireClientCert" -}}
{{- end -}}
{{- if and $v.hostNetwork $v.networkPolicy.enabled -}}
{{- $errors = append $errors "networkPolicy: it does not apply to pods with hostNetwork" -}}
{{- end -}}
{{- if $tls.enabled -}}
{{- if and (eq $tls.method "existingSecret") (not $tls.existingSecret) -}}
{{- $errors = append $errors "grpc.tls.existingSecret: name the Secret" -}}
{{- end -}}
{{- if and (eq $tls.method "certmanager") (not $tls.certmanager.issuerRef.name) -}}
{{- $errors = append $errors "grpc.tls.certmanager.issuerRef.name: name the issuer" -}}
{{- end -}}
{{- end -}}
{{- if and $tls.existingSecret (ne $tls.method "existingSecret") -}}
{{- $errors = append $errors "grpc.tls.existingSecret: it is used with grpc.tls.method existingSecret only" -}}
{{- end -}}
{{- if not $v.metrics.enabled -}}
{{- range $what := list "podMonitor" "serviceMonitor" "prometheusRule" "dashboard" -}}
{{- if (get $v.metrics $what).enabled -}}
{{- $errors = append $errors (printf "metrics.%s: it takes metrics.enabled" $what) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.metrics.podMonitor.enabled $v.metrics.serviceMonitor.enabled -}}
{{- $errors = append $errors "metrics.serviceMonitor: with a PodMonitor everything would be counted twice" -}}
{{- end -}}
{{- if le (int $v.terminationGracePeriodSeconds) (int $v.gracePeriod) -}}
{{- $errors = append $errors "terminationGracePeriodSeconds: the agent would be killed within its gracePeriod and leave its pins behind" -}}
{{- end -}}
{{- with $errors -}}
{{- fail (printf "\n\n%s\n" (join "\n" .)) -}}
{{- end -}}
{{- end -}}
