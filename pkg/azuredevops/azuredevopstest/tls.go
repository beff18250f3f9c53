package azuredevopstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"time"
)

// Endpoint is where a service is reachable.
type Endpoint struct {
	// URL is the organisation's address, such as https://127.0.0.1:8443/acme.
	URL string
	// Origin is the address without the organisation.
	Origin string
	// CAPEM is the certificate of the authority to trust, PEM.
	CAPEM []byte
}

// StartTLS serves on an address, such as "127.0.0.1:0", over TLS with a
// certificate from an authority made for this call. The certificate is good
// for the host of the address, for localhost and for the further names or IP
// addresses. Close ends it.
func (s *Server) StartTLS(addr string, extraNames ...string) (Endpoint, error) {
	listener, err := new(net.ListenConfig).Listen(s.ctx, "tcp", addr)
	if err != nil {
		return Endpoint{}, fmt.Errorf("serve the fake Azure DevOps on %s: %w", addr, err)
	}
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return Endpoint{}, errors.Join(fmt.Errorf("serve the fake Azure DevOps on %s: %w", addr, err), listener.Close())
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	certificate, caPEM, err := NewCertificate(append([]string{host, "localhost", "127.0.0.1"}, extraNames...))
	if err != nil {
		return Endpoint{}, errors.Join(fmt.Errorf("serve the fake Azure DevOps on %s: %w", addr, err), listener.Close())
	}
	handler := http.Handler(s)
	if s.opts.Around != nil {
		handler = s.opts.Around(handler)
	}
	server := &http.Server{
		Handler: handler,
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{certificate},
			MinVersion:   tls.VersionTLS12,
			// HTTP/1.1 alone, so that a broken connection hits one request.
			NextProtos: []string{"http/1.1"},
		},
		ReadHeaderTimeout: 30 * time.Second,
		// Callers that do not trust the authority are part of the tests.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Endpoint{}, errors.Join(fmt.Errorf("serve the fake Azure DevOps on %s: it was closed", addr), listener.Close())
	}
	s.servers = append(s.servers, server)
	s.wg.Go(func() {
		// It always ends with an error, and always because of Close.
		_ = server.ServeTLS(listener, "", "")
	})
	origin := "https://" + net.JoinHostPort(host, port)
	return Endpoint{URL: origin + "/" + s.opts.Organisation, Origin: origin, CAPEM: caPEM}, nil
}

// NewCertificate makes an authority and a certificate signed by it for a server with
// these names or IP addresses. It gives the authority's own certificate as PEM.
func NewCertificate(names []string) (tls.Certificate, []byte, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "azuredevopstest authority"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(7 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "azuredevopstest"},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, caPEM, nil
}
