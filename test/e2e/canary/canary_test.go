package canary_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

const token = "pat-0123456789abcdef-azp-scaler"

func set(t *testing.T) *canary.Set {
	t.Helper()
	var s canary.Set
	for name, secret := range map[string]string{"token": token, "other": "another-secret-of-another-kind???~~~"} {
		if err := s.Add(name, secret); err != nil {
			t.Fatal(err)
		}
	}
	return &s
}

func TestASecretIsFoundInEveryShape(t *testing.T) {
	t.Parallel()
	s := set(t)
	copied, err := canary.NewSet(s.Shapes())
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string]string{
		"plain": token, "in a text": "a token " + token + " in a text", "hexadecimal": hex.EncodeToString([]byte(token)),
		"upper-case hexadecimal": strings.ToUpper(hex.EncodeToString([]byte(token))),
	}
	for _, before := range []string{"", ":", "u:", "user:", "VstsAgent:"} {
		for _, after := range []string{"", "\n", "\r\n", "and more"} {
			shapes["base64 of "+before+"token"+after] = base64.StdEncoding.EncodeToString([]byte(before + token + after))
		}
	}
	for name, text := range shapes {
		for which, s := range map[string]*canary.Set{"the set": s, "its copy": copied} {
			if got := s.In([]byte("x" + text + "y")); !slices.Equal(got, []string{"token"}) {
				t.Errorf("%s: %s finds %q", name, which, got)
			}
		}
	}
	url := base64.URLEncoding.EncodeToString([]byte("another-secret-of-another-kind???~~~"))
	if got := s.In([]byte(url)); !slices.Equal(got, []string{"other"}) || !strings.ContainsAny(url, "-_") {
		t.Errorf("in the alphabet of URLs %q it finds %q", url, got)
	}
	both := "another-secret-of-another-kind???~~~" + token + token
	if got := s.In([]byte(both)); !slices.Equal(got, []string{"other", "token"}) {
		t.Errorf("of two it finds %q", got)
	}
}

func TestNothingElseIsFound(t *testing.T) {
	t.Parallel()
	s := set(t)
	for _, text := range []string{"", "pat-", token[:len(token)-1], token[1:], base64.StdEncoding.EncodeToString([]byte(token[:20])), strings.Repeat("pat-0123", 100)} {
		if got := s.In([]byte(text)); len(got) > 0 {
			t.Errorf("in %q it finds %q", text, got)
		}
	}
}

func TestASecretIsFoundWhereverAStreamIsCut(t *testing.T) {
	t.Parallel()
	s := set(t)
	for _, before := range []int{0, 1<<20 - 1, 1<<20 - 10, 1 << 20, 1<<20 + 40, 2<<20 - 5, 3<<20 + 7} {
		text := append(bytes.Repeat([]byte("."), before), token+"."...)
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(text), "halves": iotest.HalfReader(bytes.NewReader(text))} {
			if got, err := s.Read(r); err != nil || !slices.Equal(got, []string{"token"}) {
				t.Errorf("after %d bytes, read %s: %q, %v", before, name, got, err)
			}
		}
	}
	broken := errors.New("broken")
	got, err := s.Read(io.MultiReader(strings.NewReader(token), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || !slices.Equal(got, []string{"token"}) {
		t.Errorf("a stream that breaks: %q, %v", got, err)
	}
}

func TestWhatWouldBeFoundByChanceIsRefused(t *testing.T) {
	t.Parallel()
	var s canary.Set
	if err := s.Add("short", "0123456"); err == nil {
		t.Error("a secret of seven characters is taken")
	}
	if len(s.Shapes()) != 0 {
		t.Error("it is there in part")
	}
	if _, err := canary.NewSet([]canary.Shape{{Name: "short", Text: []byte("0123")}}); err == nil {
		t.Error("a shape of four characters is taken")
	}
}

func BenchmarkRead(b *testing.B) {
	var s canary.Set
	for i := range 200 {
		if err := s.Add("token", token+strings.Repeat("x", i)); err != nil {
			b.Fatal(err)
		}
	}
	text := bytes.Repeat([]byte(`{"kind":"Event","apiVersion":"audit.k8s.io/v1"} `), 1<<17)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if found, err := s.Read(bytes.NewReader(text)); err != nil || len(found) > 0 {
			b.Fatal(found, err)
		}
	}
}
