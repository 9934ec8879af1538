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

{{- define "keytide.instanceLabels" -}}
app.kubernetes.io/name: {{ include "keytide.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Those of the hub's pods, which the pod of `helm test` does not have. */}}
{{- define "keytide.selectorLabels" -}}
{{ include "keytide.instanceLabels" . }}
app.kubernetes.io/component: hub
{{- end }}

{{- define "keytide.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "keytide.instanceLabels" . }}
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
{{- .Values.serviceAccount.name }}
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
{{- $config := deepCopy .Values.config }}
{{- $listen := dig "keytide" "http" "listen" "" $config }}
{{- $port := int .Values.http.port }}
{{- if and $config (not $listen) (ne $port 19847) }}
{{- $config = mergeOverwrite $config (dict "keytide" (dict "http" (dict "listen" (printf "[::]:%d" $port)))) }}
{{- else if and $listen (not (hasSuffix (printf ":%d" $port) $listen)) }}
{{- fail (printf "config.keytide.http.listen is %s, and the probes ask port %d: set http.port to the same port" $listen $port) }}
{{- end }}
{{- $startup := int .Values.startupTimeoutSeconds }}
{{- if and $config (not (dig "keytide" "refresh" "startup_timeout" "" $config)) (ne $startup 300) }}
{{- $config = mergeOverwrite $config (dict "keytide" (dict "refresh" (dict "startup_timeout" (printf "%ds" $startup)))) }}
{{- end }}
{{- toYaml $config }}
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

{{/* Whether the cluster has the API. Without a cluster (`helm template`), Helm knows no kinds: then what the version has by default. */}}
{{- define "keytide.canInject" -}}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" }}yes
{{- else if and (not (.Capabilities.APIVersions.Has "v1/Pod")) (semverCompare ">=1.36-0" .Capabilities.KubeVersion.Version) }}yes
{{- end }}
{{- end }}

{{/* Values that cannot be meant, found before anything is installed. */}}
{{- define "keytide.validate" -}}
{{- $values := .Values }}
{{- if and (eq $values.mode "injection") (not (include "keytide.canInject" .)) }}
{{- fail "mode injection needs MutatingAdmissionPolicy (admissionregistration.k8s.io/v1), which this cluster does not have: Kubernetes has it from 1.36 on. Install with --set mode=sidecar instead: it prints a snippet for your pods, and does the same on every cluster with native sidecars (1.29)" }}
{{- end }}
{{- if and (eq $values.mode "injection") (hasKey $values.test.annotations "keytide.dev/primary-secret") (not $values.aws.region) }}
{{- fail "test.annotations has keytide.dev/primary-secret, which needs a region: set aws.region" }}
{{- end }}
{{- if and (eq $values.mode "hub") (not $values.config) (not $values.existingConfigMap) }}
{{- fail "mode hub needs a configuration: config, or existingConfigMap" }}
{{- end }}
{{- if and (eq $values.mode "injection") (or $values.config $values.existingConfigMap) }}
{{- fail "mode injection takes the configuration from the pods' annotations: config and existingConfigMap are for the modes sidecar and hub" }}
{{- end }}
{{- if and (eq $values.mode "hub") $values.config (not (dig "keytide" "outputs" (list) $values.config | toJson | contains "\"kubernetes_secret\"")) }}
{{- fail "mode hub writes Kubernetes Secrets: config.keytide.outputs has no kubernetes_secret" }}
{{- end }}
{{- if and (eq $values.mode "hub") $values.existingConfigMap $values.rbac.create (not $values.rbac.rules) }}
{{- fail "rbac.rules is empty, and the chart cannot read existingConfigMap: set it to the rules that `keytide policy --kubernetes --config keytide.yaml` prints, or rbac.create to false" }}
{{- end }}
{{- if and (eq $values.mode "sidecar") $values.sidecar.env }}
{{- if semverCompare "<1.35-0" .Capabilities.KubeVersion.Version }}
{{- fail "sidecar.env needs fileKeyRef, which Kubernetes has from 1.35 on: leave it empty, and let the application source the file" }}
{{- end }}
{{- if $values.config }}
{{- $written := list }}
{{- range dig "keytide" "outputs" (list) $values.config }}
{{- with .env_file }}
{{- if and (eq (toString .path) "/run/keytide/env/kubernetes.env") (eq (toString .format) "kubernetes") }}
{{- $written = append $written . }}
{{- end }}
{{- end }}
{{- end }}
{{- if not $written }}
{{- fail (printf "sidecar.env takes the variables from a file that no output writes: add to config.keytide.outputs\n- env_file: {name: kubernetes, path: /run/keytide/env/kubernetes.env, format: kubernetes, keys: [%s]}" (join ", " $values.sidecar.env)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $values.mode "sidecar") $values.sidecar.spool $values.config (not (dig "keytide" "spool" (dict) $values.config)) }}
{{- fail "sidecar.spool is a directory that keytide does not read: add to config.keytide\nspool: {directory: /run/keytide/spool/in}\nand virtual_keys, or set sidecar.spool to false" }}
{{- end }}
{{- if and (eq $values.mode "hub") (not $values.serviceAccount.create) (not $values.serviceAccount.name) }}
{{- fail "serviceAccount.create is false and serviceAccount.name is empty: the hub's rights would be those of every pod of the namespace without a service account of its own; name one" }}
{{- end }}
{{- with $values.aws }}
{{- if and (or .secretsManagerEndpoint .stsEndpoint) (or .useFipsEndpoint .useDualstackEndpoint) }}
{{- fail "aws has an endpoint of its own, and useFipsEndpoint or useDualstackEndpoint, which choose AWS's: keytide refuses both together" }}
{{- end }}
{{- end }}
{{- end }}
