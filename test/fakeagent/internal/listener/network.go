package listener

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/root"
)

// network is how the server is to be reached.
type network struct {
	proxy        root.Proxy
	certificates root.Certificates
	// saveProxy and saveCertificates say that configure was told, and has to keep it.
	saveProxy, saveCertificates bool
}

// loadNetwork reads what the root and the environment say.
func (l *listener) loadNetwork() (*network, error) {
	certificates, err := l.Root.Certificates()
	if err != nil {
		return nil, err
	}
	if certificates.CACert != "" {
		if _, err := os.Stat(certificates.CACert); err != nil {
			return nil, fmt.Errorf("certificate authority of the configuration: %w", err)
		}
	}
	proxy, err := l.Root.Proxy(l.Env)
	if err != nil {
		return nil, err
	}
	l.masker.Add(proxy.Password)
	return &network{proxy: proxy, certificates: certificates}, nil
}

// toldNetwork is that, and what the flags say over it.
func (l *listener) toldNetwork() (*network, error) {
	n, err := l.loadNetwork()
	if err != nil {
		return nil, err
	}
	if address := l.command.values[flagProxy]; address != "" {
		if u, err := url.Parse(address); err != nil || !u.IsAbs() || u.Host == "" {
			return nil, fmt.Errorf("%w: '%s' is not a well formed absolute URL", invalid(flagProxy), address)
		}
		n.proxy.Address, n.saveProxy = address, true
		n.proxy.Username, n.proxy.Password = l.command.values[flagProxyUser], l.command.values[flagProxySecret]
	}
	if file := l.command.values[flagCACert]; file != "" {
		if !filepath.IsAbs(file) {
			file = l.Root.Path(file)
		}
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("%w: %w", invalid(flagCACert), err)
		}
		n.certificates.CACert, n.saveCertificates = file, true
	}
	if l.command.on(flagSkipVerify) {
		n.certificates.SkipServerCertValidation, n.saveCertificates = true, true
	}
	return n, nil
}

// saveNetwork keeps what the flags said, once the agent is registered.
func (l *listener) saveNetwork() error {
	if l.network.saveProxy {
		if err := l.Root.SaveProxy(l.network.proxy); err != nil {
			return err
		}
	}
	if l.network.saveCertificates {
		return l.Root.SaveCertificates(l.network.certificates)
	}
	return nil
}
