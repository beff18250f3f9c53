package azuredevops

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

// TestBypassPatterns has the agent program and Go choose the same way for what both can be
// told.
func TestBypassPatterns(t *testing.T) {
	t.Parallel()
	destinations := []string{
		"https://tfs.example.com", "https://tfs.example.com:8443", "https://tfs.example.com:443", "http://tfs.example.com", "http://tfs.example.com:443",
		"https://example.com", "https://deep.tfs.example.com", "https://notexample.com", "https://example.com.evil.test", "https://tfsxexample.com",
		"https://10.1.2.3", "http://10.1.2.3:8080", "https://10.1.2.34", "https://TFS.Example.com",
	}
	for _, list := range []string{
		"", "example.com", ".example.com", "*.example.com", "tfs.example.com", "tfs.example.com:443", "tfs.example.com:8443", "tfs.example.com:80",
		"10.1.2.3", "10.1.2.3:8080", "*", "other.test, .example.com,",
	} {
		patterns, err := BypassPatterns(list)
		if err != nil {
			t.Fatalf("%q: %v", list, err)
		}
		way := Proxy{HTTPS: "http://proxy.test", HTTP: "http://proxy.test", NoProxy: list}.choose()
		for _, text := range destinations {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			proxy, err := way(&http.Request{URL: u})
			if err != nil {
				t.Fatal(err)
			}
			if got := agentBypasses(t, patterns, u); got != (proxy == nil) {
				t.Errorf("%q, %s: the agent goes directly: %v, Go goes directly: %v (%q)", list, text, got, proxy == nil, patterns)
			}
		}
	}
	for _, list := range []string{"10.0.0.0/8", "[::1]", "::1", "a b", "tfs.example.com:https", "http://tfs", "(", "*example.com"} {
		if got, err := BypassPatterns("fine.test," + list); err == nil || !strings.Contains(err.Error(), `"`+list+`"`) || len(got) != 1 {
			t.Errorf("%q: %q, %v", list, got, err)
		}
	}
}

// agentBypasses does what AgentWebProxy.IsMatchInBypassList does.
func agentBypasses(t *testing.T, patterns []string, u *url.URL) bool {
	t.Helper()
	text := u.Scheme + "://" + strings.ToLower(u.Hostname())
	if port(u) != port(&url.URL{Scheme: u.Scheme}) {
		text += ":" + u.Port()
	}
	for _, pattern := range patterns {
		if regexp.MustCompile("(?i)" + pattern).MatchString(text) {
			return true
		}
	}
	return false
}

func TestCheckAgentProxy(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"http://proxy.test:3128":         "",
		"https://proxy.test/":            "",
		"proxy.test:3128":                "is no URL",
		"":                               "is no URL",
		"socks5://proxy.test":            "is no URL",
		"http://me:hunter2@proxy.test":   "has a user",
		"http://me:hunter2@%zz":          "is no URL",
		"http://proxy.test:3128/path":    "more than a host",
		"http://proxy.test?key=hunter2x": "more than a host",
	} {
		err := CheckAgentProxy(text)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
