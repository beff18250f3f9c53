package entratest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// maxAssertionLife is how far ahead an assertion made by the application may end.
const maxAssertionLife = 24 * time.Hour

// proveAssertion checks a JWT in the place of a secret: one that the application has
// signed with its certificate's key, or one of another issuer that it is federated
// with. The two are told apart as Entra does, by the issuer. The caller holds the mutex.
func (s *Server) proveAssertion(a Application, text, endpoint string, now time.Time) *refusal {
	claims := &jwt.RegisteredClaims{}
	unverified, _, err := jwt.NewParser().ParseUnverified(text, claims)
	if err != nil {
		return refuse("invalid_request", 50027, "JWT token is invalid or malformed.")
	}
	if strings.EqualFold(claims.Issuer, a.ClientID) {
		return s.proveCertificate(a, unverified, text, endpoint, now)
	}
	return s.proveFederated(a, claims, text, now)
}

// proveCertificate checks an assertion against the registered certificates
// (https://learn.microsoft.com/entra/identity-platform/certificate-credentials).
func (s *Server) proveCertificate(a Application, unverified *jwt.Token, text, endpoint string, now time.Time) *refusal {
	certificate, thumbprint := certificateOf(a, unverified.Header)
	if certificate == nil {
		return refuse("invalid_client", 700027, "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - The key was not found., Thumbprint of key used by client: '%s', Please visit the Azure Portal, Graph Explorer or directly use MS Graph to see configured keys for app Id '%s'].", thumbprint, a.ClientID)
	}
	if now.After(certificate.NotAfter) || now.Before(certificate.NotBefore) {
		return refuse("invalid_client", 700027, "Client assertion failed signature validation. [Reason - The key used is expired., Thumbprint of key used by client: '%s'].", thumbprint)
	}
	claims := &jwt.RegisteredClaims{}
	_, err := parser(now, jwt.WithExpirationRequired(), jwt.WithValidMethods([]string{"PS256", "RS256"})).ParseWithClaims(text, claims, func(*jwt.Token) (any, error) {
		return certificate.PublicKey, nil
	})
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return refuse("invalid_client", 700027, "Client assertion contains an invalid signature. [Reason - The key was found, but use of the key to verify the signature failed., Thumbprint of key used by client: '%s'].", thumbprint)
	case err != nil:
		return assertionTimes(claims)
	case len(claims.Audience) != 1 || !strings.EqualFold(claims.Audience[0], endpoint):
		return refuse("invalid_client", 700023, "Client assertion audience claim does not match Realm issuer.")
	case !strings.EqualFold(claims.Subject, a.ClientID):
		return refuse("invalid_client", 700021, "Client assertion application identifier doesn't match 'client_id' parameter.")
	case claims.ExpiresAt.Sub(now) > maxAssertionLife:
		return assertionTimes(claims)
	case claims.ID == "" || s.usedJTI[claims.ID]:
		return refuse("invalid_client", 70025, "The client assertion's jti is missing or was used before.")
	}
	s.usedJTI[claims.ID] = true
	return nil
}

// certificateOf finds the certificate whose thumbprint the header names, in base64 of
// either alphabet.
func certificateOf(a Application, header map[string]any) (*x509.Certificate, string) {
	for _, name := range []string{"x5t#S256", "x5t"} {
		text, ok := header[name].(string)
		if !ok {
			continue
		}
		plain := strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(text)
		for _, certificate := range a.Certificates {
			long, short := sha256.Sum256(certificate.Raw), sha1.Sum(certificate.Raw)
			sum := long[:]
			if name == "x5t" {
				sum = short[:]
			}
			if base64.RawURLEncoding.EncodeToString(sum) == plain {
				return certificate, text
			}
		}
		return nil, text
	}
	return nil, ""
}

// proveFederated checks a token of another issuer
// (https://learn.microsoft.com/entra/workload-id/workload-identity-federation).
func (s *Server) proveFederated(a Application, claims *jwt.RegisteredClaims, text string, now time.Time) *refusal {
	audience := strings.Join(claims.Audience, ",")
	var issuer, subject bool
	for _, credential := range a.Federated {
		issuer = issuer || credential.Issuer == claims.Issuer
		if credential.Issuer != claims.Issuer || credential.Subject != claims.Subject {
			continue
		}
		subject = true
		if credential.Audience == audience {
			return s.verifyFederated(claims.Issuer, text, now)
		}
	}
	switch {
	case subject:
		return refuse("invalid_client", 700212, "No matching federated identity record found for presented assertion audience '%s'. Please check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation", audience)
	case issuer:
		return refuse("invalid_client", 700213, "No matching federated identity record found for presented assertion subject '%s'. Please check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation", claims.Subject)
	case len(a.Federated) > 0:
		return refuse("invalid_client", 700211, "No matching federated identity record found for presented assertion issuer '%s'. Please check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation", claims.Issuer)
	default:
		return refuse("invalid_request", 70021, "No matching federated identity record found for presented assertion. Assertion Issuer: '%s'. Assertion Subject: '%s'. Assertion Audience: '%s'.", claims.Issuer, claims.Subject, audience)
	}
}

// verifyFederated checks signature and times with the issuer's key.
func (s *Server) verifyFederated(issuer, text string, now time.Time) *refusal {
	claims := &jwt.RegisteredClaims{}
	_, err := parser(now, jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithValidMethods([]string{"RS256"})).ParseWithClaims(text, claims, func(*jwt.Token) (any, error) {
		key, known := s.issuers[issuer]
		if !known {
			return nil, errors.New("the issuer's keys can't be read")
		}
		return key, nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrTokenUnverifiable):
		return refuse("invalid_request", 50166, "Request to External OIDC endpoint failed: %s/.well-known/openid-configuration.", issuer)
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return refuse("invalid_client", 50013, "Assertion failed signature validation. [Reason - The key was not found.]")
	default:
		return assertionTimes(claims)
	}
}

// assertionTimes is the refusal of an assertion that is not good now.
func assertionTimes(claims *jwt.RegisteredClaims) *refusal {
	end := "never"
	if claims.ExpiresAt != nil {
		end = claims.ExpiresAt.UTC().Format(time.RFC3339)
	}
	return refuse("invalid_client", 700024, "Client assertion is not within its valid time range. Current time: %s, assertion valid to: %s.", time.Now().UTC().Format(time.RFC3339), end)
}

// parser reads assertions at the time of the request. Entra forgives clocks that differ
// by minutes; a test double that does not finds more.
func parser(now time.Time, options ...jwt.ParserOption) *jwt.Parser {
	return jwt.NewParser(append(options, jwt.WithTimeFunc(func() time.Time { return now }))...)
}

// Issuer plays another issuer of tokens, such as the API server of a Kubernetes cluster.
type Issuer struct {
	// URL is the issuer as its tokens name it.
	URL string
	key *rsa.PrivateKey
}

// NewIssuer makes an issuer with a key of its own.
func NewIssuer(url string) (*Issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return &Issuer{URL: url, key: key}, nil
}

// Token signs a token as Kubernetes projects it into a pod.
func (i *Issuer) Token(subject, audience string, from time.Time, lifetime time.Duration) (string, error) {
	return jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer: i.URL, Subject: subject, Audience: jwt.ClaimStrings{audience},
		IssuedAt: jwt.NewNumericDate(from), NotBefore: jwt.NewNumericDate(from), ExpiresAt: jwt.NewNumericDate(from.Add(lifetime)),
	}).SignedString(i.key)
}
