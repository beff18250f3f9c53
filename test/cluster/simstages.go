package cluster

import (
	"bytes"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// nextStep is the life of a pod on a simulated node: a jq expression over the
// pod that answers with the name of the step that comes next. Every stage is
// selected by one answer, so no two stages ever apply to the same pod.
const nextStep = `
. as $pod | ($pod.metadata.annotations // {}) as $a | ($pod.status // {}) as $s
| ($s.phase // "Pending") as $phase | ($a["SIMULATE/outcome"] // "") as $outcome
| ($s.containerStatuses // []) as $c | (($s.initContainerStatuses // []) + $c) as $all
| any($c[]; .started == true) as $started | any($c[]; .ready == true) as $ready
| ($a["SIMULATE/busy"] == "true" and $ready) as $occupy
| if $pod.metadata.deletionTimestamp != null then
    (if $phase == "Succeeded" or $phase == "Failed" then "remove" else "terminate" end)
  elif $phase == "Succeeded" or $phase == "Failed" then "stay"
  elif $s.startTime == null then "accept"
  elif $phase == "Pending" then
    (if $outcome == "image-pull-back-off" then
       (if any($all[]; .state.waiting.reason == "ImagePullBackOff") then "stay" else "back-off" end)
     elif $outcome == "creating" then "stay"
     else "run" end)
  elif ($c | length) > 0 and all($c[]; .state.terminated != null) then "wind-up"
  elif $a["SIMULATE/finish-after"] != null and ($started or $outcome == "silent") and ($occupy | not) then "finish"
  elif ($started | not) then (if $outcome == "silent" then "stay" else "listen" end)
  elif $occupy then "occupy"
  else "stay" end`

// prelude begins every status template.
const prelude = `{{ $now := Now }}{{ $pod := . }}{{ $annotations := or .metadata.annotations dict }}
{{ $sidecars := false }}{{ range .spec.initContainers }}{{ if eq (or .restartPolicy "") "Always" }}{{ $sidecars = true }}{{ end }}{{ end }}
{{ $code := or (get $annotations "SIMULATE/exit-code") "0" }}
`

// The states of a container, as templates.
const (
	running    = `running: {startedAt: {{ $since | Quote }}}`
	asItWas    = `{{ $state | toJson }}`
	completed  = `terminated: {exitCode: 0, reason: Completed, startedAt: {{ $since | Quote }}, finishedAt: {{ $now | Quote }}}`
	exited     = `terminated: {exitCode: {{ $code }}, reason: {{ ternary "Completed" "Error" (eq $code "0") }}, startedAt: {{ $since | Quote }}, finishedAt: {{ $now | Quote }}}`
	terminated = `terminated: {exitCode: 143, reason: Error, startedAt: {{ $since | Quote }}, finishedAt: {{ $now | Quote }}}`
	// initializing is a container that waits for the init containers, if any.
	initializing = `waiting: {reason: {{ if $pod.spec.initContainers }}PodInitializing{{ else }}ContainerCreating{{ end }}}`
	// endedByForce is what becomes of a container when its pod is deleted.
	endedByForce = `{{ if hasKey $state "running" }}` + terminated + `{{ else }}` + asItWas + `{{ end }}`
	noImage      = `{{ if eq $i 0 }}waiting: {reason: ImagePullBackOff, message: {{ printf "Back-off pulling image %q" $item.image | Quote }}}{{ else }}waiting: {reason: PodInitializing}{{ end }}`
)

// containerStates renders a list of container statuses. In the templates given,
// $item is the container, $i its place, $state its state until now, $since the
// time it has been running since, and $sidecar whether it is one.
func containerStates(list, state, ready, started string) string {
	field := list + "Statuses"
	return `{{ with .spec.` + list + `s }}
` + field + `:
{{ range $i, $item := . }}
{{ $sidecar := eq (or $item.restartPolicy "") "Always" }}
{{ $before := dict }}{{ with $pod.status.` + field + ` }}{{ if lt $i (len .) }}{{ $before = index . $i }}{{ end }}{{ end }}
{{ $state := or (get $before "state") dict }}
{{ $since := $now }}{{ with get $state "running" }}{{ $since = .startedAt }}{{ end }}
- name: {{ $item.name | Quote }}
  image: {{ $item.image | Quote }}
  imageID: ""
  restartCount: 0
  ready: ` + ready + `
  started: ` + started + `
  state:
    ` + state + `
{{ end }}
{{ end }}
`
}

func mainContainers(state, ready, started string) string {
	return containerStates("container", state, ready, started)
}

// initContainers renders the init containers, sidecars in another state than
// those that run once.
func initContainers(sidecar, once, ready, started string) string {
	return containerStates("initContainer", `{{ if $sidecar }}`+sidecar+`{{ else }}`+once+`{{ end }}`, ready, started)
}

// conditions renders the pod's conditions; initialized may be empty.
func conditions(initialized, ready string) string {
	var text strings.Builder
	text.WriteString("conditions:\n")
	for _, c := range [][2]string{{"Initialized", initialized}, {"Ready", ready}, {"ContainersReady", ready}} {
		if c[1] != "" {
			fmt.Fprintf(&text, "- {type: %s, status: %q, lastTransitionTime: {{ $now | Quote }}}\n", c[0], c[1])
		}
	}
	return text.String()
}

// step is one stage of a pod's life.
type step struct {
	// name is an answer of nextStep.
	name string
	// milliseconds until it is taken, unless the annotation delay says otherwise.
	milliseconds int
	delay        string
	// status is the template of the pod's new status; empty: the pod is removed.
	status string
	// warning is the text of an Event.
	warning string
}

// steps is the life of a pod in order. Sidecars outlive the containers a little,
// as they do on a real node.
func steps() []step {
	const (
		finalPhase = `phase: {{ ternary "Succeeded" "Failed" (eq $code "0") }}` + "\n"
		addresses  = `{{ range PodIPsWith .spec.nodeName (or .spec.hostNetwork false) (or .metadata.uid "") (or .metadata.name "") (or .metadata.namespace "") }}
podIP: {{ . | Quote }}
podIPs: [{ip: {{ . | Quote }}}]
{{ end }}
`
		worstPhase = `{{ $phase := "Succeeded" }}{{ range .status.containerStatuses }}{{ if ne (printf "%v" .state.terminated.exitCode) "0" }}{{ $phase = "Failed" }}{{ end }}{{ end }}
phase: {{ $phase }}
`
	)
	return []step{
		{name: "accept", status: conditions("{{ if .spec.initContainers }}False{{ else }}True{{ end }}", "False") +
			initContainers(initializing, initializing, "false", "false") + mainContainers(initializing, "false", "false") +
			"phase: Pending\nstartTime: {{ $now | Quote }}\n{{ range NodeIPsWith .spec.nodeName }}\nhostIP: {{ . | Quote }}\n{{ end }}\n"},
		{name: "back-off", milliseconds: 100, warning: "Error: ImagePullBackOff", status: "{{ if .spec.initContainers }}\n" +
			initContainers(noImage, noImage, "false", "false") + "{{ else }}\n" + mainContainers(noImage, "false", "false") + "{{ end }}\n"},
		{name: "run", milliseconds: 300, delay: SimulateStartAfter, status: conditions("True", "False") +
			initContainers(running, completed, "true", "{{ $sidecar }}") + mainContainers(running, "false", "false") + addresses + "phase: Running\n"},
		{name: "listen", milliseconds: 200, delay: SimulateListenAfter, status: conditions("", "True") + mainContainers(running, "true", "true")},
		{name: "occupy", status: conditions("", "False") + mainContainers(running, "false", "true")},
		{name: "finish", delay: SimulateFinishAfter, status: conditions("", "False") + mainContainers(exited, "false", "false") +
			"{{ if not $sidecars }}\n" + finalPhase + "{{ end }}\n"},
		{name: "wind-up", milliseconds: 200, status: initContainers(completed, asItWas, "{{ not $sidecar }}", "false") + worstPhase},
		{name: "terminate", milliseconds: 100, status: conditions("", "False") +
			initContainers(endedByForce, endedByForce, "false", "false") + mainContainers(endedByForce, "false", "false") + "phase: Failed\n"},
		{name: "remove"},
	}
}

// nodeStatus makes a simulated node ready.
const nodeStatus = `{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- {type: {{ .type | Quote }}, status: {{ .status | Quote }}, reason: {{ .reason | Quote }}, message: {{ .message | Quote }}, lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $now | Quote }}}
{{ end }}
addresses:
- {type: InternalIP, address: {{ NodeIP | Quote }}}
nodeInfo: {architecture: amd64, operatingSystem: linux, osImage: simulated, kernelVersion: simulated, containerRuntimeVersion: simulated, kubeletVersion: simulated, kubeProxyVersion: "", bootID: "", machineID: "", systemUUID: ""}
`

// renderStages gives KWOK's configuration, YAML.
func renderStages() ([]byte, error) {
	ready := requirement(`.status.conditions[]? | select(.type == "Ready") | .status`, "NotIn", "True")
	documents := []map[string]any{stage("node-ready", "Node", ready, map[string]any{"next": map[string]any{"statusTemplate": nodeStatus}})}
	for _, s := range steps() {
		documents = append(documents, stage("pod-"+s.name, "Pod", requirement(strings.Join(strings.Fields(nextStep), " "), "In", s.name), s.spec()))
	}
	var text bytes.Buffer
	for _, document := range documents {
		encoded, err := yaml.Marshal(document)
		if err != nil {
			return nil, fmt.Errorf("encoding KWOK's stages: %w", err)
		}
		text.WriteString("---\n")
		text.Write(encoded)
	}
	return bytes.ReplaceAll(text.Bytes(), []byte("SIMULATE/"), []byte(simulationPrefix)), nil
}

func (s step) spec() map[string]any {
	delay := map[string]any{"durationMilliseconds": s.milliseconds}
	if s.delay != "" {
		delay["durationFrom"] = map[string]any{"expressionFrom": fmt.Sprintf(".metadata.annotations[%q]", s.delay)}
	}
	next := map[string]any{}
	if s.status == "" {
		next["delete"] = true
	} else {
		next["statusTemplate"] = prelude + s.status
	}
	if s.warning != "" {
		next["event"] = map[string]any{"type": "Warning", "reason": "Failed", "message": s.warning}
	}
	return map[string]any{"delay": delay, "next": next}
}

func requirement(key, operator string, values ...string) map[string]any {
	return map[string]any{"key": key, "operator": operator, "values": values}
}

func stage(name, kind string, selected map[string]any, spec map[string]any) map[string]any {
	spec["resourceRef"] = map[string]any{"apiGroup": "v1", "kind": kind}
	spec["selector"] = map[string]any{"matchExpressions": []any{selected}}
	return map[string]any{
		"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage",
		"metadata": map[string]any{"name": name}, "spec": spec,
	}
}
