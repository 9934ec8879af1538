{{/*
YAML as an expression of CEL. Every member is `dyn`, since CEL's lists and maps have one type else; a map {"$cel": EXPRESSION}
is that expression.
*/}}
{{- define "keytide.cel" -}}
{{- if kindIs "map" . -}}
  {{- if hasKey . "$cel" -}}
    {{- index . "$cel" -}}
  {{- else -}}
    {{- $members := list -}}
    {{- range $key, $value := . -}}
      {{- $members = append $members (printf "%s: dyn(%s)" (toJson $key) (include "keytide.cel" $value)) -}}
    {{- end -}}
    {{- printf "{%s}" (join ", " $members) -}}
  {{- end -}}
{{- else if kindIs "slice" . -}}
  {{- $members := list -}}
  {{- range . -}}
    {{- $members = append $members (printf "dyn(%s)" (include "keytide.cel" .)) -}}
  {{- end -}}
  {{- printf "[%s]" (join ", " $members) -}}
{{- else -}}
  {{- toJson . -}}
{{- end -}}
{{- end }}

{{/* YAML of a list as an expression. */}}
{{- define "keytide.celOfList" -}}
{{- include "keytide.cel" (fromYamlArray .) -}}
{{- end }}
