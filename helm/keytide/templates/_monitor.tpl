{{/* Whether a resource of prometheus-operator is rendered: "context", "name" (of the value). */}}
{{- define "keytide.isMonitored" -}}
{{- $wanted := get .context.Values .name }}
{{- if $wanted.enabled }}
{{- $kind := printf "monitoring.coreos.com/v1/%s%s" (substr 0 1 .name | upper) (substr 1 -1 .name) }}
{{- $there := .context.Capabilities.APIVersions.Has $kind }}
{{- if and (not $there) (eq $wanted.renderMode "failIfMissing") }}
{{- fail (printf "%s.enabled, and this cluster does not have %s: install prometheus-operator's CRDs first, or set %s.renderMode to skipIfMissing" .name $kind .name) }}
{{- end }}
{{- if or $there (ne $wanted.renderMode "skipIfMissing") }}yes{{ end }}
{{- end }}
{{- end }}

{{/* What PodMonitor and ServiceMonitor have in common: "context", "monitor". */}}
{{- define "keytide.endpoint" -}}
- port: {{ .context.Values.http.portName }}
  path: /metrics
  {{- with .monitor.interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .monitor.scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  {{- if .monitor.honorLabels }}
  honorLabels: true
  {{- end }}
  {{- with .monitor.relabelings }}
  relabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .monitor.metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
