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

{{/* Name of objects of the whole cluster. Releases of one name in two namespaces collide, which Helm refuses: fullnameOverride tells them apart. */}}
{{- define "keytide.clusterName" -}}
{{- $name := include "keytide.fullname" . }}
{{- if hasPrefix "keytide" $name }}{{ $name }}{{ else }}keytide-{{ $name }}{{ end }}
{{- end }}

{{- define "keytide.instanceLabels" -}}
app.kubernetes.io/name: {{ include "keytide.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
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
{{- end }}

{{/* And those of the values, which change none of the chart's: "context", "own" (as a map), "labels". */}}
{{- define "keytide.allLabels" -}}
{{- include "keytide.labels" .context }}
{{- $own := default (dict) .own }}
{{- with $own }}
{{ toYaml . }}
{{- end }}
{{- $more := merge (dict) (default (dict) .labels) (default (dict) .context.Values.commonLabels) }}
{{- range $name, $_ := merge (include "keytide.labels" .context | fromYaml) $own (dict "app.kubernetes.io/component" "hub") }}
{{- $more = omit $more $name }}
{{- end }}
{{- with $more }}
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
  {{- include "keytide.allLabels" . | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) (default (dict) .context.Values.commonAnnotations) }}
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

{{/* `config` for reading, as JSON: without what is null, which is as if it were not said. */}}
{{- define "keytide.config" -}}
{{- include "keytide.withoutNulls" (default (dict) .Values.config) }}
{{- end }}

{{- define "keytide.withoutNulls" -}}
{{- if kindIs "map" . }}
{{- $members := list }}
{{- range $key, $value := . }}
{{- if ne $value nil }}
{{- $members = append $members (printf "%s: %s" (toJson $key) (include "keytide.withoutNulls" $value)) }}
{{- end }}
{{- end }}
{{- printf "{%s}" (join ", " $members) }}
{{- else if kindIs "slice" . }}
{{- $members := list }}
{{- range without . nil }}
{{- $members = append $members (include "keytide.withoutNulls" .) }}
{{- end }}
{{- printf "[%s]" (join ", " $members) }}
{{- else }}
{{- toJson . }}
{{- end }}
{{- end }}

{{/* Whether a value is there, be it 0. */}}
{{- define "keytide.said" -}}
{{- if not (or (kindIs "invalid" .) (eq (toString .) "")) }}yes{{ end }}
{{- end }}

{{/* The configuration file that the chart's values are. */}}
{{- define "keytide.configuration" -}}
{{- if and .Values.config .Values.existingConfigMap }}
{{- fail "config and existingConfigMap are both set: the configuration is in the values, or in a ConfigMap of yours" }}
{{- end }}
{{- $config := deepCopy (default (dict) .Values.config) }}
{{- $said := include "keytide.config" . | fromJson }}
{{- $listen := dig "keytide" "http" "listen" "" $said }}
{{- $port := int .Values.http.port }}
{{- if and $config (not $listen) (ne $port 19847) }}
{{- $config = mergeOverwrite $config (dict "keytide" (dict "http" (dict "listen" (printf "[::]:%d" $port)))) }}
{{- else if and $listen (not (hasSuffix (printf ":%d" $port) $listen)) }}
{{- fail (printf "config.keytide.http.listen is %s, and the probes ask port %d: set http.port to the same port" $listen $port) }}
{{- end }}
{{- $startup := int .Values.startupTimeoutSeconds }}
{{- if and $config (not (dig "keytide" "refresh" "startup_timeout" "" $said)) (ne $startup 300) }}
{{- $config = mergeOverwrite $config (dict "keytide" (dict "refresh" (dict "startup_timeout" (printf "%ds" $startup)))) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Seconds of a duration such as 5m, 1h 30m or 1500ms, rounded up. */}}
{{- define "keytide.seconds" -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 }}
{{- $text := . | toString | replace " " "" }}
{{- if not (regexMatch "^([0-9]+([.][0-9]+)?(ms|s|m|h))+$" $text) }}
{{- fail (printf "config.keytide.refresh.startup_timeout is %q: the chart reads hours, minutes, seconds and milliseconds, such as 5m or 1h30m" $text) }}
{{- end }}
{{- $seconds := 0.0 }}
{{- range regexFindAll "[0-9.]+[a-z]+" $text -1 }}
{{- $seconds = addf $seconds (mulf (regexFind "[0-9.]+" .) (get $units (regexFind "[a-z]+" .))) }}
{{- end }}
{{- ceil $seconds | int64 }}
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
{{- $config := include "keytide.config" . | fromJson }}
{{- if and (eq $values.mode "injection") (not (include "keytide.canInject" .)) }}
{{- fail "mode injection needs MutatingAdmissionPolicy (admissionregistration.k8s.io/v1), which this cluster does not have: Kubernetes has it from 1.36 on. Install with --set mode=sidecar instead: it prints a snippet for your pods, and does the same on every cluster with native sidecars (1.29)" }}
{{- end }}
{{- if and (eq $values.mode "injection") (hasKey (default (dict) $values.test.annotations) "keytide.dev/primary-secret") (not $values.aws.region) }}
{{- fail "test.annotations has keytide.dev/primary-secret, which needs a region: set aws.region" }}
{{- end }}
{{- if and (eq $values.mode "hub") (not $values.config) (not $values.existingConfigMap) }}
{{- fail "mode hub needs a configuration: config, or existingConfigMap" }}
{{- end }}
{{- if and (eq $values.mode "injection") (or $values.config $values.existingConfigMap) }}
{{- fail "mode injection takes the configuration from the pods' annotations: config and existingConfigMap are for the modes sidecar and hub" }}
{{- end }}
{{- if and (eq $values.mode "hub") $values.config (not (dig "keytide" "outputs" (list) $config | toJson | contains "\"kubernetes_secret\"")) }}
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
{{- range dig "keytide" "outputs" (list) $config }}
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
{{- if and (eq $values.mode "sidecar") $values.sidecar.spool $values.config (not (dig "keytide" "spool" (dict) $config)) }}
{{- fail "sidecar.spool is a directory that keytide does not read: add to config.keytide\nspool: {directory: /run/keytide/spool/in}\nand virtual_keys, or set sidecar.spool to false" }}
{{- end }}
{{- $spool := dig "keytide" "spool" "directory" "/run/keytide/spool/in" $config }}
{{- if and (hasKey (dig "keytide" (dict) $config) "spool") (hasPrefix "/run/keytide/spool/" $spool) (not (and (eq $values.mode "sidecar") $values.sidecar.spool)) }}
{{- $mounted := "" }}
{{- range $values.extraVolumeMounts }}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" $spool) }}{{ $mounted = "yes" }}{{ end }}
{{- end }}
{{- if not $mounted }}
{{- fail (printf "config.keytide.spool is %s, and the pod has no volume there: %s" $spool (ternary "set sidecar.spool to true" "give it one with extraVolumes and extraVolumeMounts, or take mode sidecar, where applications share it" (eq $values.mode "sidecar"))) }}
{{- end }}
{{- end }}
{{- if and (ne $values.mode "hub") (default (dict) $values.serviceMonitor).enabled }}
{{- fail (printf "serviceMonitor.enabled is for mode hub, since mode %s has no Service: enable podMonitor" $values.mode) }}
{{- end }}
{{- if and (ne $values.mode "hub") (default (dict) $values.networkPolicy).enabled }}
{{- fail (printf "networkPolicy.enabled is for mode hub: in mode %s keytide shares its pod's policy, which is yours" $values.mode) }}
{{- end }}
{{- if and (eq $values.mode "hub") $values.podMonitor.enabled $values.podMonitor.namespaceSelector }}
{{- fail "podMonitor.namespaceSelector is for the modes injection and sidecar: the hub's pods are in the hub's namespace" }}
{{- end }}
{{- if eq $values.mode "injection" }}
{{- range $name, $annotation := dict "env" "env" "spool" "spool" "isolateCredentials" "isolate-credentials" }}
{{- if get (default (dict) $values.sidecar) $name }}
{{- fail (printf "sidecar.%s is for mode sidecar: with injection each pod says it, by the annotation keytide.dev/%s" $name $annotation) }}
{{- end }}
{{- end }}
{{- if ne (default (list "app") (default (dict) $values.sidecar).containers | toJson) "[\"app\"]" }}
{{- fail "sidecar.containers is for mode sidecar: with injection each pod says it, by the annotation keytide.dev/containers" }}
{{- end }}
{{- end }}
{{- with $values.podDisruptionBudget }}
{{- if and .enabled (not (include "keytide.said" .minAvailable)) (not (include "keytide.said" .maxUnavailable)) }}
{{- fail "podDisruptionBudget has neither minAvailable nor maxUnavailable: give it one of them, or set podDisruptionBudget.enabled to false" }}
{{- end }}
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
