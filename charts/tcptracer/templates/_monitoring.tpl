{{/* What an endpoint of a monitor has beside its port. */}}
{{- define "tcptracer.scrape" -}}
{{- with .interval -}}
interval: {{ . }}
{{ end -}}
{{- with .scrapeTimeout -}}
scrapeTimeout: {{ . }}
{{ end -}}
honorLabels: {{ .honorLabels }}
relabelings:
  - action: replace
    sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
{{- with .relabelings }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end -}}
