{{/* Names and labels. */}}

{{- define "azp-scaler.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "azp-scaler.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "azp-scaler.name" .) .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "azp-scaler.name" .) | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "azp-scaler.selectorLabels" -}}
app.kubernetes.io/name: {{ include "azp-scaler.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "azp-scaler.labels" -}}
{{ include "azp-scaler.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "azp-scaler.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "azp-scaler.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "azp-scaler.agentsNamespace" -}}
{{- .Values.agents.namespace | default (printf "%s-agents" .Release.Namespace) -}}
{{- end }}

{{/* image takes the values of an image and the chart's root. */}}
{{- define "azp-scaler.image" -}}
{{- $image := index . 0 -}}
{{- $root := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (toString ($image.tag | default $root.Chart.AppVersion)) -}}
{{- end -}}
{{- end }}

{{/* caConfigMap is where the agents find the certificate authority, nothing where there is none. */}}
{{- define "azp-scaler.agentsCA" -}}
{{- if .Values.agents.caConfigMap -}}
{{- .Values.agents.caConfigMap -}}
{{- else if .Values.ca.certificate -}}
{{- include "azp-scaler.fullname" . }}-ca
{{- end -}}
{{- end }}

{{- define "azp-scaler.scalerCA" -}}
{{- if .Values.ca.certificate -}}
{{- include "azp-scaler.fullname" . }}-ca
{{- else -}}
{{- .Values.ca.existingConfigMap -}}
{{- end -}}
{{- end }}

{{- define "azp-scaler.authSecret" -}}
{{- $usual := dict "pat" "azp-token" "client-secret" "azp-client-secret" "client-certificate" "azp-client-certificate" -}}
{{- .Values.auth.existingSecret | default (get $usual .Values.auth.method) -}}
{{- end }}

{{/* registersFromPods is not empty where a class that the chart knows registers its agents from their pods. */}}
{{- define "azp-scaler.registersFromPods" -}}
{{- $usual := .Values.agents.registration -}}
{{- $ways := list -}}
{{- range .Values.agents.classes -}}
{{- $ways = append $ways ((. | default dict).registration | default $usual) -}}
{{- end -}}
{{- if .Values.agents.builtinClass -}}
{{- $ways = append $ways $usual -}}
{{- end -}}
{{- if has "config" $ways }}yes{{ end -}}
{{- end }}
