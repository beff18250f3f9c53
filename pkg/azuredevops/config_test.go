package azuredevops

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://dev.azure.com/Acme":                  "https://dev.azure.com/Acme",
		" https://dev.azure.com/acme// ":              "https://dev.azure.com/acme",
		"https://acme.visualstudio.com":               "https://acme.visualstudio.com",
		"https://tfs.local:8443/tfs/Def%20Collection": "https://tfs.local:8443/tfs/Def%20Collection",
		"http://127.0.0.1:1/a":                        "http://127.0.0.1:1/a",
	} {
		if got, err := ParseURL(text); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"":                                "is empty: set it",
		"  ":                              "is empty",
		"dev.azure.com/acme":              "not an http or https URL",
		"ftp://dev.azure.com/acme":        "not an http or https URL",
		"https:acme":                      "not an http or https URL",
		"https:///acme":                   "has no host",
		"https://dev.azure.com":           "names no organisation",
		"https://dev.azure.com/":          "names no organisation",
		"https://tfs.local":               "names no organisation or collection",
		"https://dev.azure.com/acme/shop": "set it to https://dev.azure.com/acme",
		"https://dev.azure.com/acme?x=y":  "after ? or #",
		"https://dev.azure.com/acme?":     "after ? or #",
		"https://dev.azure.com/acme#x":    "after ? or #",
		"https://tfs.local/tfs/_settings": "a page inside",
		"https://me:hunter2@tfs/acme":     "before the @",
		"https://me:hunter2@%zz/acme":     "does not parse",
		"https://tfs:hunter2/acme":        "does not parse",
	} {
		got, err := ParseURL(text)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "AZP_URL") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
}

// TestNewTellsEverythingAtOnce makes every mistake in one configuration.
func TestNewTellsEverythingAtOnce(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(empty, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{CAFile: empty, Scheme: "NTLM"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"AZP_URL", "AZP_TOKEN", "NTLM", empty, "no certificate in PEM form"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if _, err := New(Config{URL: "https://x/y", Token: StaticToken("t"), CAFile: empty + ".not"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing CA file: %v", err)
	}
}

// TestOwnCA reaches a server whose certificate only the file vouches for.
func TestOwnCA(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(withRoutes(func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, emptyList) }))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := poll(t.Context(), newClient(t, server.URL+"/acme", func(c *Config) { c.CAFile = ca })); err != nil {
		t.Error(err)
	}
}

func TestPlainHTTPIsWarnedOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{"http://tfs.local/acme": true, "http://127.0.0.1/acme": false, "http://localhost/acme": false, "http://[::1]/acme": false, "https://tfs.local/acme": false} {
		var log bytes.Buffer
		newClient(t, address, func(c *Config) { c.Logger = logTo(&log) })
		if got := strings.Contains(log.String(), "without encryption"); got != want {
			t.Errorf("%s: logged %q", address, log.String())
		}
	}
}

// TestTokenIsForTheServiceAlone covers the origins that get the token.
func TestTokenIsForTheServiceAlone(t *testing.T) {
	t.Parallel()
	base, err := ParseURL("https://dev.azure.com/acme")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"https://dev.azure.com/x": true, "https://DEV.azure.com:443/x": true, "http://dev.azure.com/x": false,
		"https://dev.azure.com:444/x": false, "https://dev.azure.com.evil.test/x": false, "https://azure.com/x": false,
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := sameOrigin(u, base); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}

// TestSecretNeverPrints tries every way in which a value gets out by accident.
func TestSecretNeverPrints(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	file := FileToken(path)
	if got, err := file.Token(t.Context()); err != nil || got.Reveal() != secret {
		t.Fatalf("%v, %v", got.Reveal(), err)
	}
	type holder struct {
		Secret Secret
		List   []Secret
		Map    map[string]Secret
		Source TokenSource
		Config Config
	}
	value := Secret(secret)
	held := holder{value, []Secret{value}, map[string]Secret{"a": value}, StaticToken(value), Config{Token: file}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10.3s", "%T%v"} {
		for _, v := range []any{value, &value, held, &held, StaticToken(value), file, []any{value}} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, secret) || strings.Contains(got, "68756e746572") || strings.Contains(strings.ToLower(got), "hun") {
				t.Errorf("%s of %T prints %s", verb, v, got)
			}
		}
	}
	raw, err := json.Marshal(map[string]any{"s": held.Secret, "l": held.List, "m": held.Map})
	if err != nil || strings.Contains(string(raw), secret) {
		t.Errorf("JSON: %s, %v", raw, err)
	}
	text, err := value.MarshalText()
	if err != nil || string(text) != redacted || value.String() != redacted {
		t.Errorf("text: %s, %v", text, err)
	}
	var log bytes.Buffer
	for _, logger := range []*slog.Logger{logTo(&log), slog.New(slog.NewJSONHandler(&log, nil))} {
		logger.Info("x", "secret", value, "held", held.List, "source", file)
	}
	if strings.Contains(log.String(), secret) || !strings.Contains(log.String(), redacted) {
		t.Errorf("log: %s", log.String())
	}
}

// TestATokenFileThatIsOverwritten has a file be written over in place by a token of the same
// length: then nothing but the time of its change tells.
func TestATokenFileThatIsOverwritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	source := FileToken(path)
	for i, token := range []string{"first", "other"} {
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		changed := time.Now().Add(time.Duration(i-2) * time.Hour)
		if err := os.Chtimes(path, changed, changed); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := source.Token(t.Context()); err != nil || got.Reveal() != token {
				t.Errorf("the file has %q, got %q, %v", token, got.Reveal(), err)
			}
		}
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, test := range map[string]struct {
		content string
		want    string
		says    string
	}{
		"plain":     {"abc", "abc", ""},
		"new line":  {"abc\r\n", "abc", ""},
		"with mark": {"\ufeffabc\n", "abc", ""},
		"empty":     {"", "", "is empty"},
		"blank":     {" \n", "", "is empty"},
		"two":       {"abc\ndef\n", "", "white space"},
		"binary":    {"abc\x00def", "", "control characters"},
		"too long":  {strings.Repeat("x", maxTokenFile+1), "", "no token is"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := FileToken(path).Token(t.Context())
		if got.Reveal() != test.want || (err == nil) != (test.says == "") || err != nil && (!strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "abc")) {
			t.Errorf("%s: %q, %v", name, got.Reveal(), err)
		}
	}
	if got, err := StaticToken(" abc\n").Token(t.Context()); err != nil || got.Reveal() != "abc" {
		t.Errorf("static: %q, %v", got.Reveal(), err)
	}
	if _, err := StaticToken("").Token(t.Context()); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("static, empty: %v", err)
	}
	if _, err := FileToken(dir).Token(t.Context()); err == nil {
		t.Error("a directory gave a token")
	}
}
