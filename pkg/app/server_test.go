package app

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/azp-scaler/azp-scaler/pkg/scaler"
)

func TestCallsOfPods(t *testing.T) {
	fine := func() string { return "" }
	answers := map[string]error{
		"with-a-build": nil,
		"unknown":      scaler.ErrUnknownJob,
		"again":        scaler.ErrClaimUnderWay,
		"away":         errors.New("GET https://dev.azure.com/contoso: 503"),
	}
	server := httptest.NewServer(handler(prometheus.NewRegistry(), fine, fine, func(_ context.Context, uid string) error { return answers[uid] }))
	defer server.Close()
	for _, test := range []struct {
		method, path string
		want         int
	}{
		{http.MethodPost, "/agents/with-a-build/claimed", http.StatusNoContent},
		{http.MethodPost, "/agents/unknown/claimed", http.StatusNotFound},
		{http.MethodPost, "/agents/again/claimed", http.StatusServiceUnavailable},
		{http.MethodPost, "/agents/away/claimed", http.StatusServiceUnavailable},
		{http.MethodGet, "/agents/with-a-build/claimed", http.StatusMethodNotAllowed},
		{http.MethodPost, "/agents/with-a-build", http.StatusNotFound},
	} {
		request, err := http.NewRequestWithContext(t.Context(), test.method, server.URL+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != test.want {
			t.Errorf("%s %s: %d, want %d", test.method, test.path, answer.StatusCode, test.want)
		}
		if strings.Contains(string(body), "contoso") {
			t.Errorf("%s %s tells a build what it has no use for: %s", test.method, test.path, body)
		}
	}
}
