package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// TestJITBehindAProxy has the scaler register agents that are downloaded, where the service
// has an authority of its own and nobody reaches it but through a proxy that wants to be told
// a password: its name means nothing to anybody else.
func TestJITBehindAProxy(t *testing.T) {
	s := newStage(t, env.Options{Seed: seedOf(t), Registration: "jit", Download: true, Proxy: true})
	workload := make([]env.Build, 3)
	for i := range workload {
		workload[i] = env.Build{Name: fmt.Sprintf("behind-%d", i), Steps: []string{
			s.briefStep() + `; env | grep -F "` + env.ProxyPassword("") + `" && exit 1; [ "$AGENT_PROXYURL" = "` + s.Proxy.URL() + `" ] && [ -s "$AGENT_CAINFO" ] && [ -s "$SSL_CERT_FILE" ]`,
		}}
	}
	before := s.Proxy.Counts()
	if before[env.ProxyUserAgents].Tunnels != 0 || before[env.ProxyUserScaler].Tunnels == 0 {
		t.Errorf("before any build the proxy was used %v", before)
	}
	queued := s.queue(t, workload...)
	s.finish(t, queued...)
	if err := s.WaitAtRest(t.Context(), 2*time.Minute); err != nil {
		t.Error(err)
	}
	after := s.Proxy.Counts()
	t.Logf("through the proxy: %+v, refused: %v", after, s.Proxy.Refused())
	// A download, a listener and a worker for each build at least.
	if got := after[env.ProxyUserAgents].Tunnels; got < 3*len(workload) {
		t.Errorf("the agents of %d builds opened %d tunnels", len(workload), got)
	}
	if refused := s.Proxy.Refused(); len(refused) > 0 {
		t.Errorf("the proxy refused requests, by status: %v", refused)
	}
	s.noSecretInJobs(t)
	s.judge(t)
}

// noSecretInJobs says that what the proxy wants to be told is in no Job that was ever made,
// and that the scaler's log does not tell it.
func (s *stage) noSecretInJobs(t *testing.T) {
	t.Helper()
	jobs := 0
	for path, about := range map[string]string{s.ScalerLog: "", s.Service.AuditLog: "", s.KubeAuditLog: `"resource":"jobs"`} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, about) {
				continue
			}
			if about != "" && strings.Contains(line, "AZP_PROXY_PASSWORD_FILE") {
				jobs++
			}
			if strings.Contains(line, env.ProxyPassword("")) {
				t.Errorf("%s gives a password of the proxy away: %s", path, line)
			}
		}
	}
	if jobs == 0 {
		t.Error("no Job names the file with the proxy's password, so that this shows nothing")
	}
}
