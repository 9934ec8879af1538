{{/* Names and labels. All of these take the chart's context. */}}

{{- define "keytide.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "keytide.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := include "keytide.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "keytide.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* Name and namespace of objects of the whole cluster, which several releases may have. */}}
{{- define "keytide.clusterName" -}}
{{- $name := include "keytide.fullname" . }}
{{- if hasPrefix "keytide" $name }}{{ $name }}{{ else }}keytide-{{ $name }}{{ end }}
{{- end }}

{{- define "keytide.selectorLabels" -}}
app.kubernetes.io/name: {{ include "keytide.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "keytide.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "keytide.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The metadata of an object of the namespace: "context", and perhaps "name", "labels", "annotations". */}}
{{- define "keytide.metadata" -}}
name: {{ default (include "keytide.fullname" .context) .name }}
{{- if not .cluster }}
namespace: {{ default (include "keytide.namespace" .context) .namespace }}
{{- end }}
labels:
  {{- include "keytide.labels" .context | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) .context.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "keytide.image" -}}
{{- $image := .Values.image }}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "keytide.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "keytide.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "keytide.configMapName" -}}
{{- default (include "keytide.fullname" .) .Values.existingConfigMap }}
{{- end }}

{{/* The configuration file that the chart's values are. */}}
{{- define "keytide.configuration" -}}
{{- if and .Values.config .Values.existingConfigMap }}
{{- fail "config and existingConfigMap are both set: the configuration is in the values, or in a ConfigMap of yours" }}
{{- end }}
{{- toYaml .Values.config }}
{{- end }}

{{/* Seconds of a duration such as 5m or 1h 30m. */}}
{{- define "keytide.seconds" -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 }}
{{- $text := . | toString | replace " " "" }}
{{- if not (regexMatch "^([0-9]+[smh])+$" $text) }}
{{- fail (printf "config.keytide.refresh.startup_timeout is %q: the chart reads whole hours, minutes and seconds, such as 5m or 1h30m" $text) }}
{{- end }}
{{- $seconds := 0 }}
{{- range regexFindAll "[0-9]+[smh]" $text -1 }}
{{- $seconds = add $seconds (mul (regexFind "[0-9]+" .) (get $units (regexFind "[smh]" .))) }}
{{- end }}
{{- $seconds }}
{{- end }}

{{/* Values that cannot be meant, found before anything is installed. */}}
{{- define "keytide.validate" -}}
{{- $values := .Values }}
{{- if and (eq $values.mode "injection") (not (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")) }}
{{- fail "mode injection needs MutatingAdmissionPolicy (admissionregistration.k8s.io/v1), which this cluster does not have: Kubernetes has it from 1.36 on. Install with --set mode=sidecar instead: it prints a snippet for your pods, and does the same on every cluster with native sidecars (1.29)" }}
{{- end }}
{{- if and (eq $values.mode "hub") (not $values.config) (not $values.existingConfigMap) }}
{{- fail "mode hub needs a configuration: config, or existingConfigMap" }}
{{- end }}
{{- if and (eq $values.mode "hub") $values.existingConfigMap $values.rbac.create (not $values.rbac.rules) }}
{{- fail "rbac.rules is empty, and the chart cannot read existingConfigMap: set it to the rules that `keytide policy --kubernetes --config keytide.yaml` prints, or rbac.create to false" }}
{{- end }}
{{- if and $values.podDisruptionBudget.enabled (ne (toString $values.podDisruptionBudget.minAvailable) "") (ne (toString $values.podDisruptionBudget.maxUnavailable) "") }}
{{- fail "podDisruptionBudget has minAvailable and maxUnavailable: Kubernetes takes one of them" }}
{{- end }}
{{- end }}
