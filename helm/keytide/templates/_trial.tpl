{{/* Pods that show that keytide works here. */}}

{{/* Reads nothing and asks nobody: what is tried is the policy, the image, the sidecar's rights and its probes. */}}
{{- define "keytide.trial.configuration" -}}
keytide:
  aws:
    region: us-east-1
    web_identity_token_file: /run/keytide/private/none
    roles: [{arn: "arn:aws:iam::123456789012:role/none"}]
  virtual_keys: {prefix: test/}
  spool: {directory: /run/keytide/spool/in}
  http: {listen: "[::]:{{ .Values.http.port }}"}
{{- end }}

{{/* What a pod asks for that gets this configuration from a ConfigMap: its name. */}}
{{- define "keytide.trial.annotations" -}}
keytide.dev/config: {{ . }}
keytide.dev/spool: "true"
{{- end }}

{{/* Of the pod, without containers and volumes: "context", "account", "token". */}}
{{- define "keytide.trial.spec" -}}
{{- $values := .context.Values }}
restartPolicy: Never
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ default false .token }}
terminationGracePeriodSeconds: 10
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A container that begins when the sidecar says that its first refresh is written: "context", "args". */}}
{{- define "keytide.trial.container" -}}
{{- $values := .context.Values -}}
name: test
image: {{ include "keytide.image" .context | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args: {{ toJson .args }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
{{- end }}
