{{/*
The prefix of all names. At most 38 characters, because of the names of the StatefulSets' pods and revisions. Names of Services have no
dots and begin with a letter; names of releases need not.
*/}}
{{- define "tuning-operator.fullname" -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if regexMatch "^[0-9]" $release -}}
{{ printf "%s-%s" .Chart.Name $release | trunc 38 | trimSuffix "-" }}
{{- else if contains .Chart.Name $release -}}
{{ $release | trunc 38 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" $release .Chart.Name | trunc 38 | trimSuffix "-" }}
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
app.kubernetes.io/instance: {{ $context.Release.Name | quote }}
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

{{/* Metadata of a component's pods. Takes [context, component, the component's values, our annotations]. */}}
{{- define "tuning-operator.podMetadata" -}}
{{- $values := index . 2 -}}
labels: {{- merge (include "tuning-operator.selector" . | fromYaml) $values.podLabels | toYaml | nindent 2 }}
{{- with merge (index . 3) $values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the pods of all components have, and what the component's values set. Takes [context, the component's values]. */}}
{{- define "tuning-operator.podSpec" -}}
{{- $values := index . 1 -}}
{{- $restricted := dict "runAsNonRoot" true "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
enableServiceLinks: false
{{- with (index . 0).Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- merge (deepCopy $values.podSecurityContext) $restricted | toYaml | nindent 2 }}
{{- range $field := list "priorityClassName" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with get $values $field }}
{{ $field }}: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
The podManagementPolicy of a StatefulSet. Takes [context, its name]. With Kubernetes' default, a pod that never becomes Ready would not be
replaced by the one of a corrected release. A StatefulSet that exists keeps its own, which can't be changed.
*/}}
{{- define "tuning-operator.podManagementPolicy" -}}
{{- lookup "apps/v1" "StatefulSet" (index . 0).Release.Namespace (index . 1) | dig "spec" "podManagementPolicy" "Parallel" -}}
{{- end -}}

{{/* The security context of all containers. */}}
{{- define "tuning-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The reference of an image. Takes [its values, the default tag]. */}}
{{- define "tuning-operator.reference" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else if kindIs "string" $image.tag -}}
{{ printf "%s:%s" $image.repository ($image.tag | default (index . 1)) }}
{{- else -}}
{{ printf "%s:%d" $image.repository (int64 $image.tag) }}
{{- end -}}
{{- end -}}

{{/* The image of trials whose template names none. */}}
{{- define "tuning-operator.trainerImage" -}}
{{ include "tuning-operator.reference" (list .Values.trainer.image .Chart.AppVersion) }}
{{- end -}}

{{/* The image of a component. Takes [context, the component's own image]. */}}
{{- define "tuning-operator.image" -}}
{{- $context := index . 0 -}}
{{- $own := index . 1 -}}
{{- $image := $context.Values.image -}}
{{- $repository := $own.repository | default $image.repository -}}
{{- $digest := $own.digest | default (ternary $image.digest "" (eq $repository $image.repository)) -}}
{{- $reference := dict "repository" $repository "tag" ($own.tag | default $image.tag) "digest" $digest -}}
image: {{ include "tuning-operator.reference" (list $reference $context.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end -}}

{{- define "tuning-operator.postgresImage" -}}
image: {{ include "tuning-operator.reference" (list .Values.postgres.image "") | quote }}
imagePullPolicy: {{ .Values.postgres.image.pullPolicy }}
{{- end -}}

{{/*
The names of the study servers' Services by their ordinals, as JSON. That of server 0 has no number: pods and releases from before there
could be several servers know it by this name.
*/}}
{{- define "tuning-operator.studyServers" -}}
{{- $name := include "tuning-operator.studyServer" . -}}
{{- $services := list $name -}}
{{- range $ordinal := untilStep 1 (int .Values.studyServer.replicas) 1 -}}
{{- $services = append $services (printf "%s-%d" $name $ordinal) -}}
{{- end -}}
{{ toJson $services }}
{{- end -}}

{{/* The names of the study servers' pods by their ordinals, as JSON. */}}
{{- define "tuning-operator.studyServerPods" -}}
{{- $pods := list -}}
{{- range $ordinal := until (int .Values.studyServer.replicas) -}}
{{- $pods = append $pods (printf "%s-%d" (include "tuning-operator.studyServer" $) $ordinal) -}}
{{- end -}}
{{ toJson $pods }}
{{- end -}}

{{/* The host name of a Service, valid in all namespaces. Takes [context, the Service's name]. */}}
{{- define "tuning-operator.host" -}}
{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc
{{- end -}}

{{- define "tuning-operator.tlsSecret" -}}
{{- if eq .Values.studyServer.tls.source "secret" -}}
{{ .Values.studyServer.tls.secretName }}
{{- else -}}
{{ include "tuning-operator.studyServer" . }}-tls
{{- end -}}
{{- end -}}

{{/*
The Secret with a generated certificate for Services, without its labels. Takes [context, the names of the Services]; the Secret is named
after the first one.

The certificate in the cluster is kept. If there is none, or for fewer Services, or `renewCertificates` has a new value, another one is
generated; then `ca.crt` has the new CA and the one before, so that what still trusts the old certificate does not have to change at the
same moment. A CA signs one certificate, and its key is discarded. The result is stored in .Values, since a second call would generate
another one.
*/}}
{{- define "tuning-operator.certificate" -}}
{{- $context := index . 0 -}}
{{- $services := index . 1 -}}
{{- $service := first $services -}}
{{- $secret := printf "%s-tls" $service -}}
{{- $generated := get $context.Values "generatedCertificates" | default dict -}}
{{- if not (hasKey $generated $secret) -}}
{{- $present := lookup "v1" "Secret" $context.Release.Namespace $secret -}}
{{- $renewal := dig "metadata" "annotations" "tuning.dev/renewal" "" $present -}}
{{- $wanted := $context.Values.renewCertificates | default $renewal -}}
{{- $data := dig "data" dict $present -}}
{{- $covered := dig "metadata" "annotations" "tuning.dev/services" "1" $present | int -}}
{{- if or (not $present) (ne $wanted $renewal) (lt $covered (len $services)) -}}
{{- $covered = len $services -}}
{{- $names := list "localhost" -}}
{{- range $services -}}
{{- $host := include "tuning-operator.host" (list $context .) -}}
{{- $names = concat $names (list $host (printf "%s.%s" $host $context.Values.clusterDomain) (printf "%s.%s" . $context.Release.Namespace) .) -}}
{{- end -}}
{{- $authority := genCAWithKey (printf "%s-ca" $service) 3650 (genPrivateKey "ecdsa") -}}
{{- $certificate := genSignedCertWithKey $service (list "127.0.0.1") $names 3650 $authority (genPrivateKey "ecdsa") -}}
{{- $previous := get $data "ca.crt" | b64dec | regexFind "(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?" -}}
{{- $data = dict "ca.crt" (print $authority.Cert $previous | b64enc) "tls.crt" ($certificate.Cert | b64enc) "tls.key" ($certificate.Key | b64enc) -}}
{{- end -}}
{{- $metadata := dict "name" $secret "namespace" $context.Release.Namespace
      "annotations" (dict "helm.sh/resource-policy" "keep" "tuning.dev/renewal" $wanted "tuning.dev/services" (toString $covered)) -}}
{{- $_ := dict "apiVersion" "v1" "kind" "Secret" "type" "kubernetes.io/tls" "metadata" $metadata "data" (pick $data "ca.crt" "tls.crt" "tls.key")
      | set $generated $secret -}}
{{- $_ := set $context.Values "generatedCertificates" $generated -}}
{{- end -}}
{{- get $generated $secret | toJson -}}
{{- end -}}

{{/*
Environment variables of a client of the database. Takes [context, name of the variable with the URL]. The rest are libpq's own, so that the
URL in a Secret works without them too.
*/}}
{{- define "tuning-operator.database" -}}
{{- $context := index . 0 -}}
{{- $external := $context.Values.postgres.external -}}
{{- if $external.existingSecret -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ $external.existingSecret | quote }}, key: {{ $external.key | quote }}}}
- {name: PGSSLMODE, value: {{ $external.sslMode }}}
{{- if $external.caSecret }}
- {name: PGSSLROOTCERT, value: /var/run/tuning.dev/postgres/ca.crt}
{{- else if eq $external.sslMode "verify-full" }}
- {name: PGSSLROOTCERT, value: system}
- {name: SSL_CERT_FILE, value: /etc/ssl/certs/ca-certificates.crt}   # libpq brings its own OpenSSL, which looks elsewhere
{{- end }}
{{- else -}}
{{- $name := include "tuning-operator.postgres" $context -}}
- {name: {{ index . 1 }}, value: "postgresql+psycopg2://tuning@{{ $name }}.{{ $context.Release.Namespace }}.svc:5432/tuning"}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {{ include "tuning-operator.passwordKey" $context }}}
- {name: PGSSLMODE, value: verify-full}
- {name: PGSSLROOTCERT, value: /var/run/tuning.dev/postgres/ca.crt}
{{- end }}
{{- end -}}

{{/* The key of the Secret with the password of the bundled Postgres. */}}
{{- define "tuning-operator.passwordKey" -}}
{{- $auth := .Values.postgres.auth -}}
{{- if $auth.existingSecret -}}
{{ dict "name" $auth.existingSecret "key" $auth.key | toJson }}
{{- else -}}
{{ dict "name" (include "tuning-operator.postgres" .) "key" "password" | toJson }}
{{- end -}}
{{- end -}}

{{/* The volume with the database's CA, if its clients need one. */}}
{{- define "tuning-operator.databaseVolume" -}}
{{- $external := .Values.postgres.external -}}
{{- if or (not $external.existingSecret) $external.caSecret -}}
- name: postgres-ca
  secret:
    secretName: {{ $external.caSecret | default (printf "%s-tls" (include "tuning-operator.postgres" .)) | quote }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}

{{- define "tuning-operator.databaseMount" -}}
{{- if include "tuning-operator.databaseVolume" . -}}
- {name: postgres-ca, mountPath: /var/run/tuning.dev/postgres, readOnly: true}
{{- end }}
{{- end -}}

{{/* The name of a cluster-wide object: the same release may exist in another namespace. Takes [context, name]. */}}
{{- define "tuning-operator.clusterWide" -}}
{{ index . 1 }}.{{ (index . 0).Release.Namespace }}
{{- end -}}

{{/*
Whether the claim of Postgres is managed by Helm. One that an earlier version of the chart made, from a template of the StatefulSet, is used as
it is. Once Helm has managed the claim, it always does (an annotation of the StatefulSet says so): leaving it out would delete it.
*/}}
{{- define "tuning-operator.claimIsManaged" -}}
{{- $name := include "tuning-operator.postgres" . -}}
{{- $claim := lookup "v1" "PersistentVolumeClaim" .Release.Namespace (printf "data-%s-0" $name) -}}
{{- $before := lookup "apps/v1" "StatefulSet" .Release.Namespace $name | dig "metadata" "annotations" "tuning.dev/volume-claim" "" -}}
{{- if or $before (not $claim) (dig "metadata" "annotations" "meta.helm.sh/release-name" "" $claim) }}true{{ end -}}
{{- end -}}
