{{/* The rules of the hub, as `keytide policy --kubernetes` prints them for the same configuration. */}}
{{- define "keytide.rules" -}}
{{- if .Values.rbac.rules }}
{{- toYaml .Values.rbac.rules }}
{{- else }}
{{- $made := list }}{{ $filled := list }}{{ $events := list }}
{{- $leases := include "keytide.leases" . | fromYamlArray }}
{{- range dig "keytide" "outputs" (list) (include "keytide.config" . | fromJson) }}
{{- with .kubernetes_secret }}
{{- if eq (get . "create" | toString) "false" }}
{{- $filled = append $filled .name }}
{{- else }}
{{- $made = append $made .name }}
{{- end }}
{{- $name := .name }}
{{- range list "synced" "updated" "repaired" "contested" "stale" "refused" "recovered" }}
{{- $events = append $events (printf "%s.keytide-%s" $name .) }}
{{- end }}
{{- end }}
{{- end }}
{{- $workloads := dict "daemonsets" list "deployments" list "statefulsets" list }}
{{- range dig "keytide" "reload" (list) (include "keytide.config" . | fromJson) }}
{{- with .rollout }}
{{- $rollout := . }}
{{- range $kind := list "daemonset" "deployment" "statefulset" }}
{{- with get $rollout $kind }}
{{- $resource := printf "%ss" $kind }}
{{- $_ := set $workloads $resource (append (get $workloads $resource) . | uniq | sortAlpha) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $rules := list
    (dict "apiGroups" (list "") "resources" (list "secrets") "resourceNames" $made "verbs" (list "get" "list" "watch" "patch" "create"))
    (dict "apiGroups" (list "") "resources" (list "secrets") "resourceNames" $filled "verbs" (list "get" "list" "watch" "patch"))
    (dict "apiGroups" (list "coordination.k8s.io") "resources" (list "leases") "resourceNames" $leases "verbs" (list "get" "patch" "create"))
    (dict "apiGroups" (list "") "resources" (list "events") "resourceNames" $events "verbs" (list "patch" "create")) }}
{{- range $resource, $names := $workloads }}
{{- $rules = append $rules (dict "apiGroups" (list "apps") "resources" (list $resource) "resourceNames" $names "verbs" (list "get" "patch")) }}
{{- end }}
{{- range $rules }}
{{- if .resourceNames }}
- {{ toYaml . | nindent 2 | trim }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The names of the hub's Leases, as a list: those of `config`. */}}
{{- define "keytide.leases" -}}
{{- $leases := list }}
{{- range dig "keytide" "outputs" (list) (include "keytide.config" . | fromJson) }}
{{- with .kubernetes_secret }}
{{- $leases = append $leases (default (printf "keytide-%s" .name) .lease) }}
{{- end }}
{{- end }}
{{- toJson $leases }}
{{- end }}
