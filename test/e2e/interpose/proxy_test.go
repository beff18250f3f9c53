package interpose_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/azp-scaler/azp-scaler/test/e2e/interpose"
)

// through gives a client of handler that goes through a proxy.
func through(t *testing.T, handler http.HandlerFunc, cut func(interpose.Write, interpose.Moment) bool) kubernetes.Interface {
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
	proxy, err := interpose.Start(direct, indirect, cut)
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
	client := through(t, handler, func(w interpose.Write, m interpose.Moment) bool {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, m.String()+" "+w.Method)
		return (w.N == 0 && m == interpose.Before) || (w.N == 1 && m == interpose.After)
	})
	create := func() error {
		_, err := client.CoreV1().ServiceAccounts("x").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
		return err
	}
	if err := create(); err == nil || served.Load() != 0 {
		t.Fatalf("cut before: want an error and nothing done, got %v and %d done", err, served.Load())
	}
	if err := create(); err == nil || served.Load() != 1 {
		t.Fatalf("cut after: want an error and it done, got %v and %d done", err, served.Load())
	}
	if err := create(); err != nil || served.Load() != 2 {
		t.Fatalf("not cut: want it done, got %v and %d done", err, served.Load())
	}
	if _, err := client.CoreV1().ServiceAccounts("x").Get(t.Context(), "a", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 5 {
		t.Errorf("want two calls for each write but the first, and none for a read, got %v", seen)
	}
}
