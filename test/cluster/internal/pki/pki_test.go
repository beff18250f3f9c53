package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func TestCertificatesServeTheirPurpose(t *testing.T) {
	authority, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority.PEM) {
		t.Fatal("the authority's certificate does not parse")
	}
	server, err := authority.Server("server", "10.0.0.1", "kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	client, err := authority.Client("user", "group-a", "group-b")
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"10.0.0.1", "kubernetes"} {
		if _, err := leaf(t, server).Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("as server %s: %v", host, err)
		}
	}
	if _, err := leaf(t, server).Verify(x509.VerifyOptions{Roots: roots, DNSName: "other"}); err == nil {
		t.Error("the server's certificate is good for another name")
	}
	signedIn := leaf(t, client)
	if _, err := signedIn.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("as client: %v", err)
	}
	if _, err := signedIn.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("a client's certificate is good for a server")
	}
	if signedIn.Subject.CommonName != "user" || len(signedIn.Subject.Organization) != 2 {
		t.Errorf("subject %s, want the user and both groups", signedIn.Subject)
	}
}

func leaf(t *testing.T, pair Pair) *x509.Certificate {
	t.Helper()
	both, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return both.Leaf
}

func TestSigningKeyHasItsPublicHalf(t *testing.T) {
	pair, err := SigningKey()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := pair.Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path + ".key")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(path + ".key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v; want it readable by its owner alone", info, err)
	}
	if err := pair.Write(filepath.Join(t.TempDir(), "absent", "key")); err == nil {
		t.Error("written into a directory that is not there")
	}
}
