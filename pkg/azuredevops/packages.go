package azuredevops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
)

// Package is a build of the agent program for one platform.
type Package struct {
	Version  string // Such as 4.248.0.
	URL      string
	SHA256   string // Lower-case hex.
	Filename string
}

// Validate tells what keeps the package from being downloaded.
func (p Package) Validate() error {
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fmt.Errorf("package %s: its download URL is none", p.Version)
	}
	if sum, err := hex.DecodeString(p.SHA256); err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("package %s: %.80q is no SHA-256 in hex", p.Version, p.SHA256)
	}
	return nil
}

// NameFromURL gives the name that the package has where it lies.
func (p Package) NameFromURL() string {
	u, err := url.Parse(p.URL)
	if err != nil {
		return ""
	}
	return path.Base(u.Path)
}

// maxRedirects bounds how often a download is sent elsewhere.
const maxRedirects = 5

// Package finds the agent program for a platform such as linux-x64: the version
// asked for, or the newest the service offers when version is empty. ErrNotFound
// means that it offers none.
func (c *Client) Package(ctx context.Context, platform, version string) (Package, error) {
	r := request{
		call:     call{op: OpPackage},
		method:   http.MethodGet,
		location: locationPackages,
		route:    map[string]string{"packageType": "agent", "platform": platform},
		query:    url.Values{"$top": {"1"}},
	}
	if version != "" {
		// More than were ever published for one platform.
		r.query.Set("$top", "1000")
	}
	var (
		found   *Package
		offered []string
		bad     error
	)
	_, malformed, err := list(ctx, c, r, func(row []byte) error {
		p, err := decodePackage(row)
		if err != nil {
			bad = err
			return err
		}
		offered = append(offered, p.Version)
		if found == nil && (version == "" || p.Version == version) {
			found = &p
		}
		return nil
	})
	switch {
	case err != nil:
		return Package{}, err
	case found != nil:
		return *found, nil
	case malformed > 0:
		return Package{}, &Error{Op: OpPackage, URL: c.url, Kind: ErrUnexpectedAnswer, Message: "the package of the agent for " + platform + " cannot be used", Err: bad}
	case len(offered) > 0:
		return Package{}, &Error{Op: OpPackage, URL: c.url, Kind: ErrNotFound, Message: fmt.Sprintf("agent version %s for %s; newest offered: %s", version, platform, offered[0]), Remedy: "set AZP_AGENT_VERSION to an offered version or leave it empty"}
	default:
		return Package{}, &Error{Op: OpPackage, URL: c.url, Kind: ErrNotFound, Message: "no agent for the platform " + platform, Remedy: "set AZP_PLATFORM to a platform of the agent's, such as linux-x64 or linux-arm64"}
	}
}

// decodePackage reads and checks one row.
func decodePackage(row []byte) (Package, error) {
	var wire struct {
		Version struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Patch int `json:"patch"`
		} `json:"version"`
		DownloadURL string `json:"downloadUrl"`
		HashValue   string `json:"hashValue"`
		Filename    string `json:"filename"`
	}
	if err := json.Unmarshal(row, &wire); err != nil {
		return Package{}, fmt.Errorf("package: %w", err)
	}
	p := Package{
		Version:  fmt.Sprintf("%d.%d.%d", wire.Version.Major, wire.Version.Minor, wire.Version.Patch),
		URL:      wire.DownloadURL,
		SHA256:   strings.ToLower(strings.ReplaceAll(wire.HashValue, "-", "")),
		Filename: wire.Filename,
	}
	if err := p.Validate(); err != nil {
		return Package{}, err
	}
	if p.Filename == "" {
		p.Filename = p.NameFromURL()
	}
	// The name may become a file's: it must not lead out of a directory.
	if p.Filename != path.Base(p.Filename) || strings.ContainsAny(p.Filename, `\:`) || strings.HasPrefix(p.Filename, ".") || p.Filename == "/" {
		return Package{}, fmt.Errorf("package %s: %.80q is no file name", p.Version, p.Filename)
	}
	return p, nil
}

// Downloader downloads packages.
type Downloader struct{ http *http.Client }

// NewDownloader makes a downloader that signs in nowhere, as packages mostly lie on public
// networks. URL and Token of the configuration are not used.
func NewDownloader(config Config) (*Downloader, error) {
	way, err := NewTransport(config.CAFile, config.Proxy)
	if err != nil {
		return nil, err
	}
	config.setDefaults()
	if config.Transport == nil {
		config.Transport = way
	}
	return newDownloader(config.transport()), nil
}

// Download writes a package to w and checks its SHA-256 on the way. progress, if
// not nil, is called after every piece with the bytes so far and in all, the
// latter -1 where the server does not say. On an error, ErrWrongHash among them,
// throw away what was written. Once bytes have come it is not tried again, since w
// cannot be taken back.
//
// A client's token is sent only if the package lies on the service's own host.
func (d *Downloader) Download(ctx context.Context, p Package, w io.Writer, progress func(done, total int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	req, err := http.NewRequestWithContext(withCall(ctx, call{op: OpDownload, stream: true, files: true}), http.MethodGet, p.URL, http.NoBody)
	if err != nil {
		return &Error{Op: OpDownload, Kind: ErrUnexpectedAnswer, Message: "download URL", Err: errors.New("does not parse")}
	}
	req.Header.Set("Accept", "application/octet-stream, */*")
	fail := func(e *Error) error {
		e.Op, e.Method, e.URL = OpDownload, req.Method, bareURL(req.URL)
		return e
	}
	resp, err := d.http.Do(req)
	if err != nil {
		var known *Error
		if errors.As(err, &known) {
			return known
		}
		// Without the URL, whose query may hold a signature.
		var sent *url.Error
		if errors.As(err, &sent) {
			err = sent.Err
		}
		return fail(&Error{Kind: ErrUnexpectedAnswer, Err: err})
	}
	defer drop(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fail(&Error{Status: resp.StatusCode, Kind: ErrUnexpectedAnswer, Message: "no file came"})
	}
	hash := sha256.New()
	meter := &meter{total: resp.ContentLength, tell: progress}
	if _, err := io.Copy(io.MultiWriter(w, hash, meter), resp.Body); err != nil {
		var known *Error
		if errors.As(err, &known) {
			return fail(known)
		}
		return fmt.Errorf("%s: write package %s: %w", OpDownload, p.Filename, err)
	}
	if sum := hex.EncodeToString(hash.Sum(nil)); sum != p.SHA256 {
		return fail(&Error{
			Status: resp.StatusCode, Kind: ErrUnexpectedAnswer, Err: ErrWrongHash,
			Message: fmt.Sprintf("package %s of %d bytes has the SHA-256 %s, and the service announced %s", p.Filename, meter.done, sum, p.SHA256),
			Remedy:  "nothing of it was used; a proxy or mirror that alters downloads is the likely cause",
		})
	}
	return nil
}

// meter counts what is written and tells it on.
type meter struct {
	done, total int64
	tell        func(done, total int64)
}

// Write counts.
func (m *meter) Write(p []byte) (int, error) {
	m.done += int64(len(p))
	m.tell(m.done, m.total)
	return len(p), nil
}

// newDownloader follows redirects, unlike the rest of the client: packages lie on
// content networks. The transport gives the token to the service's host alone.
func newDownloader(t *transport) *Downloader {
	return &Downloader{http: &http.Client{
		Transport: t,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return errors.New("redirected too often")
			}
			if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
				return errors.New("redirected from https to a place without encryption")
			}
			return nil
		},
	}}
}
