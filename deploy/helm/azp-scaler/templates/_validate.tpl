{{/*
What the schema can't see: values that contradict one another. Everything wrong is told at once, each with the value's
name and what to do.
*/}}
{{- define "azp-scaler.validate" -}}
{{- $v := .Values }}
{{- $release := .Release.Namespace }}
{{- $agents := include "azp-scaler.agentsNamespace" . }}
{{- $wrong := list }}
{{- if not $v.azureDevOps.url }}
{{- $wrong = append $wrong "azureDevOps.url is not set: want the organisation's address, such as https://dev.azure.com/contoso" }}
{{- end }}
{{- if not $v.azureDevOps.pools }}
{{- $wrong = append $wrong "azureDevOps.pools is empty: name an agent pool, as in Organisation settings, Agent pools" }}
{{- end }}
{{- if has $v.auth.method (list "client-secret" "client-certificate") }}
{{- range list "tenantId" "clientId" }}
{{- if not (get $v.auth .) }}
{{- $wrong = append $wrong (printf "auth.%s is not set, and auth.method %s needs it" . $v.auth.method) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $v.auth.method "workload-identity") $v.serviceAccount.create (not $v.auth.clientId) (not (get $v.serviceAccount.annotations "azure.workload.identity/client-id")) }}
{{- $wrong = append $wrong "auth.clientId is not set, and auth.method workload-identity needs it: the client id of the identity that the ServiceAccount stands for" }}
{{- end }}
{{- if and (not $v.serviceAccount.create) (not $v.serviceAccount.name) }}
{{- $wrong = append $wrong "serviceAccount.name is not set, and with serviceAccount.create false it has to be: the account that is there" }}
{{- end }}
{{- if eq $agents $release }}
{{- $wrong = append $wrong (printf "agents.namespace is the release's own, %s: whoever may make pods there may read the Secrets there, so give the agents another one" $release) }}
{{- end }}
{{- if and (ne $v.auth.method "pat") $v.auth.volume (eq $v.auth.method "workload-identity") }}
{{- $wrong = append $wrong "auth.volume is set, and auth.method workload-identity mounts none: leave it out" }}
{{- end }}
{{- if and $v.ca.certificate $v.ca.existingConfigMap }}
{{- $wrong = append $wrong "ca.existingConfigMap is set together with ca.certificate: leave one of them out" }}
{{- end }}
{{- if and $v.agents.proxy.existingSecret (not $v.agents.proxy.url) }}
{{- $wrong = append $wrong "agents.proxy.existingSecret is set, and agents.proxy.url is not: it is for a proxy" }}
{{- end }}
{{- if and $v.agents.proxy.existingSecret (eq $v.agents.proxy.existingSecret $v.agents.existingSecret) }}
{{- $wrong = append $wrong "agents.proxy.existingSecret is also agents.existingSecret: builds can read the proxy's Secret, so it must not be the token's" }}
{{- end }}
{{- if and $v.proxy.existingSecret (not $v.proxy.httpsProxy) (not $v.proxy.httpProxy) }}
{{- $wrong = append $wrong "proxy.existingSecret is set, and neither proxy.httpsProxy nor proxy.httpProxy is: it is for a proxy" }}
{{- end }}
{{- if and (gt (int $v.replicaCount) 1) (not $v.scaler.leaderElection) }}
{{- $wrong = append $wrong (printf "replicaCount is %d, and scaler.leaderElection is false: without an election only one replica may run" (int $v.replicaCount)) }}
{{- end }}
{{- if gt (int $v.agents.minIdle) (int $v.scaler.maxAgents) }}
{{- $wrong = append $wrong (printf "agents.minIdle is %d, more than scaler.maxAgents, which is %d" (int $v.agents.minIdle) (int $v.scaler.maxAgents)) }}
{{- end }}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled }}
{{- $wrong = append $wrong "podMonitor.enabled is true together with serviceMonitor.enabled: every metric would be there twice, so leave one of them out" }}
{{- end }}
{{- if and (not $v.agents.builtinClass) (not $v.agents.classes) }}
{{- $wrong = append $wrong "agents.builtinClass is false, and agents.classes is empty: there would be no agent for any build" }}
{{- end }}
{{- $given := dict }}
{{- range $i, $target := $v.targetNamespaces }}
{{- if hasKey $given $target.name }}
{{- $wrong = append $wrong (printf "targetNamespaces[%d].name: %s is there twice: put all its roles into one entry" $i $target.name) }}
{{- end }}
{{- if eq $target.name $agents }}
{{- $wrong = append $wrong (printf "targetNamespaces[%d].name is the agents' namespace, %s: a role there could read the pool's token, so have builds deploy into another one" $i $target.name) }}
{{- end }}
{{- if eq $target.name $release }}
{{- $wrong = append $wrong (printf "targetNamespaces[%d].name is the scaler's namespace, %s: a role there could read the pool's token, so have builds deploy into another one" $i $target.name) }}
{{- end }}
{{- $roles := list }}
{{- range $target.roles }}
{{- $roles = append $roles (printf "%s/%s" .kind .name) }}
{{- end }}
{{- $_ := set $given $target.name $roles }}
{{- end }}
{{- range $name, $class := $v.agents.classes }}
{{- $class = $class | default dict }}
{{- if and $class.sharedServiceAccount $class.roleBindings }}
{{- $wrong = append $wrong (printf "agents.classes.%s.roleBindings is set together with sharedServiceAccount: no account is made that could be given the roles, so bind them to the shared one yourself" $name) }}
{{- end }}
{{- if and (hasKey $class "minIdle") (hasKey $class "maxAgents") (gt (int $class.minIdle) (int $class.maxAgents)) }}
{{- $wrong = append $wrong (printf "agents.classes.%s.minIdle is %d, more than its maxAgents, which is %d" $name (int $class.minIdle) (int $class.maxAgents)) }}
{{- end }}
{{- range $i, $binding := $class.roleBindings }}
{{- $role := printf "%s/%s" $binding.kind $binding.name }}
{{- if and $v.rbac.create (not (has $role (get $given $binding.namespace | default list))) }}
{{- $wrong = append $wrong (printf "agents.classes.%s.roleBindings[%d] is %s %s, which the scaler may not give: add it to targetNamespaces" $name $i $binding.namespace $role) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n\nvalues of azp-scaler:\n- %s\n" (join "\n- " $wrong)) }}
{{- end }}
{{- end }}
