package azuredevops

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestPackage(t *testing.T) {
	t.Parallel()
	sum := strings.Repeat("0A", 32)
	dashed := strings.TrimSuffix(strings.Repeat("0a-", 32), "-")
	row := func(version, url, hash, file string) string {
		return fmt.Sprintf(`{"type":"agent","platform":"linux-x64","version":%s,"downloadUrl":%q,"hashValue":%q,"filename":%q}`, version, url, hash, file)
	}
	good := row(`{"major":4,"minor":248}`, "https://cdn.test/agent/4.248.0/a.tar.gz?sig=x", sum, "a.tar.gz")
	older := row(`{"major":4,"minor":240,"patch":1}`, "https://cdn.test/b.tar.gz", dashed, "")
	tests := map[string]struct {
		version string
		rows    []string
		want    Package
		kind    error
		says    string
	}{
		"newest":                {"", []string{good}, Package{"4.248.0", "https://cdn.test/agent/4.248.0/a.tar.gz?sig=x", strings.ToLower(sum), "a.tar.gz"}, nil, ""},
		"dashed, no name":       {"4.240.1", []string{good, older}, Package{"4.240.1", "https://cdn.test/b.tar.gz", strings.ToLower(sum), "b.tar.gz"}, nil, ""},
		"version not there":     {"9.9.9", []string{good}, Package{}, ErrNotFound, "newest offered: 4.248.0"},
		"unknown platform":      {"", nil, Package{}, ErrNotFound, "AZP_PLATFORM"},
		"MD5":                   {"", []string{row(`{}`, "https://x/y", "abcd", "y")}, Package{}, ErrUnexpectedAnswer, "no SHA-256"},
		"no hash":               {"", []string{row(`{}`, "https://x/y", "", "y")}, Package{}, ErrUnexpectedAnswer, "no SHA-256"},
		"no URL":                {"", []string{row(`{}`, "", sum, "y")}, Package{}, ErrUnexpectedAnswer, "download URL"},
		"a file's URL":          {"", []string{row(`{}`, "file:///etc/passwd", sum, "y")}, Package{}, ErrUnexpectedAnswer, "download URL"},
		"a name that leads out": {"", []string{row(`{}`, "https://x/y", sum, "../../etc/passwd")}, Package{}, ErrUnexpectedAnswer, "no file name"},
		"a hidden name":         {"", []string{row(`{}`, "https://x/y", sum, "..")}, Package{}, ErrUnexpectedAnswer, "no file name"},
		"no name anywhere":      {"", []string{row(`{}`, "https://x/", sum, "")}, Package{}, ErrUnexpectedAnswer, "no file name"},
		"no version":            {"", []string{`{"version":7}`}, Package{}, ErrUnexpectedAnswer, "package"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newService(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/Acme/_apis/distributedtask/packages/agent/linux-x64" || r.URL.Query().Get("$top") == "" {
					t.Errorf("asked for %s", r.URL)
				}
				answerJSON(w, 200, fmt.Sprintf(`{"count":%d,"value":[%s]}`, len(test.rows), strings.Join(test.rows, ",")))
			})
			got, err := c.Package(t.Context(), "linux-x64", test.version)
			if got != test.want || !errors.Is(err, test.kind) || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestDownload fetches a package from the service's own host and from a content
// network it redirects to, which must not see the token.
func TestDownload(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("agent"), 100_000)
	hash := sha256.Sum256(content)
	sum := hex.EncodeToString(hash[:])
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, header := range []string{"Authorization", "Referer", "Cookie"} {
			if got := r.Header.Get(header); got != "" {
				t.Errorf("the content network saw %s: %s", header, got)
			}
		}
		_, _ = w.Write(content)
	}))
	defer cdn.Close()
	c := newService(t, func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		if password != testToken {
			t.Errorf("%s without the token", r.URL)
		}
		switch r.URL.Path {
		case "/file":
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content)
		case "/moved":
			http.Redirect(w, r, cdn.URL+"/agent.tar.gz", http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/page":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, signInPage)
		case "/cut":
			cutBody("agent")(w, r)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	origin := strings.TrimSuffix(c.URL(), "/Acme")
	tests := map[string]struct {
		url, sum string
		kind     error
		says     string
	}{
		"the service's": {origin + "/file", sum, nil, ""},
		"redirected":    {origin + "/moved", sum, nil, ""},
		"elsewhere":     {cdn.URL + "/x?sig=SECRETQUERY", sum, nil, ""},
		"another file":  {cdn.URL + "/x?sig=SECRETQUERY", strings.Repeat("0", 64), ErrWrongHash, sum},
		"redirect loop": {origin + "/loop", sum, ErrUnexpectedAnswer, "too often"},
		"a page":        {origin + "/page", sum, ErrUnexpectedAnswer, "a page came instead of a file"},
		"not there":     {origin + "/nowhere", sum, ErrUnexpectedAnswer, "404"},
		"cut":           {origin + "/cut", sum, ErrUnexpectedAnswer, "cut short"},
		"no URL":        {"://", sum, ErrUnexpectedAnswer, "does not parse"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var file bytes.Buffer
			var last [2]int64
			calls := 0
			err := c.Download(t.Context(), Package{URL: test.url, SHA256: test.sum, Filename: "agent.tar.gz"}, &file, func(done, total int64) {
				if calls++; done <= last[0] {
					t.Errorf("progress went from %d to %d", last[0], done)
				}
				last = [2]int64{done, total}
			})
			if !errors.Is(err, test.kind) || err != nil && (!strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "SECRETQUERY")) {
				t.Fatalf("got %v", err)
			}
			if test.kind == nil {
				if !bytes.Equal(file.Bytes(), content) || last[0] != int64(len(content)) || calls < 2 {
					t.Errorf("%d bytes, progress %v in %d calls", file.Len(), last, calls)
				}
				if name == "the service's" && last[1] != int64(len(content)) {
					t.Errorf("total %d", last[1])
				}
			}
		})
	}
	full := errors.New("disk full")
	if err := c.Download(t.Context(), Package{URL: origin + "/file", SHA256: sum}, failingWriter{full}, nil); !errors.Is(err, full) {
		t.Errorf("with a full disk: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// TestDownloadStaysEncrypted refuses a redirect that gives up encryption.
func TestDownloadStaysEncrypted(t *testing.T) {
	t.Parallel()
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("went there") }))
	defer plain.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL, http.StatusFound)
	}))
	defer server.Close()
	c := newClient(t, server.URL+"/acme", func(c *Config) { c.Transport = server.Client().Transport })
	if err := c.Download(t.Context(), Package{URL: server.URL + "/x"}, io.Discard, nil); err == nil || !strings.Contains(err.Error(), "without encryption") {
		t.Errorf("got %v", err)
	}
}

// TestDownloadThatStalls is given up, while one that is only slow is not.
func TestDownloadThatStalls(t *testing.T) {
	t.Parallel()
	const pieces = 12
	content := strings.Repeat("x", pieces)
	hash := sha256.Sum256([]byte(content))
	var stall atomic.Bool
	const limit = 400 * time.Millisecond
	c := newService(t, func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(limit / 8)
		defer tick.Stop()
		for range pieces {
			_, _ = io.WriteString(w, "x")
			flush(t, w)
			if stall.Load() {
				<-r.Context().Done()
				return
			}
			<-tick.C
		}
	}, func(c *Config) { c.Timeout = limit })
	p := Package{URL: strings.TrimSuffix(c.URL(), "/Acme") + "/x", SHA256: hex.EncodeToString(hash[:])}
	// Longer in all than the limit.
	if err := c.Download(t.Context(), p, io.Discard, nil); err != nil {
		t.Errorf("slow: %v", err)
	}
	stall.Store(true)
	if err := c.Download(t.Context(), p, io.Discard, nil); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "time limit") {
		t.Errorf("stalled: %v", err)
	}
}
