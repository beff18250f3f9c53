{{/*
What all pods have in common that run the scaler's program: its Deployment, the pod of helm test and the Job of the
clean-up. Each has the same settings, so that the two others see what the first one does.
*/}}

{{/* variable is one environment variable, nothing where the value is empty: that counts as not set. */}}
{{- define "azp-scaler.variable" -}}
{{- $value := index . 1 -}}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: {{ index . 0 }}
  value: {{ toString $value | quote }}
{{- end }}
{{- end }}

{{- define "azp-scaler.env" -}}
{{- $v := .Values }}
{{- $files := "/run/azp/credential/" }}
{{- $method := $v.auth.method }}
{{- $bindings := list }}
{{- $targets := list }}
{{- range $target := $v.targetNamespaces }}
{{- $targets = append $targets $target.name }}
{{- range $target.roles }}
{{- $bindings = append $bindings (printf "%s %s/%s" $target.name .kind .name) }}
{{- end }}
{{- end }}
{{- $variables := list
  (list "AZP_URL" $v.azureDevOps.url)
  (list "AZP_POOL" (join "," $v.azureDevOps.pools))
  (list "AZP_AUTH" $method)
  (list "AZP_TOKEN_FILE" (ternary (print $files $v.auth.tokenKey) "" (eq $method "pat")))
  (list "AZURE_CLIENT_SECRET_FILE" (ternary (print $files $v.auth.clientSecretKey) "" (eq $method "client-secret")))
  (list "AZURE_CLIENT_CERTIFICATE_PATH" (ternary (print $files $v.auth.certificateKey) "" (eq $method "client-certificate")))
  (list "AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE" (ternary (print $files $v.auth.certificatePasswordKey) "" (and (eq $method "client-certificate") (ne $v.auth.certificatePasswordKey ""))))
  (list "AZP_AUTH_SCOPE" $v.auth.scope)
  (list "AZP_NAMESPACE" (include "azp-scaler.agentsNamespace" .))
  (list "AZP_RELEASE" ($v.scaler.release | default (.Release.Name | replace "." "-")))
  (list "AZP_AGENT_SOURCE" $v.agents.source)
  (list "AZP_AGENT_VERSION" $v.agents.version)
  (list "AZP_AGENT_IMAGE_PULL_SECRETS" (join "," $v.agents.imagePullSecrets))
  (list "AZP_REGISTRATION" $v.agents.registration)
  (list "AZP_AGENT_TOKEN_SECRET" $v.agents.existingSecret)
  (list "AZP_AGENT_TOKEN_SECRET_KEY" $v.agents.tokenKey)
  (list "AZP_AGENT_CA_CONFIGMAP" (include "azp-scaler.agentsCA" .))
  (list "AZP_AGENT_PROXY_URL" $v.agents.proxy.url)
  (list "AZP_AGENT_PROXY_SECRET" $v.agents.proxy.existingSecret)
  (list "AZP_AGENT_NO_PROXY" $v.agents.proxy.noProxy)
  (list "AZP_TARGET_NAMESPACES" (join "," $targets))
  (list "AZP_MAX_AGENTS" (int $v.scaler.maxAgents))
  (list "AZP_MAX_CREATIONS" (int $v.scaler.maxCreations))
  (list "AZP_RESPECT_PARALLEL_JOBS" $v.scaler.respectParallelJobs)
  (list "AZP_POLL_BUSY" $v.scaler.pollBusy)
  (list "AZP_POLL_IDLE" $v.scaler.pollIdle)
  (list "AZP_IDLE_LIMIT" $v.scaler.idleLimit)
  (list "AZP_MAX_IDLE_AGE" $v.scaler.maxIdleAge)
  (list "AZP_STARTUP_LIMIT" $v.scaler.startupLimit)
  (list "AZP_CONFIGURE_LIMIT" $v.scaler.configureLimit)
  (list "AZP_GRACE_PERIOD" $v.scaler.gracePeriod)
  (list "AZP_JOB_TTL" $v.scaler.jobTTL)
  (list "AZP_BACKOFF_MIN" $v.scaler.backoffMin)
  (list "AZP_BACKOFF_MAX" $v.scaler.backoffMax)
  (list "AZP_SWEEP_INTERVAL" $v.scaler.sweepInterval)
  (list "AZP_SWEEP_GRACE" $v.scaler.sweepGrace)
  (list "AZP_LEADER_ELECTION" $v.scaler.leaderElection)
  (list "AZP_LISTEN" ":8080")
  (list "AZP_CALLBACK_URL" (printf "http://%s.%s:%d" (include "azp-scaler.fullname" .) .Release.Namespace (int $v.service.port)))
  (list "AZP_LOG_LEVEL" $v.scaler.logLevel)
  (list "AZP_LOG_FORMAT" $v.scaler.logFormat)
}}
{{- if $v.agents.builtinClass }}
{{- $requests := $v.agents.resources.requests | default dict }}
{{- $limits := $v.agents.resources.limits | default dict }}
{{- $variables = concat $variables (list
  (list "AZP_AGENT_IMAGE" (include "azp-scaler.image" (list $v.agents.image .)))
  (list "AZP_AGENT_IMAGE_PULL_POLICY" $v.agents.image.pullPolicy)
  (list "AZP_ROLE_BINDINGS" (join "," $bindings))
  (list "AZP_CAPABILITIES" (join "," $v.agents.capabilities))
  (list "AZP_MIN_IDLE" (int $v.agents.minIdle))
  (list "AZP_AGENT_CPU_REQUEST" $requests.cpu)
  (list "AZP_AGENT_CPU_LIMIT" $limits.cpu)
  (list "AZP_AGENT_MEMORY_REQUEST" $requests.memory)
  (list "AZP_AGENT_MEMORY_LIMIT" $limits.memory)
) }}
{{- end }}
{{- /* The webhook of workload identity sets these three, which would be there twice. */}}
{{- if not (has $method (list "pat" "workload-identity")) }}
{{- $variables = concat $variables (list
  (list "AZURE_TENANT_ID" $v.auth.tenantId)
  (list "AZURE_CLIENT_ID" $v.auth.clientId)
  (list "AZURE_AUTHORITY_HOST" $v.auth.authorityHost)
) }}
{{- end }}
{{- if include "azp-scaler.scalerCA" . }}
{{- $variables = append $variables (list "AZP_CA_FILE" (print "/run/azp/ca/" (include "azp-scaler.scalerCAKey" .))) }}
{{- end }}
{{- if or $v.proxy.httpsProxy $v.proxy.httpProxy }}
{{- $variables = concat $variables (list
  (list "HTTPS_PROXY" $v.proxy.httpsProxy)
  (list "HTTP_PROXY" $v.proxy.httpProxy)
  (list "NO_PROXY" (join "," (compact (list "$(KUBERNETES_SERVICE_HOST)" $v.proxy.noProxy))))
) }}
{{- if $v.proxy.existingSecret }}
{{- $variables = concat $variables (list
  (list "AZP_PROXY_USERNAME_FILE" (print "/run/azp/proxy/" $v.proxy.usernameKey))
  (list "AZP_PROXY_PASSWORD_FILE" (print "/run/azp/proxy/" $v.proxy.passwordKey))
) }}
{{- end }}
{{- end }}
{{- $own := list }}
{{- range $variables }}
{{- $own = append $own (index . 0) }}
{{- include "azp-scaler.variable" . }}
{{- end }}
{{- range $v.extraEnv }}
{{- if has .name $own }}
{{- fail (printf "extraEnv: %s is set by the chart: use the value of its own, which README.md of the chart names" .name) }}
{{- end }}
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "azp-scaler.scalerCAKey" -}}
{{- if .Values.ca.certificate }}ca.crt{{ else }}{{ .Values.ca.key }}{{ end -}}
{{- end }}

{{- define "azp-scaler.volumeMounts" -}}
{{- if include "azp-scaler.credential" . }}
- name: credential
  mountPath: /run/azp/credential
  readOnly: true
{{- end }}
{{- if .Values.proxy.existingSecret }}
- name: proxy
  mountPath: /run/azp/proxy
  readOnly: true
{{- end }}
{{- if include "azp-scaler.scalerCA" . }}
- name: ca
  mountPath: /run/azp/ca
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* credential is the source of the volume with what proves the identity, nothing where the platform does. */}}
{{- define "azp-scaler.credential" -}}
{{- if not (has .Values.auth.method (list "workload-identity" "managed-identity")) -}}
{{- if .Values.auth.volume -}}
{{ toYaml .Values.auth.volume }}
{{- else -}}
secret:
  secretName: {{ include "azp-scaler.authSecret" . }}
  defaultMode: 0440
{{- end -}}
{{- end -}}
{{- end }}

{{- define "azp-scaler.volumes" -}}
{{- with include "azp-scaler.credential" . }}
- name: credential
  {{- . | nindent 2 }}
{{- end }}
{{- with .Values.proxy.existingSecret }}
- name: proxy
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with include "azp-scaler.scalerCA" . }}
- name: ca
  configMap:
    name: {{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* container is the scaler's without probes and ports; it takes the root and the arguments. */}}
{{- define "azp-scaler.container" -}}
{{- $root := index . 0 }}
{{- $v := $root.Values }}
image: {{ include "azp-scaler.image" (list $v.image $root) }}
imagePullPolicy: {{ $v.image.pullPolicy }}
{{- with index . 1 }}
args: {{ toJson . }}
{{- end }}
env:
  {{- include "azp-scaler.env" $root | trim | nindent 2 }}
{{- with $v.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $v.securityContext | nindent 2 }}
{{- with include "azp-scaler.volumeMounts" $root | trim }}
volumeMounts:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{/* podLabels of a pod that runs the scaler's program; the root and the component. */}}
{{- define "azp-scaler.podLabels" -}}
{{- $root := index . 0 }}
{{- $labels := merge (dict "app.kubernetes.io/component" (index . 1)) (include "azp-scaler.labels" $root | fromYaml) $root.Values.podLabels }}
{{- if eq $root.Values.auth.method "workload-identity" }}
{{- $labels = merge (dict "azure.workload.identity/use" "true") $labels }}
{{- end }}
{{- toYaml $labels }}
{{- end }}

{{/* pod is what is alike in the specification of the pods. */}}
{{- define "azp-scaler.pod" -}}
serviceAccountName: {{ include "azp-scaler.serviceAccountName" . }}
enableServiceLinks: false # A Service named azp-… would show as AZP_… in the environment.
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "azp-scaler.volumes" . | trim }}
volumes:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}
