package interpose_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// through gives a client of handler that goes through a proxy.
func through(t *testing.T, handler http.HandlerFunc, hook interpose.Hook) kubernetes.Interface {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	config := api.NewConfig()
	config.Clusters["c"] = &api.Cluster{
		Server:                   server.URL,
		CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}
	config.AuthInfos["u"] = &api.AuthInfo{Token: "canary"}
	config.Contexts["x"] = &api.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	direct, indirect := filepath.Join(t.TempDir(), "direct"), filepath.Join(t.TempDir(), "indirect")
	if err := clientcmd.WriteToFile(*config, direct); err != nil {
		t.Fatal(err)
	}
	proxy, err := interpose.Start("kubernetes", direct, indirect, hook)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	loaded, err := clientcmd.BuildConfigFromFlags("", indirect)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(loaded)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestCuts(t *testing.T) {
	t.Parallel()
	var served atomic.Int32
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer canary" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		served.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"ServiceAccount","apiVersion":"v1","metadata":{"name":"a"}}`))
	}
	var mu sync.Mutex
	var seen []string
	client := through(t, handler, func(c interpose.Call, m interpose.Moment) bool {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, m.String()+" "+c.Kind())
		return (c.N == 0 && m == interpose.Before) || (c.N == 1 && m == interpose.Sent)
	})
	create := func() error {
		_, err := client.CoreV1().ServiceAccounts("x").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
		return err
	}
	if err := create(); err == nil || served.Load() != 0 {
		t.Fatalf("cut before: want an error and nothing done, got %v and %d done", err, served.Load())
	}
	if err := create(); err == nil || served.Load() != 1 {
		t.Fatalf("cut when it was sent: want an error and it done, got %v and %d done", err, served.Load())
	}
	if err := create(); err != nil || served.Load() != 2 {
		t.Fatalf("not cut: want it done, got %v and %d done", err, served.Load())
	}
	if _, err := client.CoreV1().ServiceAccounts("x").Get(t.Context(), "a", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	post, get := " kubernetes POST serviceaccounts", " kubernetes GET serviceaccounts/*"
	want := []string{"before" + post, "before" + post, "sent" + post, "before" + post, "sent" + post, "answered" + post, "before" + get, "sent" + get, "answered" + get}
	if !slices.Equal(seen, want) {
		t.Errorf("the hook was asked about\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
}

// TestWatchIsAnsweredAtItsBeginning: its end may be hours away.
func TestWatchIsAnsweredAtItsBeginning(t *testing.T) {
	t.Parallel()
	answered := make(chan struct{})
	handler := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	client := through(t, handler, func(c interpose.Call, m interpose.Moment) bool {
		if m == interpose.Answered && c.Kind() == "kubernetes WATCH serviceaccounts" {
			close(answered)
		}
		return false
	})
	watch, err := client.CoreV1().ServiceAccounts("x").Watch(t.Context(), metav1.ListOptions{Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	select {
	case <-answered:
	case <-time.After(30 * time.Second):
		t.Fatal("the hook is not asked")
	}
}

// TestAnswerlessCalls: the hook hears nothing of an answer that a client can't get.
func TestAnswerlessCalls(t *testing.T) {
	t.Parallel()
	var moments atomic.Int32
	server := httptest.NewServer(interpose.Handler("service", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	}), func(interpose.Call, interpose.Moment) bool {
		moments.Add(1)
		return false
	}))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := http.DefaultClient.Do(request); err == nil {
		_ = response.Body.Close()
		t.Error("there is an answer")
	}
	server.Close()
	if moments.Load() != 1 {
		t.Errorf("the hook was asked %d times, want once", moments.Load())
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for want, call := range map[string]interpose.Call{
		"kubernetes LIST jobs":                     {Server: "kubernetes", Method: "GET", Path: "/apis/batch/v1/namespaces/azp-agents/jobs"},
		"kubernetes WATCH pods":                    {Server: "kubernetes", Method: "GET", Path: "/api/v1/namespaces/azp-agents/pods", Watch: true},
		"kubernetes PATCH jobs/*":                  {Server: "kubernetes", Method: "PATCH", Path: "/apis/batch/v1/namespaces/azp-agents/jobs/azp-1-2"},
		"kubernetes POST serviceaccounts/*/token":  {Server: "kubernetes", Method: "POST", Path: "/api/v1/namespaces/a/serviceaccounts/b/token"},
		"kubernetes GET namespaces/*":              {Server: "kubernetes", Method: "GET", Path: "/api/v1/namespaces/shop"},
		"kubernetes POST selfsubjectaccessreviews": {Server: "kubernetes", Method: "POST", Path: "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"},
		"kubernetes GET version":                   {Server: "kubernetes", Method: "GET", Path: "/version"},
		"service DELETE pools/*/agents/*":          {Server: "service", Method: "DELETE", Path: "/acme/_apis/distributedtask/pools/12/agents/345"},
		"service GET pools/*/jobrequests":          {Server: "service", Method: "GET", Path: "/acme/_apis/distributedtask/pools/12/jobrequests"},
		"service OPTIONS _apis":                    {Server: "service", Method: "OPTIONS", Path: "/acme/_apis"},
	} {
		if got := call.Kind(); got != want {
			t.Errorf("%s is of the kind %q, want %q", call, got, want)
		}
	}
}
