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
