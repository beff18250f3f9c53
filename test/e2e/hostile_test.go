package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
	"github.com/azp-scaler/azp-scaler/test/e2e/hostile"
)

const (
	hostileName   = "hostile"
	neighbourName = "neighbour"
	decoyName     = "decoy"
	// playLimit bounds each thing that is waited for while the hostile build is there.
	playLimit = 2 * time.Minute
	playEvery = 50 * time.Millisecond
)

// intruder is a hostile build among those of a run, with the test's part in it, and a
// neighbour that it is to be kept from: a build that waits until the intruder is done.
type intruder struct {
	env      *env.Env
	listener *hostile.Listener
	gate     *env.Gate
	set      *canary.Set
	decoy    string
	log      func(format string, arguments ...any)
}

// newIntruder prepares both builds.
func newIntruder(t *testing.T, e *env.Env, seed uint64) *intruder {
	t.Helper()
	i := &intruder{env: e, decoy: fmt.Sprintf("decoy-%016x", seed), log: t.Logf}
	var err error
	if i.set, err = e.Canaries(); err != nil {
		t.Fatal(err)
	}
	if err := i.set.Add(decoyName, i.decoy); err != nil {
		t.Fatal(err)
	}
	if i.listener, err = hostile.Listen(e.HostAddress(), i.set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.listener.Close(); err != nil {
			t.Error(err)
		}
	})
	if i.gate, err = e.NewGate(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.gate.Close(); err != nil {
			t.Error(err)
		}
	})
	decoy := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: decoyName}, Data: map[string]string{decoyName: i.decoy}}
	if _, err := e.Admin.CoreV1().ConfigMaps(env.TargetNamespace).Create(t.Context(), decoy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return i
}

// builds are what is queued with the others.
func (i *intruder) builds() []env.Build {
	return []env.Build{
		{Name: neighbourName, Kind: env.KindPlain, Want: "succeeded", Steps: []string{i.gate.Step()}},
		{Name: hostileName, Kind: env.KindPlain, Want: "succeeded", Steps: hostileSteps(i.listener.URL(), i.decoy)},
	}
}

// hostileSteps hide the decoy and begin the search. What waits in the pod leaves the
// session, and so the agent's reach.
func hostileSteps(listener, decoy string) []string {
	return []string{strings.Join([]string{
		"export DECOY=" + decoy,
		`hidden=$(mktemp) && echo "$DECOY" > "$hidden" || exit 2`,
		"env -u DECOY setsid hostile-build wait " + listener + " </dev/null >/dev/null 2>&1 &",
		"exec hostile-build search " + listener,
	}, "\n")}
}

// play is the test's part, beside the other builds: it lets the intruder search, judges
// what it has found, tries what it has taken, and sees what is left of that afterwards.
func (i *intruder) play(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*playLimit)
	defer cancel()
	defer i.gate.Open()
	neighbour, err := i.neighbour(ctx)
	if err != nil {
		return err
	}
	i.listener.Give(hostile.Plan{Shapes: i.set.Shapes(), Calls: calls(neighbour.pod), Pages: i.pages(neighbour), Elsewhere: i.listener.Trap()})
	report, err := i.listener.Report(ctx)
	if err != nil {
		return err
	}
	wrong := []error{i.judge(report), i.judgeAnswers(report), i.judgeRights(ctx, report)}
	agent, err := parseAgent(report.Agent)
	if err != nil {
		wrong = append(wrong, err)
	}
	signedIn, err := agent.tryOthers(ctx, i.env, neighbour.agent)
	wrong = append(wrong, err)
	i.listener.Release()
	wrong = append(wrong, i.judgeEndOfRights(ctx, report), i.judgeEndOfAgent(ctx, agent, signedIn))
	if _, err := i.listener.Left(ctx); err != nil {
		wrong = append(wrong, err)
	}
	if err := errors.Join(wrong...); err != nil {
		return fmt.Errorf("%w\nthe hostile build's report, where it is not as was wanted:\n%s", err, report.Redacted())
	}
	return nil
}

// other is a build that the intruder is to be kept from.
type other struct{ agent, pod, node string }

// neighbour waits for it to run.
func (i *intruder) neighbour(ctx context.Context) (other, error) {
	var found other
	err := await(ctx, "the neighbour's build", func() (bool, error) {
		if i.gate.Arrived() == 0 {
			return false, nil
		}
		for _, build := range i.env.Service.Builds(i.env.Service.PoolID) {
			if build.Name == neighbourName {
				found.agent = build.AgentName
			}
		}
		pods, err := i.env.Admin.CoreV1().Pods(env.AgentsNamespace).List(ctx, metav1.ListOptions{LabelSelector: "job-name=" + found.agent})
		if err != nil || len(pods.Items) != 1 {
			return false, err
		}
		found.pod, found.node = pods.Items[0].Name, pods.Items[0].Status.HostIP
		return true, nil
	})
	return found, err
}

// pages are those of others that tell about themselves: scaler, kubelet and service.
func (i *intruder) pages(on other) []string {
	kubelet := "https://" + net.JoinHostPort(on.node, "10250")
	return []string{i.env.Scaler.URL() + "/metrics", kubelet + "/pods", kubelet + "/metrics", kubelet + "/containerLogs/" + env.AgentsNamespace + "/" + on.pod + "/remove", i.env.ServiceOrigin() + "/"}
}

// judge says what of a report is not as it has to be.
func (i *intruder) judge(report hostile.Report) error {
	var wrong []error
	bad := func(format string, arguments ...any) { wrong = append(wrong, fmt.Errorf(format, arguments...)) }
	for _, finding := range report.Findings {
		if finding.Name != decoyName {
			bad("the hostile build has found the %s in %s %s", finding.Name, finding.Kind, finding.Where)
		}
	}
	for _, kind := range hostile.Kinds() {
		if !slices.Contains(report.Found(decoyName), kind) {
			bad("the search overlooks what is in %s: it would not have found a token there", kind)
		}
	}
	if len(report.Troubles) > 0 {
		bad("the hostile build could not do all it wanted: %q", report.Troubles)
	}
	for _, name := range []string{"config.sh", "run.sh", "env.sh", "bin/Agent.Listener", "bin/Agent.Worker", ".agent", ".credentials", ".proxy"} {
		if !slices.Contains(report.Spoiled, "/azp/agent/"+name) {
			bad("%s was not spoilt", name)
		}
	}
	var exchange []string // Of the folders by which the containers of a pod tell each other something.
	for _, folder := range report.Writable {
		if strings.HasPrefix(folder, "/run/azp") {
			exchange = append(exchange, folder)
		}
	}
	var want []string
	if i.env.Registration() != byScaler {
		want = []string{"/run/azp/claimed"}
	}
	if !slices.Equal(exchange, want) {
		bad("of the pod's own folders a build can write %q, and should %q", exchange, want)
	}
	const probes = ":14300"
	if !slices.ContainsFunc(report.Ports, func(port string) bool { return strings.HasSuffix(port, probes) }) {
		bad("the search did not see the port of the probes, only %q", report.Ports)
	}
	return errors.Join(wrong...)
}

// wantNoHits fails the test if anybody ever went where the spoilt files lead.
func (i *intruder) wantNoHits(t *testing.T) {
	t.Helper()
	for _, hit := range i.listener.Hits() {
		t.Errorf("somebody stepped into a trap of the hostile build: %s", hit)
	}
}

// await asks until it is so, an error comes, or the context ends.
func await(ctx context.Context, what string, is func() (bool, error)) error {
	tick := time.NewTicker(playEvery)
	defer tick.Stop()
	for {
		if done, err := is(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
