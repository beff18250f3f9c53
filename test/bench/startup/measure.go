package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/test/audit"
)

// modes gives the ways to register an agent, the one that others are compared with first.
func modes() []string { return []string{"config", "jit"} }

// span is the time in which one build and its agent alone were there.
type span struct {
	mode     string
	agent    string // Also the name of its Job.
	from, to time.Time
}

// logs are what the two servers have written down, and by which names they know whom.
type logs struct {
	kube       []audit.KubeEvent
	service    []audit.ServiceEvent
	scalerUser string // For the API server.
	scaler     string // For the service.
	pods       string // For the service: whoever registers and removes agents in pods.
}

// Build is what one build has taken.
type Build struct {
	Mode  string `json:"mode"`
	Agent string `json:"agent"`
	// Letting is from the Job's creation until it was let run, Starting from there until
	// its agent listened, and JobToListening is both.
	JobToListening float64 `json:"job_to_listening_seconds"`
	Letting        float64 `json:"job_to_let_run_seconds"`
	Starting       float64 `json:"let_run_to_listening_seconds"`
	Calls          Calls   `json:"calls"`
}

// Calls are numbers of requests.
type Calls struct {
	// To the API server, about what belongs to the Job, without watches, Events and
	// questions about rights. Of the kubelet only the writes are logged.
	KubernetesScaler  int `json:"kubernetes_by_scaler"`
	KubernetesKubelet int `json:"kubernetes_by_kubelet"`
	KubernetesPod     int `json:"kubernetes_by_pod"`
	// To the service, without what goes on when there is no build: the polls of the queue
	// and the question for the parallel jobs. Of the pod's those of registering and
	// removing the agent are apart from those of the agent itself.
	ServiceScaler       int `json:"service_by_scaler"`
	ServiceRegistration int `json:"service_by_pod_for_registration"`
	ServiceAgent        int `json:"service_by_agent"`
}

// measure finds in the logs what a build has taken.
func (l logs) measure(s span) (Build, error) {
	b := Build{Mode: s.mode, Agent: s.agent}
	var created, let, listening time.Time
	for _, event := range l.kube {
		if !belongs(event, s.agent) || !event.Succeeded() {
			continue
		}
		isJob := event.Group == "batch" && event.Resource == "jobs" && event.Subresource == "" && event.User == l.scalerUser
		switch {
		case isJob && event.Verb == "create":
			created = event.Done
		case isJob && event.Verb == "patch" && let.IsZero():
			let = event.Done
		}
	}
	for _, event := range l.service {
		if event.Event == "session-created" && event.AgentName == s.agent && listening.IsZero() {
			listening = event.Time
		}
	}
	if created.IsZero() || let.Before(created) || listening.Before(let) {
		return b, fmt.Errorf("the logs do not tell how agent %q came up: Job created %v, let run %v, listening %v", s.agent, created, let, listening)
	}
	b.Letting, b.Starting, b.JobToListening = let.Sub(created).Seconds(), listening.Sub(let).Seconds(), listening.Sub(created).Seconds()
	b.Calls = l.calls(s)
	return b, nil
}

// belongs tells whether a request is about the Job or what is named after it.
func belongs(event audit.KubeEvent, job string) bool {
	return event.Name == job || strings.HasPrefix(event.Name, job+"-")
}

func (l logs) calls(s span) Calls {
	var c Calls
	for _, event := range l.kube {
		_, account, _ := strings.Cut(event.User, "system:serviceaccount:")
		_, account, _ = strings.Cut(account, ":")
		switch {
		case event.Verb == "watch" || strings.HasPrefix(event.Group, "authorization."):
		case account == s.agent:
			c.KubernetesPod++
		case !belongs(event, s.agent):
		case event.User == l.scalerUser:
			c.KubernetesScaler++
		case strings.HasPrefix(event.User, "system:node:"):
			c.KubernetesKubelet++
		}
	}
	for _, event := range l.service {
		if event.Event != "http" || event.Time.Before(s.from) || event.Time.After(s.to) {
			continue
		}
		switch {
		case event.By == l.scaler && !standing(event.Detail):
			c.ServiceScaler++
		case event.By == l.pods:
			c.ServiceRegistration++
		case event.By == "anonymous", strings.HasPrefix(event.By, "agent:"), strings.HasPrefix(event.By, "job:"):
			c.ServiceAgent++
		}
	}
	return c
}

// standing tells the calls that a scaler makes whether there is a build or not.
func standing(call string) bool {
	return strings.HasPrefix(call, "GET ") && (strings.HasSuffix(call, "/jobrequests") || strings.HasSuffix(call, "/resourceusage"))
}

// Spread is the middle of some figures and their bounds.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spread gives that of at least one figure.
func spread(figures []float64) Spread {
	slices.Sort(figures)
	middle := len(figures) / 2
	s := Spread{Median: figures[middle], Min: figures[0], Max: figures[len(figures)-1]}
	if len(figures)%2 == 0 {
		s.Median = (figures[middle-1] + figures[middle]) / 2
	}
	return s
}

// row is one figure of a build.
type row struct {
	key, title string
	of         func(Build) float64
}

// rows gives all that is compared.
func rows() []row {
	count := func(of func(Calls) int) func(Build) float64 {
		return func(b Build) float64 { return float64(of(b.Calls)) }
	}
	return []row{
		{"job_to_listening_seconds", "seconds from the Job to an agent that listens", func(b Build) float64 { return b.JobToListening }},
		{"job_to_let_run_seconds", "  until the scaler lets the Job run", func(b Build) float64 { return b.Letting }},
		{"let_run_to_listening_seconds", "  from there on", func(b Build) float64 { return b.Starting }},
		{"kubernetes_calls", "calls to the API server", func(b Build) float64 {
			return float64(b.Calls.KubernetesScaler + b.Calls.KubernetesKubelet + b.Calls.KubernetesPod)
		}},
		{"kubernetes_calls_by_scaler", "  by the scaler", count(func(c Calls) int { return c.KubernetesScaler })},
		{"kubernetes_calls_by_kubelet", "  by the kubelet, for the pod (writes)", count(func(c Calls) int { return c.KubernetesKubelet })},
		{"kubernetes_calls_by_pod", "  by the pod", count(func(c Calls) int { return c.KubernetesPod })},
		{"service_calls", "calls to the service", func(b Build) float64 {
			return float64(b.Calls.ServiceScaler + b.Calls.ServiceRegistration + b.Calls.ServiceAgent)
		}},
		{"service_calls_by_scaler", "  by the scaler, polls of the queue left out", count(func(c Calls) int { return c.ServiceScaler })},
		{"service_calls_by_pod_for_registration", "  by the pod, to register and remove the agent", count(func(c Calls) int { return c.ServiceRegistration })},
		{"service_calls_by_agent", "  by the agent program and its build", count(func(c Calls) int { return c.ServiceAgent })},
	}
}

// Result is what out/bench-startup.json holds.
type Result struct {
	Node string `json:"node"`
	Seed uint64 `json:"seed"`
	// Figures are by mode and figure, over the builds of that mode.
	Figures map[string]map[string]Spread `json:"figures"`
	// Ratios are of the medians, jit to config; there is none to nothing.
	Ratios map[string]float64 `json:"ratio_jit_to_config"`
	Builds []Build            `json:"builds"`
}

// summarise compares the modes.
func summarise(builds []Build) Result {
	result := Result{Figures: map[string]map[string]Spread{}, Ratios: map[string]float64{}, Builds: builds}
	for _, mode := range modes() {
		result.Figures[mode] = map[string]Spread{}
		for _, row := range rows() {
			var figures []float64
			for _, build := range builds {
				if build.Mode == mode {
					figures = append(figures, row.of(build))
				}
			}
			if len(figures) > 0 {
				result.Figures[mode][row.key] = spread(figures)
			}
		}
	}
	base, other := modes()[0], modes()[1]
	for _, row := range rows() {
		if of := result.Figures[base][row.key].Median; of > 0 {
			result.Ratios[row.key] = result.Figures[other][row.key].Median / of
		}
	}
	return result
}

// table shows the medians of both modes with their bounds, and the ratios.
func (r Result) table() string {
	var text strings.Builder
	line := func(title, config, jit, ratio string) {
		fmt.Fprintf(&text, "%-50s  %22s  %22s  %8s\n", title, config, jit, ratio)
	}
	line(fmt.Sprintf("per build, of %d on a %s node: median (min to max)", len(r.Builds), r.Node), modes()[0], modes()[1], "ratio")
	for _, row := range rows() {
		cell := func(mode string) string {
			s, form := r.Figures[mode][row.key], "%.0f (%.0f to %.0f)"
			if strings.HasSuffix(row.key, "_seconds") {
				form = "%.2f (%.2f to %.2f)"
			}
			return fmt.Sprintf(form, s.Median, s.Min, s.Max)
		}
		ratio := "-"
		if of, known := r.Ratios[row.key]; known {
			ratio = fmt.Sprintf("%.2f", of)
		}
		line(row.title, cell(modes()[0]), cell(modes()[1]), ratio)
	}
	return text.String()
}
