package root

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// Files about the proxy, as the real agent's VstsAgentWebProxy and its credential store for
// Linux write and read them.
const (
	fileProxy            = ".proxy"            // The address in the first line.
	fileProxyCredentials = ".proxycredentials" // The key of the credential in the store.
	fileProxyBypass      = ".proxybypass"      // A regular expression a line.
	fileCredentialStore  = ".credential_store"
	storePrefix          = "VSTS_AGENT_PROXY_"
)

// Variables that say what the files do not.
const (
	VariableProxy         = "VSTS_HTTP_PROXY"
	VariableProxyUser     = "VSTS_HTTP_PROXY_USERNAME"
	VariableProxyPassword = "VSTS_HTTP_PROXY_PASSWORD"
	variableUsualProxy    = "http_proxy" // In lower case alone.
	variableNoProxy       = "no_proxy"
)

// Proxy is the way to the server.
type Proxy struct {
	Address, Username, Password string
	bypass                      []*regexp.Regexp
}

// Proxy reads what the files say of the proxy, and where they are silent the environment.
func (d Dir) Proxy(env map[string]string) (Proxy, error) {
	address, err := d.firstLine(fileProxy)
	if err != nil {
		return Proxy{}, err
	}
	for _, name := range []string{VariableProxy, variableUsualProxy} {
		if address == "" {
			address = strings.TrimSpace(env[name])
		}
	}
	// One that is not whole is passed over, with a line in the log.
	if u, err := url.Parse(address); err != nil || !u.IsAbs() || u.Host == "" {
		return Proxy{}, nil
	}
	p := Proxy{Address: address}
	if p.Username, p.Password, err = d.storedCredential(); err != nil {
		return Proxy{}, err
	}
	if p.Username == "" {
		p.Username = env[VariableProxyUser]
	}
	if p.Password == "" {
		p.Password = env[VariableProxyPassword]
	}
	lines, err := os.ReadFile(d.Path(fileProxyBypass))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Proxy{}, fmt.Errorf("read what the proxy is bypassed for: %w", err)
	}
	patterns := strings.Split(string(lines), "\n")
	for _, item := range strings.FieldsFunc(env[variableNoProxy], func(r rune) bool { return r == ',' || r == ';' }) {
		patterns = append(patterns, escapeDots(strings.TrimSpace(item)))
	}
	for _, pattern := range patterns {
		// One that is no expression is passed over.
		if bypass, err := regexp.Compile("(?i)" + strings.TrimSpace(pattern)); err == nil && strings.TrimSpace(pattern) != "" {
			p.bypass = append(p.bypass, bypass)
		}
	}
	return p, nil
}

// escapeDots takes the dots of a host in no_proxy for dots, unless they are part of ".*" or
// escaped already.
func escapeDots(host string) string {
	var b strings.Builder
	for i, r := range host {
		if r == '.' && !strings.HasPrefix(host[i+1:], "*") && !strings.HasSuffix(host[:i], `\`) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Choose gives the proxy for a request, nil for none.
func (p Proxy) Choose(r *http.Request) (*url.URL, error) {
	if p.Address == "" || isLoopback(r.URL.Hostname()) {
		return nil, nil
	}
	// Without the port where it is the scheme's own.
	destination := r.URL.Scheme + "://" + r.URL.Hostname()
	if port := r.URL.Port(); port != "" && port != map[string]string{"http": "80", "https": "443"}[r.URL.Scheme] {
		destination += ":" + port
	}
	for _, bypass := range p.bypass {
		if bypass.MatchString(destination) {
			return nil, nil
		}
	}
	proxy, err := url.Parse(p.Address)
	if err != nil {
		return nil, fmt.Errorf("the proxy's address: %w", err)
	}
	if p.Username != "" && p.Password != "" {
		proxy.User = url.UserPassword(p.Username, p.Password)
	}
	return proxy, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback() || strings.EqualFold(host, "localhost") || strings.EqualFold(host, "loopback")
}

// SaveProxy writes .proxy, and the credential under a new key into the store.
func (d Dir) SaveProxy(p Proxy) error {
	if err := os.WriteFile(d.Path(fileProxy), []byte(p.Address), 0o644); err != nil {
		return fmt.Errorf("keep the proxy's address: %w", err)
	}
	if p.Username == "" || p.Password == "" {
		return nil
	}
	key := strings.ToUpper(uuid.NewString())
	if err := os.WriteFile(d.Path(fileProxyCredentials), []byte(key), 0o644); err != nil {
		return fmt.Errorf("keep the proxy's credential: %w", err)
	}
	password, err := obscure(p.Password)
	if err != nil {
		return err
	}
	return d.save(fileCredentialStore, map[string]stored{storePrefix + key: {p.Username, password}}, 0o600)
}

// stored is a credential in the store.
type stored struct {
	UserName string `json:"userName"`
	Password string `json:"password"` // Obscured.
}

// storedCredential gives what .proxycredentials leads to. A key that the store does not have
// is an error, as for the real agent.
func (d Dir) storedCredential() (username, password string, err error) {
	key, err := d.firstLine(fileProxyCredentials)
	if err != nil || key == "" {
		return "", "", err
	}
	store, err := load[map[string]stored](d, fileCredentialStore)
	if err != nil {
		return "", "", err
	}
	credential, known := store[storePrefix+key]
	if !known {
		return "", "", fmt.Errorf("%s has no %s%s", d.Path(fileCredentialStore), storePrefix, key)
	}
	password, err = reveal(credential.Password)
	return credential.UserName, password, err
}

func (d Dir) firstLine(name string) (string, error) {
	content, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s of the agent root: %w", name, err)
	}
	line, _, _ := strings.Cut(string(content), "\n")
	return strings.TrimSpace(line), nil
}

// storeCipher obscures the passwords of the store, with a key that is the machine's id where
// it has a good one. It is not meant to keep anybody out.
func storeCipher() (cipher.Block, []byte, error) {
	const iv, otherwise = "6d73667476737473", "5f767374735f6167656e745f63726564"
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("the machine's id: %w", err)
	}
	key, _, _ := strings.Cut(string(id), "\n")
	if len(key) != len(otherwise) {
		key = otherwise
	}
	block, err := aes.NewCipher([]byte(key))
	return block, []byte(iv), err
}

func obscure(password string) (string, error) {
	block, iv, err := storeCipher()
	if err != nil {
		return "", err
	}
	missing := aes.BlockSize - len(password)%aes.BlockSize
	padded := append([]byte(password), bytes.Repeat([]byte{byte(missing)}, missing)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(padded, padded)
	return base64.StdEncoding.EncodeToString(padded), nil
}

func reveal(obscured string) (string, error) {
	block, iv, err := storeCipher()
	if err != nil {
		return "", err
	}
	text, err := base64.StdEncoding.DecodeString(obscured)
	if err != nil || len(text) == 0 || len(text)%aes.BlockSize != 0 {
		return "", errors.New("a password of the store is not what configure writes")
	}
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(text, text)
	padding := int(text[len(text)-1])
	if padding == 0 || padding > len(text) {
		return "", errors.New("a password of the store was written on another machine")
	}
	return string(text[:len(text)-padding]), nil
}
