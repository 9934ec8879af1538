{{/*
keytide in a pod. `keytide.sidecar` and `keytide.volumes` are for charts that have this one as a dependency:

  initContainers:
    {{- include "keytide.sidecar" .Subcharts.keytide | nindent 4 }}
  containers:
    - name: app
      volumeMounts:
        {{- include "keytide.mounts" .Subcharts.keytide | nindent 8 }}
  volumes:
    {{- include "keytide.volumes" .Subcharts.keytide | nindent 4 }}
*/}}

{{/* A list with keytide's container, for `initContainers`, best as the first. */}}
{{- define "keytide.sidecar" -}}
- {{ include "keytide.container" (dict "context" . "sidecar" true) | trim | nindent 2 | trim }}
{{- end }}

{{/* The volumes of the pod. */}}
{{- define "keytide.volumes" -}}
- name: keytide-config
  configMap:
    name: {{ include "keytide.configMapName" . }}
{{- include "keytide.memoryVolumes" (dict "context" . "spool" .Values.sidecar.spool) }}
{{- if .Values.aws.roleArn }}
{{ include "keytide.tokenVolume" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What a container of the application mounts. */}}
{{- define "keytide.mounts" -}}
- name: keytide-env
  mountPath: /run/keytide/env
  readOnly: true
{{- if .Values.sidecar.spool }}
- name: keytide-spool
  mountPath: /run/keytide/spool
{{- end }}
{{- end }}

{{- define "keytide.memoryVolumes" -}}
{{- $sizes := .context.Values.volumes }}
{{- range $name := list "env" "private" "spool" }}
{{- if or (ne $name "spool") $.spool }}
- name: keytide-{{ $name }}
  emptyDir:
    medium: Memory
    sizeLimit: {{ (get $sizes $name).sizeLimit }}
{{- end }}
{{- end }}
{{- end }}

{{- define "keytide.tokenVolume" -}}
- name: keytide-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ .Values.aws.tokenAudience }}
          expirationSeconds: {{ .Values.aws.tokenExpirationSeconds }}
{{- end }}

{{/*
The container, of all modes: "context", "sidecar" (else of the hub), "check" (of the hub's test). Injection gives what the pod's annotations say as expressions:
"port", "user", "environment", "mounts".
*/}}
{{- define "keytide.container" -}}
{{- $values := .context.Values }}
{{- $port := default $values.http.port .port }}
{{- $user := default $values.securityContext.runAsUser .user }}
{{- $startup := include "keytide.startupSeconds" .context | int }}
name: keytide
image: {{ include "keytide.image" .context | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{- if .sidecar }}
restartPolicy: Always
{{- end }}
args:
  - {{ ternary "check" "run" (default false .check) }}
  - --config
  - /etc/keytide/keytide.yaml
  {{- if .check }}
  - --online
  {{- end }}
  {{- if not .check }}
  {{- with $values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
{{- if .environment }}
env: {{ toJson .environment }}
{{- else }}
env:
  {{- include "keytide.environment" .context | trim | nindent 2 }}
  {{- if $values.aws.roleArn }}
  {{- include "keytide.roleEnvironment" (dict "role" $values.aws.roleArn) | trim | nindent 2 }}
  {{- end }}
{{- end }}
{{- with $values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not .check }}
ports:
  - name: {{ $values.http.portName }}
    containerPort: {{ toJson $port }}
    protocol: TCP
startupProbe:
  {{- /* Rounded up; the API server takes 10 seconds where nothing is said. */}}
  {{- $period := default 10 $values.startupProbe.periodSeconds | int }}
  {{- $probe := merge (dict) $values.startupProbe (dict "failureThreshold" (div (add $startup 30 $period -1) $period)) }}
  httpGet:
    path: /startupz
    port: {{ toJson $port }}
  {{- toYaml $probe | nindent 2 }}
livenessProbe:
  httpGet:
    path: /livez
    port: {{ toJson $port }}
  {{- toYaml $values.livenessProbe | nindent 2 }}
readinessProbe:
  httpGet:
    path: /readyz
    port: {{ toJson $port }}
  {{- toYaml $values.readinessProbe | nindent 2 }}
{{- end }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- $security := merge (dict "runAsUser" $user) $values.securityContext }}
  {{- if .user }}
  {{- $security = merge (dict "runAsGroup" $user) $security }}
  {{- end }}
  {{- toYaml $security | nindent 2 }}
volumeMounts:
{{- if .mounts }} {{ toJson .mounts }}
{{- else }}
  {{- include "keytide.ownMounts" (dict "context" .context "files" .sidecar "spool" (and .sidecar $values.sidecar.spool) "token" $values.aws.roleArn) | nindent 2 }}
{{- end }}
{{- end }}

{{/* What keytide itself mounts: "context", "files" (the application's), "spool", "token". */}}
{{- define "keytide.ownMounts" -}}
- name: keytide-config
  mountPath: /etc/keytide
  readOnly: true
{{- if .files }}
- name: keytide-env
  mountPath: /run/keytide/env
{{- end }}
- name: keytide-private
  mountPath: /run/keytide/private
{{- if .spool }}
- name: keytide-spool
  mountPath: /run/keytide/spool
{{- end }}
{{- with .context.Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- if .token }}
- name: keytide-token
  mountPath: /var/run/secrets/keytide
  readOnly: true
{{- end }}
{{- end }}

{{/* The environment that does not depend on the role. */}}
{{- define "keytide.environment" -}}
{{- $aws := .Values.aws }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- with $aws.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- with $aws.secretsManagerEndpoint }}
- name: AWS_ENDPOINT_URL_SECRETS_MANAGER
  value: {{ . | quote }}
{{- end }}
{{- with $aws.stsEndpoint }}
- name: AWS_ENDPOINT_URL_STS
  value: {{ . | quote }}
{{- end }}
{{- if $aws.useFipsEndpoint }}
- name: AWS_USE_FIPS_ENDPOINT
  value: "true"
{{- end }}
{{- if $aws.useDualstackEndpoint }}
- name: AWS_USE_DUALSTACK_ENDPOINT
  value: "true"
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "keytide.roleEnvironment" -}}
- name: AWS_ROLE_ARN
  value: {{ toJson .role }}
- name: AWS_WEB_IDENTITY_TOKEN_FILE
  value: /var/run/secrets/keytide/token
{{- end }}

{{/* How long the first refresh may take. */}}
{{- define "keytide.startupSeconds" -}}
{{- $configured := dig "keytide" "refresh" "startup_timeout" "" (include "keytide.config" . | fromJson) }}
{{- if $configured }}{{ include "keytide.seconds" $configured }}{{ else }}{{ .Values.startupTimeoutSeconds }}{{ end }}
{{- end }}

{{/* What a workload gets: "context", "patch" (a strategic merge patch, which says what is first; manifests may not). */}}
{{- define "keytide.patch" -}}
{{- $context := .context }}
{{- $values := $context.Values }}
spec:
  template:
    metadata:
      labels:
        keytide.dev/sidecar: "true"
      {{- if $values.sidecar.isolateCredentials }}
      annotations:
        eks.amazonaws.com/skip-containers: {{ join "," $values.sidecar.containers | quote }}
      {{- end }}
    spec:
      {{- if .patch }}
      $setElementOrder/initContainers:
        - name: keytide
      {{- end }}
      initContainers:
        {{- include "keytide.sidecar" $context | nindent 8 }}
      containers:
        {{- range $values.sidecar.containers }}
        - name: {{ . | quote }}
          {{- with $values.sidecar.env }}
          env:
            {{- range . }}
            - name: {{ . | quote }}
              valueFrom:
                fileKeyRef: {volumeName: keytide-env, path: kubernetes.env, key: {{ . | quote }}, optional: false}
            {{- end }}
          {{- end }}
          volumeMounts:
            {{- include "keytide.mounts" $context | nindent 12 }}
        {{- end }}
      volumes:
        {{- include "keytide.volumes" $context | nindent 8 }}
{{- end }}
