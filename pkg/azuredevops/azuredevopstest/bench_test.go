package azuredevopstest_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// BenchmarkQueries reads a pool of 2,000 queued requests, 50 agents and a past
// of 50,000 rows, as a poll does and as a careless poll does.
func BenchmarkQueries(b *testing.B) {
	srv, err := azuredevopstest.New(azuredevopstest.Options{Tokens: allTokens()})
	if err != nil {
		b.Fatal(err)
	}
	defer srv.Close()
	pool := srv.CreatePool("builds")
	if err := srv.AddHistory(pool, 50_000); err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: discardTransport{srv}}
	url := fmt.Sprintf("https://fake/acme/_apis/distributedtask/pools/%d/", pool)
	for i := range 50 {
		send(b, client, http.MethodPost, url+"agents", fmt.Sprintf(`{"name":"agent-%d","version":"4.260.0"}`, i))
	}
	for range 2000 {
		if _, err := srv.Queue(azuredevopstest.Build{PoolID: pool, Name: "build"}); err != nil {
			b.Fatal(err)
		}
	}
	for _, query := range []string{"completedRequestCount=0", "$top=200", ""} {
		b.Run("query="+query, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				send(b, client, http.MethodGet, url+"jobrequests?"+query, "")
			}
		})
	}
}

// discardTransport answers by calling the handler and drops the body, so that
// what is measured is the service alone.
type discardTransport struct{ srv *azuredevopstest.Server }

func (d discardTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &discardWriter{header: http.Header{}}
	r.TLS = &tls.ConnectionState{}
	r.Host = r.URL.Host
	if r.Body == nil {
		r.Body = http.NoBody
	}
	d.srv.ServeHTTP(w, r)
	return &http.Response{StatusCode: w.status, Header: w.header, Body: http.NoBody, Request: r}, nil
}

type discardWriter struct {
	header http.Header
	status int
}

func (w *discardWriter) Header() http.Header         { return w.header }
func (w *discardWriter) WriteHeader(status int)      { w.status = status }
func (w *discardWriter) Write(p []byte) (int, error) { return io.Discard.Write(p) }

func send(b *testing.B, client *http.Client, method, url, body string) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, url, strings.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", basic(managePAT))
	req.Header.Set("Accept", "application/json;api-version=7.1-preview.1")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s %s: %d %v", method, url, resp.StatusCode, err)
	}
}
