{{/* What the two policies of injection share. */}}

{{/* Pods that are not for keytide: of Windows alone, or with a sidecar already. Any term of an affinity is enough for a node. "pod" as below. */}}
{{- define "keytide.injection.matchConditions" -}}
- name: is-not-of-windows
  expression: >-
    {{ .pod }}.spec.?os.name.orValue('') != 'windows' &&
    {{ .pod }}.spec.?nodeSelector[?'kubernetes.io/os'].orValue('') != 'windows' &&
    ![{{ .pod }}.spec.?affinity.?nodeAffinity.?requiredDuringSchedulingIgnoredDuringExecution.?nodeSelectorTerms.orValue([])]
    .exists(terms, terms.size() > 0 && terms.all(t, t.?matchExpressions.orValue([]).exists(e, e.key == 'kubernetes.io/os' &&
    (e.operator == 'In' && e.?values.orValue([]).all(v, v == 'windows') ||
    e.operator == 'NotIn' && e.?values.orValue([]).exists(v, v == 'linux')))))
- name: has-no-sidecar
  expression: >-
    !{{ .pod }}.spec.?initContainers.orValue([]).exists(c, c.name == 'keytide') &&
    !{{ .pod }}.spec.containers.exists(c, c.name == 'keytide')
{{- end }}

{{/* The API server's mirror of a pod that a node has from a file cannot be changed. */}}
{{- define "keytide.injection.noMirror" -}}
- name: is-no-mirror
  expression: "!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))"
{{- end }}

{{/* New pods with the label. */}}
{{- define "keytide.injection.matchConstraints" -}}
{{- with .Values.injection.namespaceSelector }}
namespaceSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
objectSelector:
  matchLabels:
    keytide.dev/inject: "true"
resourceRules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
{{- end }}

{{/* What the annotations say. Each is defined for every text, since a variable that fails refuses the pod without a good word:
"context", "pod" (an expression: the pod, or a workload's template). */}}
{{- define "keytide.injection.variables" -}}
{{- $values := .context.Values }}
- name: said
  expression: {{ .pod }}.metadata.?annotations.orValue({})
- name: config
  expression: variables.said[?'keytide.dev/config'].orValue('')
- name: secret
  expression: variables.said[?'keytide.dev/primary-secret'].orValue('')
- name: role
  expression: variables.said[?'keytide.dev/role-arn'].orValue({{ squote $values.aws.roleArn }})
- name: env
  expression: variables.said[?'keytide.dev/env'].orValue('').split(',').map(n, n.trim()).filter(n, n != '')
- name: listed
  expression: variables.said[?'keytide.dev/containers'].orValue('').split(',').map(n, n.trim()).filter(n, n != '')
- name: port
  expression: >-
    variables.said[?'keytide.dev/http-port'].orValue('').matches('^[1-9][0-9]{3,4}$')
    ? int(variables.said['keytide.dev/http-port']) : {{ int $values.http.port }}
- name: user
  expression: >-
    variables.said[?'keytide.dev/run-as-user'].orValue('').matches('^[1-9][0-9]{0,9}$')
    ? int(variables.said['keytide.dev/run-as-user']) : {{ int64 $values.securityContext.runAsUser }}
- name: spool
  expression: variables.said[?'keytide.dev/spool'].orValue('') == 'true'
- name: grace
  expression: {{ .pod }}.spec.?terminationGracePeriodSeconds.orValue(30)
- name: own
  expression: {{ .pod }}.spec.containers
- name: volumes
  expression: {{ .pod }}.spec.?volumes.orValue([])
- name: ownInit
  expression: {{ .pod }}.spec.?initContainers.orValue([])
{{- end }}

{{/* Names that change how programs run, which keytide does not export (EnvName::is_reserved in src/domain/names.rs). */}}
{{- define "keytide.injection.reserved" -}}
{{- $exact := list "PATH" "IFS" "ENV" "CDPATH" "HOME" "SHELL" "USER" "LOGNAME" "PWD" "OLDPWD" "TMPDIR" "TERM" "PS1"
    "PS2" "PS3" "PS4" "PROMPT_COMMAND" "FPATH" "GLOBIGNORE" "SHELLOPTS" "HOSTALIASES" "LOCPATH" "NLSPATH"
    "RES_OPTIONS" "LOCALDOMAIN" "JAVA_TOOL_OPTIONS" "JDK_JAVA_OPTIONS" "_JAVA_OPTIONS" "CLASSPATH" "RUBYOPT" "RUBYLIB"
    "NODE_OPTIONS" "NODE_PATH" "GEM_PATH" "GEM_HOME" "HOSTNAME" "ZDOTDIR" "PHPRC" "PS0" "RANDOM" "SRANDOM" "OPTIND"
    "SECONDS" "HISTCMD" "HISTSIZE" "COLUMNS" "LINES" "SHLVL" "TMOUT" "MAILCHECK" "MAILPATH" "BASHPID" "LINENO" "GID"
    "EGID" }}
{{- $prefixes := list "LD_" "DYLD_" "BASH_" "PYTHON" "PERL" "SSL_CERT_" "AWS_" "KUBERNETES_" "GLIBC_" "MALLOC_"
    "GCONV_" "GIT_" "DOTNET_" }}
{{- $readOnly := list "UID" "EUID" "PPID" "BASHOPTS" "_" -}}
n.matches('(?i)^(({{ join "|" $exact }})|({{ join "|" $prefixes }}).*|.*_PROXY)$') || n in ['{{ join "', '" $readOnly }}']
{{- end }}

{{/* What the annotations may say: what is true of a good pod, and what to tell people of another one. */}}
{{- define "keytide.injection.checks" -}}
- expression: variables.config != '' || variables.secret != ''
  message: "keytide.dev/inject needs one of two annotations: keytide.dev/config, a ConfigMap of this namespace with the key keytide.yaml, or keytide.dev/primary-secret, the name of a JSON secret in AWS Secrets Manager"
- expression: variables.config == '' || variables.secret == ''
  message: "keytide.dev/config and keytide.dev/primary-secret are both set: the ConfigMap is the whole configuration, so take one of them away"
- expression: variables.config.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$')
  message: "keytide.dev/config: expected the name of a ConfigMap, such as my-app-keytide"
- expression: >-
    variables.secret.matches('^((arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:)?[A-Za-z0-9/_+=.@-]{1,512})?$') &&
    !variables.secret.startsWith('os.environ/')
  message: "keytide.dev/primary-secret: expected the name or the ARN of a secret, such as my-app/keys"
{{- if not .Values.aws.region }}
- expression: variables.secret == ''
  message: "keytide.dev/primary-secret needs a region, which the chart was not given: helm upgrade with --set aws.region=REGION, or use keytide.dev/config"
{{- end }}
- expression: variables.role.matches('^(arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,576})?$')
  message: "keytide.dev/role-arn: expected the ARN of an IAM role, such as arn:aws:iam::123456789012:role/my-app"
- expression: variables.listed.all(n, variables.own.exists(c, c.name == n) || variables.ownInit.exists(c, c.name == n))
  message: "keytide.dev/containers: expected names of containers of this pod, separated by commas"
- expression: variables.env.all(n, n.matches('^[A-Za-z_][A-Za-z0-9_]*$'))
  message: "keytide.dev/env: expected names of environment variables, separated by commas"
- expression: >-
    variables.config != '' || !variables.env.exists(n, {{ include "keytide.injection.reserved" . }})
  message: "keytide.dev/env: expected names that do not change how programs run, as PATH and LD_PRELOAD do: rename the secret's member, or allow it in a keytide.dev/config"
- expression: variables.env.distinct().size() == variables.env.size()
  message: "keytide.dev/env: a name is there twice"
- expression: variables.said[?'keytide.dev/http-port'].orValue('1024').matches('^[1-9][0-9]{3,4}$') && variables.port >= 1024 && variables.port <= 65535
  message: "keytide.dev/http-port: expected a port from 1024 to 65535"
- expression: variables.said[?'keytide.dev/run-as-user'].orValue('1').matches('^[1-9][0-9]{0,9}$') && variables.user <= 2147483647
  message: "keytide.dev/run-as-user: expected the number of a user other than 0, at most 2147483647"
- expression: variables.said[?'keytide.dev/isolate-credentials'].orValue('true') in ['true', 'false']
  message: "keytide.dev/isolate-credentials: expected true or false, in quotation marks"
- expression: variables.said[?'keytide.dev/spool'].orValue('true') in ['true', 'false']
  message: "keytide.dev/spool: expected true or false, in quotation marks"
- expression: "!variables.spool || variables.grace >= 10"
  message: "keytide.dev/spool: expected a pod that has ten seconds to end, since keytide stores then what is left: set terminationGracePeriodSeconds to 10 or more"
- expression: "!variables.volumes.exists(v, v.name.startsWith('keytide-'))"
  message: "the pod has a volume of its own whose name begins with keytide-: give it another name"
# Nothing is injected into such a pod, and so the API server itself refuses it: it has no such volume.
- expression: >-
    [variables.own, variables.ownInit].all(list, list.all(c, c.?volumeMounts.orValue([]).all(m,
    !(m.name in ['keytide-token', 'keytide-private', 'keytide-config']))))
  message: "a container mounts keytide-token, keytide-private or keytide-config, which are keytide's alone"
{{- end }}

{{/* The keytide.yaml of a pod without keytide.dev/config. What comes from annotations is checked before, and holds no quotation mark. */}}
{{- define "keytide.injection.configuration" -}}
'keytide:\n' +
'  aws: {' + {{ if .Values.aws.region }}{{ printf "region: %q" .Values.aws.region | squote }}{{ else }}''{{ end }} +
(variables.role == '' ? '' : ', expect_role: "' + variables.role + '"') + '}\n' +
'  primary_secret: {name: "' + variables.secret + '"}\n' +
(variables.env.size() == 0 ? '' : '  keys:\n' +
  variables.env.map(n, '    - {name: "' + n + '", member: "' + n + '"}\n').join()) +
'  outputs:\n' +
'    - env_file: {path: /run/keytide/env/keys.env, format: posix}\n' +
(variables.env.size() == 0 ? '' :
  '    - env_file: {name: kubernetes, path: /run/keytide/env/kubernetes.env, format: kubernetes, keys: ["' +
  variables.env.join('", "') + '"]}\n') +
'  refresh: {startup_timeout: {{ .Values.startupTimeoutSeconds }}s}\n' +
'  state: {directory: /run/keytide/private/state}\n' +
'  http: {listen: "[::]:' + string(variables.port) + '"}\n' +
'  admin: {socket: /run/keytide/private/admin.sock}\n'
{{- end }}

{{/*
The operations on some containers: "list" (a variable), "path". `have` is bound by a list of one, since CEL as Kubernetes has it binds nothing
else, and what is evaluated for each variable of each container is what a large pod costs.
*/}}
{{- define "keytide.injection.containers" -}}
{{- $path := printf "'%s' + string(i)" .path }}
{{- $container := printf "variables.%s[i]" .list -}}
lists.range(variables.{{ .list }}.size()).filter(i, {{ $container }}.name in variables.targets).map(i,
  (has({{ $container }}.volumeMounts) ? [] : [JSONPatch{op: 'add', path: {{ $path }} + '/volumeMounts', value: []}]) +
  [{{ $container }}.?volumeMounts.orValue([]).map(m, m.mountPath)].map(have, variables.mounts.filter(m, !(m.mountPath in have)).map(m,
    JSONPatch{op: 'add', path: {{ $path }} + '/volumeMounts/-', value: m}))[0] +
  (has({{ $container }}.env) || variables.env.size() == 0 ? [] : [JSONPatch{op: 'add', path: {{ $path }} + '/env', value: []}]) +
  [{{ $container }}.?env.orValue([]).map(e, e.name)].map(have, variables.env.filter(n, !(n in have)).map(n,
    JSONPatch{op: 'add', path: {{ $path }} + '/env/0', value: {{ include "keytide.cel" (fromYaml (include "keytide.injection.variable" .)) }}}))[0]
).flatten()
{{- end }}

{{- define "keytide.injection.variable" -}}
name: {$cel: "n"}
valueFrom:
  fileKeyRef:
    volumeName: keytide-env
    path: kubernetes.env
    key: {$cel: "n"}
    optional: false
{{- end }}

{{/* The sidecar as an expression. */}}
{{- define "keytide.injection.sidecar" -}}
{{- $environment := printf "%s + (variables.role == '' ? [] : %s)"
    (include "keytide.celOfList" (include "keytide.environment" .))
    (include "keytide.celOfList" (include "keytide.roleEnvironment" (dict "role" (dict "$cel" "variables.role")))) }}
{{- $with := include "keytide.celOfList" (include "keytide.ownMounts" (dict "context" . "files" true "spool" true)) }}
{{- $without := include "keytide.celOfList" (include "keytide.ownMounts" (dict "context" . "files" true)) }}
{{- $mounts := printf "(variables.spool ? %s : %s) + (variables.role == '' ? [] : %s)" $with $without
    (include "keytide.celOfList" "- {name: keytide-token, mountPath: /var/run/secrets/keytide, readOnly: true}") }}
{{- $container := include "keytide.container" (dict "context" . "sidecar" true
    "port" (dict "$cel" "variables.port") "user" (dict "$cel" "variables.user")
    "environment" (dict "$cel" $environment) "mounts" (dict "$cel" $mounts)) }}
{{- include "keytide.cel" (fromYaml $container) }}
{{- end }}

{{/*
The policy that injects: "context", "revision". A pod may name the revision that it wants, with keytide.dev/policy: it gets no sidecar of another one.
*/}}
{{- define "keytide.injection.policy" -}}
{{- $checks := list }}
{{- range fromYamlArray (include "keytide.injection.checks" .context) }}
{{- $checks = append $checks (printf "(%s)" .expression) }}
{{- end }}
{{- with .revision }}
{{- $checks = append $checks (printf "(variables.said[?'keytide.dev/policy'].orValue('%s') == '%s')" . .) }}
{{- end }}
{{- $add := "JSONPatch{op: 'add', path: '/spec/volumes/-', value: %s}" -}}
failurePolicy: Fail
reinvocationPolicy: Never
matchConstraints:
  {{- include "keytide.injection.matchConstraints" .context | trim | nindent 2 }}
matchConditions:
  {{- include "keytide.injection.matchConditions" (dict "pod" "object") | nindent 2 }}
  {{- include "keytide.injection.noMirror" . | nindent 2 }}
variables:
  {{- include "keytide.injection.variables" (dict "context" .context "pod" "object") | nindent 2 }}
  # What is false here is refused by the policy below, which can say why.
  - name: valid
    expression: >-
      {{- join " &&\n" $checks | nindent 6 }}
  - name: targets
    expression: "variables.listed.size() == 0 ? variables.own.map(c, c.name) : variables.listed"
  - name: mounts
    expression: >-
      [{{ include "keytide.cel" (dict "name" "keytide-env" "mountPath" "/run/keytide/env" "readOnly" true) }}] +
      (variables.spool ? [{{ include "keytide.cel" (dict "name" "keytide-spool" "mountPath" "/run/keytide/spool") }}] : [])
  - name: configuration
    expression: |-
      {{- include "keytide.injection.configuration" .context | nindent 6 }}
mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: |-
        !variables.valid ? [] :
        {{- include "keytide.injection.containers" (dict "list" "own" "path" "/spec/containers/") | nindent 8 }} +
        {{- include "keytide.injection.containers" (dict "list" "ownInit" "path" "/spec/initContainers/") | nindent 8 }} +
        (has(object.spec.initContainers) ? [] : [JSONPatch{op: 'add', path: '/spec/initContainers', value: []}]) +
        [JSONPatch{op: 'add', path: '/spec/initContainers/0', value: {{ include "keytide.injection.sidecar" .context }}}] +
        (has(object.spec.volumes) ? [] : [JSONPatch{op: 'add', path: '/spec/volumes', value: []}]) +
        {{- range fromYamlArray (include "keytide.memoryVolumes" (dict "context" .context)) }}
        [{{ printf $add (include "keytide.cel" .) }}] +
        {{- end }}
        {{- $spool := index (fromYamlArray (include "keytide.memoryVolumes" (dict "context" .context "spool" true))) 2 }}
        (variables.spool ? [{{ printf $add (include "keytide.cel" $spool) }}] : []) +
        (variables.role == '' ? [] : [{{ printf $add (include "keytide.cel" (index (fromYamlArray (include "keytide.tokenVolume" .context)) 0)) }}]) +
        {{- range .context.Values.extraVolumes }}
        [{{ printf $add (include "keytide.cel" .) }}] +
        {{- end }}
        (variables.config != ''
          ? [{{ printf $add (include "keytide.cel" (dict "name" "keytide-config" "configMap" (dict "name" (dict "$cel" "variables.config")))) }}]
          : [{{ printf $add (include "keytide.cel" (dict "name" "keytide-config" "downwardAPI" (dict "items" (list (dict "path" "keytide.yaml" "fieldRef" (dict "fieldPath" "metadata.annotations['keytide.dev/rendered-config']")))))) }},
             JSONPatch{op: 'add', path: '/metadata/annotations/keytide.dev~1rendered-config', value: variables.configuration}]) +
        (variables.said[?'keytide.dev/isolate-credentials'].orValue('') != 'true' ? [] :
          [JSONPatch{op: 'add', path: '/metadata/annotations/eks.amazonaws.com~1skip-containers',
            value: (variables.own.map(c, c.name) + variables.ownInit.map(c, c.name)).join(',')}])
{{- end }}

{{/* Of this policy. */}}
{{- define "keytide.injection.revision" -}}
{{- include "keytide.injection.policy" (dict "context" .) | sha256sum | trunc 12 }}
{{- end }}

{{/* Whether Helm waits for it: in a namespace that is not known to be selected, nothing would ever be injected. */}}
{{- define "keytide.injection.waits" -}}
{{- if and (eq .Values.mode "injection") .Values.injection.wait }}
{{- include "keytide.injection.selectsOwn" . }}
{{- end }}
{{- end }}

{{/* Whether injection.namespaceSelector is known to select the release's own namespace. */}}
{{- define "keytide.injection.selectsOwn" -}}
{{- $namespace := include "keytide.namespace" . }}
{{- $selector := .Values.injection.namespaceSelector | default dict }}
{{- $terms := $selector.matchExpressions | default list }}
{{- range $key, $value := $selector.matchLabels }}
{{- $terms = append $terms (dict "key" $key "operator" "In" "values" (list $value)) }}
{{- end }}
{{- $byName := true }}
{{- range $terms }}
{{- $byName = and $byName (eq .key "kubernetes.io/metadata.name") }}
{{- end }}
{{- $labels := dict "kubernetes.io/metadata.name" $namespace }}
{{- if not $byName }}
{{- $found := lookup "v1" "Namespace" "" $namespace }}
{{- /* Helm makes one with no other labels. */}}
{{- $labels = merge $labels (dig "metadata" "labels" (dict "name" $namespace) $found) }}
{{- end }}
{{- /* Without a cluster (`helm template`), there is no way to know. */}}
{{- $selects := or $byName (lookup "v1" "Namespace" "" "kube-system") }}
{{- range $terms }}
{{- $has := hasKey $labels .key }}
{{- $in := and $has (has (get $labels .key) (default list .values)) }}
{{- $holds := dict "In" $in "NotIn" (not $in) "Exists" $has "DoesNotExist" (not $has) }}
{{- $selects = and $selects (get $holds .operator) }}
{{- end }}
{{- if $selects }}yes{{ end }}
{{- end }}
