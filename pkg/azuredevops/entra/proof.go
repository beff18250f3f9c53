package entra

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"software.sslmate.com/src/go-pkcs12"
)

// maxFile is far above every secret, token or certificate with its chain.
const maxFile = 1 << 20

// proof is what shows that the caller is the identity, read for one renewal.
type proof struct {
	secret       string
	assertion    string
	claims       federatedClaims // Of the assertion.
	certificates []*x509.Certificate
	key          crypto.PrivateKey
	hidden       []string // What no error may repeat.
}

// proof reads what the method needs. The files are read for each renewal, so that a
// new secret or certificate needs no restart.
func (a authority) proof() (proof, error) {
	switch c := a.config; c.Method {
	case WorkloadIdentity:
		return a.federatedToken(c.FederatedTokenFile)
	case ClientSecret:
		secret, err := a.text("client secret file (AZURE_CLIENT_SECRET_FILE)", c.ClientSecretFile, "put the client secret's value there, as it was shown when it was made")
		return proof{secret: secret, hidden: []string{secret}}, err
	case ClientCertificate:
		return a.certificate(c.CertificateFile, c.CertificatePasswordFile)
	default:
		return proof{}, nil
	}
}

// federatedClaims are the parts of a federated token that say whose it is.
type federatedClaims struct {
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expires  float64  `json:"exp"`
}

// audience is one string, or a list of them (RFC 7519 §4.1.3).
type audience []string

// UnmarshalJSON reads either form.
func (a *audience) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// end is when the token ends.
func (c federatedClaims) end() time.Time { return time.Unix(int64(c.Expires), 0).UTC() }

// federatedToken reads the pod's token and who it says it is for.
func (a authority) federatedToken(path string) (proof, error) {
	const what = "federated token file (AZURE_FEDERATED_TOKEN_FILE)"
	token, err := a.text(what, path, "the workload identity webhook mounts it into pods with the label azure.workload.identity/use: \"true\" "+
		"that were made after it was installed: check the label, the webhook, and start the pod anew")
	if err != nil {
		return proof{}, err
	}
	p := proof{assertion: token, hidden: []string{token}}
	if parts := strings.Split(token, "."); len(parts) == 3 {
		p.hidden = append(p.hidden, parts[2])
		payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
		if err == nil && json.Unmarshal(payload, &p.claims) == nil && p.claims.Issuer != "" {
			if p.claims.Expires > 0 && time.Now().After(p.claims.end()) {
				return proof{}, a.refused("", fmt.Sprintf("%s %s: the token has ended at %s", what, path, p.claims.end().Format(time.RFC3339)),
					"Kubernetes renews it while the pod runs: check that it is a projected volume, not a copy, and this machine's clock")
			}
			return p, nil
		}
	}
	return proof{}, a.refused("", fmt.Sprintf("%s %s holds no JSON web token", what, path), "let it be the file that the workload identity webhook mounts")
}

// certificate reads a certificate and its key.
func (a authority) certificate(path, passwordPath string) (proof, error) {
	what := fmt.Sprintf("certificate file (AZURE_CLIENT_CERTIFICATE_PATH) %s", path)
	content, err := a.read("certificate file (AZURE_CLIENT_CERTIFICATE_PATH)", path, "put certificate and key there, in one file")
	if err != nil {
		return proof{}, err
	}
	var password string
	if passwordPath != "" {
		if password, err = a.text("password file (AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE)", passwordPath, "put the password of the PKCS#12 file there"); err != nil {
			return proof{}, err
		}
	}
	p := proof{hidden: []string{password}}
	if bytes.Contains(content, []byte("-----BEGIN ")) {
		p.certificates, p.key, err = parsePEM(content, password)
	} else {
		p.certificates, p.key, err = parsePKCS12(content, password)
	}
	if err != nil {
		return proof{}, a.refused("", what+" can't be used: "+err.Error(), "")
	}
	return p, a.checkCertificate(what, &p)
}

// parsePEM reads a PEM file.
func parsePEM(content []byte, password string) ([]*x509.Certificate, crypto.PrivateKey, error) {
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.HasPrefix(block.Type, "ENCRYPTED ") || block.Headers["DEK-Info"] != "" {
			return nil, nil, errors.New("the key is encrypted, which works in PKCS#12 only: decrypt it, or make a PKCS#12 file of both with openssl pkcs12 -export")
		}
	}
	if password != "" {
		return nil, nil, errors.New("a PEM file has no password: unset AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE")
	}
	certificates, key, err := azidentity.ParseCertificates(content, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: want the certificate and its RSA key, both in PEM", err)
	}
	return certificates, key, nil
}

// parsePKCS12 reads a PKCS#12 file. azidentity knows only the forms of old, and not the
// one that OpenSSL 3 makes unless told otherwise.
func parsePKCS12(content []byte, password string) ([]*x509.Certificate, crypto.PrivateKey, error) {
	key, own, chain, err := pkcs12.DecodeChain(content, password)
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		return nil, nil, errors.New("the password is wrong: name the file that holds it in AZURE_CLIENT_CERTIFICATE_PASSWORD_FILE")
	case err != nil:
		return nil, nil, fmt.Errorf("it is neither PEM nor PKCS#12 with one certificate and its key: %w", err)
	}
	return append([]*x509.Certificate{own}, chain...), key, nil
}

// checkCertificate finds the certificate of the key and puts it first.
func (a authority) checkCertificate(what string, p *proof) error {
	key, ok := p.key.(*rsa.PrivateKey)
	if !ok {
		return a.refused("", what+": the key is not an RSA key", "Microsoft Entra takes RSA keys only: make one, and register its certificate")
	}
	for i, certificate := range p.certificates {
		if !key.PublicKey.Equal(certificate.PublicKey) {
			continue
		}
		p.certificates[0], p.certificates[i] = p.certificates[i], p.certificates[0]
		now := time.Now()
		switch {
		case now.After(certificate.NotAfter):
			return a.refused("", fmt.Sprintf("%s: the certificate has expired at %s", what, certificate.NotAfter.UTC().Format(time.RFC3339)),
				"register a new one with az ad app credential reset --id "+a.config.ClientID+" --append --cert @FILE, and put it there with its key; it is read again")
		case now.Before(certificate.NotBefore):
			return a.refused("", fmt.Sprintf("%s: the certificate is good from %s on", what, certificate.NotBefore.UTC().Format(time.RFC3339)), "check this machine's clock")
		}
		return nil
	}
	return a.refused("", what+": no certificate in it belongs to the key", "put the certificate of that key there")
}

// text reads a file with one secret in it.
func (a authority) text(what, path, remedy string) (string, error) {
	content, err := a.read(what, path, remedy)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(strings.TrimPrefix(string(content), "\ufeff"))
	if text == "" {
		return "", a.refused("", fmt.Sprintf("%s %s is empty", what, path), remedy)
	}
	return text, nil
}

// read reads a file whole.
func (a authority) read(what, path, remedy string) ([]byte, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, a.refused("", fmt.Sprintf("%s: %v", what, err), remedy)
	}
	return content, nil
}

func readFile(path string) (_ []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s is over %d bytes long", path, maxFile)
	}
	return content, err
}
