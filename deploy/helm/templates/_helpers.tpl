{{- define "serving.selector" -}}
app.kubernetes.io/name: {{ .Values.name }}
{{- end }}

{{- define "serving.labels" -}}
app.kubernetes.io/part-of: mlflow-serving-front
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "serving.environment" -}}
SERVING_PORT: {{ .Values.ports.http | quote }}
SERVING_ADMIN_PORT: {{ .Values.ports.admin | quote }}
SERVING_STORE_DIR: /var/lib/serving/store
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ if kindIs "float64" $value }}{{ $value | toJson | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "serving.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
scaleDown:
  # Each removed pod loses its warm models.
  stabilizationWindowSeconds: 600
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}
