{{- define "logpx.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "logpx.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "logpx.labels" -}}
{{ include "logpx.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "logpx.metadata" -}}
name: {{ include "logpx.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "logpx.labels" . | nindent 2 }}
{{- end -}}

{{- define "logpx.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}
{{- end -}}

{{- define "logpx.port" -}}
{{ get .Values.settings "LOGPX_PORT" | default 8000 }}
{{- end -}}

{{/* Twice the drain, for accepted work and then for connections, as in docker-compose.yml; before it, preStop. */}}
{{- define "logpx.graceSeconds" -}}
{{- $drain := get .Values.settings "LOGPX_DRAIN_SECONDS" | default 20 -}}
{{ add .Values.preStopSeconds (ceil (mulf 2 $drain)) 5 }}
{{- end -}}

{{/* YAML reads 67108864 as 6.7108864e+07, and off as false. */}}
{{- define "logpx.text" -}}
{{- if kindIs "bool" . -}}
{{ ternary "on" "off" . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ printf "%.0f" . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end -}}

{{- define "logpx.env" -}}
{{- $env := dict "LOGPX_HOST" "0.0.0.0" "LOGPX_PORT" (include "logpx.port" .) -}}
{{- $_ := set $env "LOGPX_EXECUTION_PROVIDER" (ternary "cuda" "cpu" .Values.gpu.enabled) -}}
{{- if ne .Values.modelStore.type "bundled" -}}
{{- $_ := set $env "LOGPX_MODEL_STORE" "/models" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (trimSuffix "/" .Values.ingress.path) -}}
{{- $_ := set $env "LOGPX_ROOT_PATH" (trimSuffix "/" .Values.ingress.path) -}}
{{- end -}}
{{- if .Values.keys.secret -}}
{{- with .Values.keys.apiItem }}{{ $_ := set $env "LOGPX_API_KEYS_FILE" (printf "/etc/logpx/%s" .) }}{{ end -}}
{{- with .Values.keys.adminItem }}{{ $_ := set $env "LOGPX_ADMIN_KEYS_FILE" (printf "/etc/logpx/%s" .) }}{{ end -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- $_ := set $env $name (include "logpx.text" $value) -}}
{{- end -}}
{{- range $name, $value := $env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- if and (dig "requests" "cpu" "" .Values.resources) (not (hasKey .Values.settings "LOGPX_NUM_THREADS")) }}
- name: LOGPX_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      resource: requests.cpu
      divisor: "1"
{{- end }}
{{- if .Values.gpu.enabled }}
- name: CUDA_CACHE_PATH
  value: /tmp/cuda
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "logpx.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
