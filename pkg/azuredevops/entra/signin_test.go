package entra_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest/entratest"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/entra"
)

// TestMethods signs in by each method, and once for many requests.
func TestMethods(t *testing.T) {
	t.Parallel()
	key, certificate := pair(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	_, other := pair(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	const password = "pfx-password"
	modern, err := pkcs12.Modern.Encode(key, certificate, []*x509.Certificate{other}, password)
	if err != nil {
		t.Fatal(err)
	}
	legacy, err := pkcs12.LegacyDES.Encode(key, certificate, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		method  entra.Method
		prepare func(*world, *entra.Config)
	}{
		"workload identity":               {method: entra.WorkloadIdentity},
		"managed identity":                {method: entra.ManagedIdentity},
		"the machine's only identity":     {method: entra.ManagedIdentity, prepare: func(_ *world, c *entra.Config) { c.ClientID = "" }},
		"client secret":                   {method: entra.ClientSecret},
		"certificate, PEM":                {method: entra.ClientCertificate, prepare: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, key, certificate)) }},
		"certificate, PEM, another first": {method: entra.ClientCertificate, prepare: func(w *world, _ *entra.Config) { w.write("certificate", inPEM(t, key, other, certificate)) }},
		"certificate, PKCS#12 of OpenSSL 3": {method: entra.ClientCertificate, prepare: func(w *world, c *entra.Config) {
			w.write("certificate", string(modern))
			c.CertificatePasswordFile = w.write("password", password+"\n")
		}},
		"certificate, PKCS#12 of old, no password": {method: entra.ClientCertificate, prepare: func(w *world, _ *entra.Config) {
			w.write("certificate", string(legacy))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, time.Hour)
			w.register(entratest.Application{
				ClientID: clientID, Assigned: true, Secrets: []entratest.ClientSecret{{Value: secretText}}, Certificates: []*x509.Certificate{certificate},
				Federated: []entratest.FederatedCredential{{Issuer: issuerURL, Subject: subject, Audience: exchangeTo}},
			})
			c := w.config(tc.method)
			if tc.prepare != nil {
				tc.prepare(w, &c)
			}
			source := w.source(c)
			client := w.client(source)
			var group sync.WaitGroup
			for range 20 {
				group.Go(func() {
					if pool, err := client.PoolByName(t.Context(), "ci"); err != nil || pool.Name != "ci" {
						t.Errorf("%+v, %v", pool, err)
					}
				})
			}
			group.Wait()
			token, expires, err := source.Current(t.Context())
			if left := time.Until(expires); err != nil || token.Reveal() != w.issued()[0] || left < 59*time.Minute || left > time.Hour {
				t.Errorf("the present token ends in %v, %v", left, err)
			}
			if counts := w.entra.Counts(); counts.Issued != 1 || counts.Token+counts.Metadata != 1 {
				t.Errorf("asked %+v, want one token", counts)
			}
			// An agent's config.sh takes the same token for a personal access token.
			asPassword := w.client(azuredevops.StaticToken(token), func(c *azuredevops.Config) { c.Scheme = azuredevops.SchemeBasic })
			if _, err := asPassword.PoolByName(t.Context(), "ci"); err != nil {
				t.Errorf("as a password: %v", err)
			}
		})
	}
}

// TestRenewalAhead lets many callers go on over several lives of a token.
func TestRenewalAhead(t *testing.T) {
	t.Parallel()
	// A tenth of a life is what a request may take on a busy machine.
	const lives, lifetime = 2, 20 * time.Second
	w := newWorld(t, lifetime)
	client := w.client(w.source(w.config(entra.WorkloadIdentity)))
	end := time.Now().Add(lives * lifetime)
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			// Callers that ask all the time would only measure how busy the machine is.
			pace := time.NewTicker(250 * time.Millisecond)
			defer pace.Stop()
			for now := range pace.C {
				if now.After(end) {
					return
				}
				if _, err := client.PoolByName(t.Context(), "ci"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if n := w.refusals(); n != 0 {
		t.Errorf("%d requests carried a token that had ended", n)
	}
	// One for each two thirds of a life, and the first.
	if counts := w.entra.Counts(); counts.Token < lives || counts.Token > lives*3/2+1 || counts.Issued != counts.Token {
		t.Errorf("asked %+v in %d lives of a token", counts, lives)
	}
}

// TestRefused has the service refuse a token that has not ended.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]azuredevopstest.SignInFailure{
		"page": azuredevopstest.SignInHTML, "redirect": azuredevopstest.SignInRedirect, "denied": azuredevopstest.SignInDenied,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, time.Hour)
			w.service.SetSignInFailure(failure)
			client := w.client(w.source(w.config(entra.ClientSecret)))
			ask := func() error {
				_, err := client.PoolByName(t.Context(), "ci")
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			w.service.RemoveToken(w.issued()[0])
			var group sync.WaitGroup
			for range 20 {
				group.Go(func() {
					if err := ask(); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			if n := len(w.issued()); n != 2 || w.refusals() == 0 {
				t.Fatalf("%d tokens after the first was revoked, want 2, and %d refusals", n, w.refusals())
			}
			// A service that takes no token is not asked for ever, and nor is Entra.
			w.service.RemoveToken(w.issued()[1])
			for range 5 {
				if err := ask(); !errors.Is(err, azuredevops.ErrAuthentication) || !strings.Contains(err.Error(), "added to this organisation") {
					t.Errorf("%v", err)
				}
			}
			if n := len(w.issued()); n != 2 {
				t.Errorf("%d tokens, want no further ones within the minute", n)
			}
		})
	}
}

// TestRefusedWrite has a request with a body sent again with the new token.
func TestRefusedWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t, time.Hour)
	client := w.client(w.source(w.config(entra.ClientSecret)))
	pool, err := client.PoolByName(t.Context(), "ci")
	if err != nil {
		t.Fatal(err)
	}
	w.service.RemoveToken(w.issued()[0])
	if err := client.AddPlaceholder(t.Context(), pool.ID, "placeholder", map[string]string{"java": "17"}); err != nil {
		t.Fatal(err)
	}
	if agents := w.service.Agents(pool.ID); len(agents) != 1 || agents[0].Capabilities["java"] != "17" {
		t.Errorf("agents %+v", agents)
	}
}

// TestOutage has Entra down while a token is good, and longer.
func TestOutage(t *testing.T) {
	t.Parallel()
	const lifetime = 12 * time.Second
	w := newWorld(t, lifetime)
	log := &lockedBuffer{}
	config := w.config(entra.ClientSecret)
	config.Logger = logTo(log)
	source := w.source(config)
	client := w.client(source)
	ask := func() error {
		_, err := client.PoolByName(t.Context(), "ci")
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	_, expires, _ := source.Current(t.Context())
	w.entra.SetOutage(http.StatusServiceUnavailable)
	var failure error
	for failure = ask(); failure == nil; failure = ask() {
		if time.Now().After(expires) {
			t.Fatal("a token was used after its end")
		}
	}
	if left := time.Until(expires); left > lifetime/8 { // A tenth is the margin.
		t.Errorf("given up %v before the token's end: %v", left, failure)
	}
	if !errors.Is(failure, azuredevops.ErrUnavailable) || errors.Is(failure, azuredevops.ErrAuthentication) || !strings.Contains(failure.Error(), "status 503") {
		t.Errorf("%v", failure)
	}
	if n := w.refusals(); n != 0 {
		t.Errorf("%d requests carried a token that had ended", n)
	}
	if asked := w.entra.Counts(); asked.Discovery > 40 {
		t.Errorf("asked %+v: there is no back-off", asked)
	}
	w.entra.SetOutage(0)
	limit := time.Now().Add(30 * time.Second)
	for err := ask(); err != nil; err = ask() {
		if time.Now().After(limit) {
			t.Fatalf("after the outage: %v", err)
		}
	}
	for _, want := range []string{"the present one is used until it ends", "works again"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q:\n%s", want, log)
		}
	}
}

// TestRotation has new files taken up with the next renewal.
func TestRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, time.Hour)
	source := w.source(w.config(entra.ClientSecret))
	w.write("secret", "wrong")
	if _, err := source.Token(t.Context()); !errors.Is(err, azuredevops.ErrAuthentication) {
		t.Fatalf("%v", err)
	}
	w.write("secret", secretText)
	limit := time.Now().Add(10 * time.Second)
	for _, err := source.Token(t.Context()); err != nil; _, err = source.Token(t.Context()) {
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
}

// TestSecrecy looks for secrets wherever a source may be printed.
func TestSecrecy(t *testing.T) {
	t.Parallel()
	key, certificate := pair(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	for _, method := range entra.Methods() {
		t.Run(string(method), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, time.Hour)
			w.register(entratest.Application{
				ClientID: clientID, Assigned: true, Secrets: []entratest.ClientSecret{{Value: secretText}}, Certificates: []*x509.Certificate{certificate},
				Federated: []entratest.FederatedCredential{{Issuer: issuerURL, Subject: subject, Audience: exchangeTo}},
			})
			w.write("certificate", inPEM(t, key, certificate))
			log := &lockedBuffer{}
			c := w.config(method)
			c.Logger = logTo(log)
			source := w.source(c)
			client := w.client(source, func(c *azuredevops.Config) { c.Logger = logTo(log) })
			var texts []string
			note := func(values ...any) {
				for _, v := range values {
					encoded, _ := json.Marshal(v)
					texts = append(texts, string(encoded), fmt.Sprintf("%v %+v %#v %s %q", v, v, v, v, v))
					logTo(log).Info("noted", "value", v)
				}
			}
			_, err := client.PoolByName(t.Context(), "ci")
			if err != nil {
				t.Fatal(err)
			}
			note(source, *client, client)
			w.service.RemoveToken(w.issued()[0])
			w.service.SetSignInFailure(azuredevopstest.SignInDenied)
			w.entra.SetOutage(http.StatusInternalServerError)
			_, err = client.PoolByName(t.Context(), "ci")
			note(err)
			w.entra.SetOutage(0)
			// Everything that can be refused is.
			w.register(entratest.Application{ClientID: clientID})
			_, err = w.source(c).Token(t.Context())
			note(err)
			all := strings.Join(append(texts, log.String()), "\n")
			secrets := append(w.issued(), secretText)
			if method == entra.WorkloadIdentity {
				secrets = append(secrets, w.federated(subject, exchangeTo, time.Now()))
			}
			for i, secret := range secrets {
				parts := strings.Split(secret, ".")
				if at := strings.Index(all, parts[len(parts)-1]); at >= 0 {
					t.Errorf("secret %d was printed: … %s", i, all[max(at-200, 0):at])
				}
			}
			if len(texts) == 0 || err == nil {
				t.Errorf("nothing was refused: %v", err)
			}
		})
	}
}
