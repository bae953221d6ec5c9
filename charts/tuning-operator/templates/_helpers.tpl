{{/* The prefix of all names. Limited to 38 characters because of the names of the StatefulSets' pods and revisions. */}}
{{- define "tuning-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 38 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 38 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* The name under which the operator serves studies. */}}
{{- define "tuning-operator.installation" -}}{{ .Release.Namespace }}/{{ include "tuning-operator.fullname" . }}{{- end -}}

{{- define "tuning-operator.studyServer" -}}{{ include "tuning-operator.fullname" . }}-study-server{{- end -}}
{{- define "tuning-operator.postgres" -}}{{ include "tuning-operator.fullname" . }}-postgres{{- end -}}
{{- define "tuning-operator.dashboard" -}}{{ include "tuning-operator.fullname" . }}-dashboard{{- end -}}

{{/* Labels that select a component's pods. Takes [context, component]. */}}
{{- define "tuning-operator.selector" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: {{ $context.Chart.Name }}
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of all objects. Takes [context, component]. */}}
{{- define "tuning-operator.labels" -}}
{{- $context := index . 0 -}}
{{ include "tuning-operator.selector" . }}
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tuning-operator
app.kubernetes.io/managed-by: {{ $context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $context.Chart.Name $context.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The security context of all containers. */}}
{{- define "tuning-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The security context of a pod. Takes the user ID, which also owns the volumes. */}}
{{- define "tuning-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Scheduling constraints of a pod. Takes the component's values. */}}
{{- define "tuning-operator.scheduling" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" -}}
{{- with get $ $field }}
{{ $field }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The image of trials whose template names none. */}}
{{- define "tuning-operator.trainerImage" -}}
{{ printf "%s:%s" .Values.trainer.image.repository (.Values.trainer.image.tag | default .Chart.AppVersion) }}
{{- end -}}

{{/* The image of a component. Takes [context, the component's own image]. */}}
{{- define "tuning-operator.image" -}}
{{- $context := index . 0 -}}
{{- $own := index . 1 -}}
{{- $image := $context.Values.image -}}
{{- $tag := $own.tag | default $image.tag | default $context.Chart.AppVersion -}}
image: {{ printf "%s:%s" ($own.repository | default $image.repository) $tag | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{/* The study server's host name, valid in all namespaces. */}}
{{- define "tuning-operator.studyServerHost" -}}
{{ include "tuning-operator.studyServer" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- define "tuning-operator.tlsSecret" -}}
{{- if eq .Values.studyServer.tls.source "secret" -}}
{{ .Values.studyServer.tls.secretName }}
{{- else -}}
{{ include "tuning-operator.studyServer" . }}-tls
{{- end -}}
{{- end -}}

{{/*
The data of the generated certificate's Secret, as JSON. If the cluster has no certificate, a new one is generated. It is stored in
.Values so that all templates use the same one. The CA signs only this certificate, and its key is discarded.
*/}}
{{- define "tuning-operator.generatedTls" -}}
{{- if not (hasKey .Values "generatedTls") -}}
{{- $present := lookup "v1" "Secret" .Release.Namespace (include "tuning-operator.tlsSecret" .) -}}
{{- if $present -}}
{{- $_ := set .Values "generatedTls" (pick $present.data "ca.crt" "tls.crt" "tls.key") -}}
{{- else -}}
{{- $name := include "tuning-operator.studyServer" . -}}
{{- $host := include "tuning-operator.studyServerHost" . -}}
{{- $names := list $host (printf "%s.cluster.local" $host) (printf "%s.%s" $name .Release.Namespace) $name "localhost" -}}
{{- $ca := genCA (printf "%s-ca" $name) 3650 -}}
{{- $certificate := genSignedCert $name (list "127.0.0.1") $names 3650 $ca -}}
{{- $_ := dict "ca.crt" ($ca.Cert | b64enc) "tls.crt" ($certificate.Cert | b64enc) "tls.key" ($certificate.Key | b64enc)
      | set .Values "generatedTls" -}}
{{- end -}}
{{- end -}}
{{- toJson .Values.generatedTls -}}
{{- end -}}

{{/* Restarts the pods that read the certificate when Helm generates a new one. */}}
{{- define "tuning-operator.tlsChecksum" -}}
{{- if eq .Values.studyServer.tls.source "generated" -}}
checksum/tls: {{ include "tuning-operator.generatedTls" . | sha256sum }}
{{- end -}}
{{- end -}}

{{/* An environment variable with the URL of the database. Takes [context, name of the variable]. */}}
{{- define "tuning-operator.databaseUrl" -}}
{{- $context := index . 0 -}}
{{- $external := $context.Values.postgres.external -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef:
      name: {{ $external.existingSecret | default (include "tuning-operator.postgres" $context) }}
      key: {{ ternary $external.key "url" (not (empty $external.existingSecret)) }}
{{- end -}}
