package azuredevops

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	sdk "github.com/microsoft/azure-devops-go-api/azuredevops/v7"
)

// Defaults and bounds of a client's limits.
const (
	// DefaultTimeout is for one attempt. The service may hold a request back for
	// most of a minute instead of refusing it, so a shorter one would make it worse.
	DefaultTimeout = 60 * time.Second
	// DefaultAttempts counts the first one.
	DefaultAttempts = 3
	// DefaultBackOff is the first wait between two attempts; it doubles.
	DefaultBackOff = 250 * time.Millisecond
	// DefaultLongestWait is the window over which the service counts use: after
	// that long, whatever was used up is there again.
	DefaultLongestWait = 5 * time.Minute

	defaultUserAgent = "azp-scaler"
)

// Config says where the service is and how to speak with it. Only URL and Token
// are required.
type Config struct {
	// URL is the organisation or collection, such as https://dev.azure.com/acme or
	// https://server/tfs/DefaultCollection.
	URL    string
	Token  TokenSource
	Scheme Scheme // Default SchemeBasic.
	// CAFile is a PEM file of further roots to trust beside the system's. It is
	// read once, by New.
	CAFile string
	// Proxy is the way out of the network; the zero value is the direct one.
	Proxy     Proxy
	UserAgent string
	// Timeout limits one attempt up to the end of its answer; for a download, the
	// time without any progress.
	Timeout  time.Duration
	Attempts int
	BackOff  time.Duration
	// LongestWait caps what a Retry-After can demand.
	LongestWait time.Duration
	Recorder    Recorder
	Logger      *slog.Logger
	// Transport replaces the way to the network, proxy and TLS included; nil is what
	// NewTransport makes.
	Transport http.RoundTripper
}

// Client speaks with one organisation. It is safe for concurrent use; all its
// users share its rate limit.
type Client struct {
	*Downloader // Which signs in where the service has packages itself.

	url       string
	sdk       *sdk.Client
	log       *slog.Logger
	malformed *changeLog
}

// New makes a client. It reads the CA file and sends nothing; every problem of
// the configuration is in the one error.
func New(config Config) (*Client, error) {
	base, urlErr := ParseURL(config.URL)
	var tokenErr error
	if config.Token == nil {
		tokenErr = errors.New("no token source: set AZP_TOKEN or AZP_TOKEN_FILE")
	}
	var schemeErr error
	switch config.Scheme {
	case "":
		config.Scheme = SchemeBasic
	case SchemeBasic, SchemeBearer:
	default:
		schemeErr = fmt.Errorf("sign-in scheme %q: want Basic or Bearer", string(config.Scheme))
	}
	way, wayErr := NewTransport(config.CAFile, config.Proxy)
	if err := errors.Join(urlErr, tokenErr, schemeErr, wayErr); err != nil {
		return nil, err
	}
	config.setDefaults()
	if config.Transport == nil {
		config.Transport = way
	}
	if base.Scheme == "http" && !isLoopback(base.Hostname()) {
		config.Logger.Warn("the token is sent without encryption: use an https URL", slog.String("url", bareURL(base)))
	}
	t := config.transport()
	t.origin, t.token, t.scheme = base, config.Token, config.Scheme
	address := bareURL(base)
	// Not through the SDK's constructors: they lower-case the URL's path, have no
	// way in for a transport, and ask for resource areas, which this area's routes
	// do not need as they are under the organisation's own URL.
	connection := &sdk.Connection{BaseUrl: address, SuppressFedAuthRedirect: true}
	return &Client{
		url: address,
		sdk: sdk.NewClientWithOptions(connection, address, sdk.WithHTTPClient(&http.Client{
			Transport:     t,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		})),
		Downloader: newDownloader(t),
		log:        config.Logger,
		malformed:  newChangeLog(),
	}, nil
}

// transport is that of the configuration, which signs in nowhere yet.
func (c *Config) transport() *transport {
	return &transport{
		base:     c.Transport,
		agent:    c.UserAgent,
		timeout:  c.Timeout,
		attempts: c.Attempts,
		backOff:  c.BackOff,
		gate:     &gate{limit: c.LongestWait},
		recorder: c.Recorder,
		log:      c.Logger,
	}
}

// URL is the organisation's or collection's, without a slash at the end.
func (c *Client) URL() string { return c.url }

// setDefaults fills in what is not set.
func (c *Config) setDefaults() {
	if c.UserAgent == "" {
		c.UserAgent = defaultUserAgent
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Attempts <= 0 {
		c.Attempts = DefaultAttempts
	}
	if c.BackOff <= 0 {
		c.BackOff = DefaultBackOff
	}
	if c.LongestWait <= 0 {
		c.LongestWait = DefaultLongestWait
	}
	if c.Recorder == nil {
		c.Recorder = silent{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// ParseURL checks the URL of an organisation or collection and gives it without a
// slash at the end. Its errors name the remedy and never repeat a password.
func ParseURL(text string) (*url.URL, error) {
	const example = "such as https://dev.azure.com/your-organisation or https://server/tfs/DefaultCollection"
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, errors.New("URL of the organisation (AZP_URL) is empty: set it, " + example)
	}
	u, err := url.Parse(text)
	if err != nil {
		// The error of url.Parse repeats the text, which may hold a password.
		return nil, errors.New("URL of the organisation (AZP_URL) does not parse: set one " + example)
	}
	if u.User != nil {
		return nil, errors.New("URL of the organisation (AZP_URL) has a user or password before the @: leave it out, the token goes in AZP_TOKEN or AZP_TOKEN_FILE")
	}
	fail := func(why string) (*url.URL, error) {
		return nil, fmt.Errorf("URL of the organisation (AZP_URL) %q %s", bareURL(u), why)
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http", u.Opaque != "":
		return fail("is not an http or https URL: set one " + example)
	case u.Hostname() == "":
		return fail("has no host: set one " + example)
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return fail("has a part after ? or #: leave it out")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = strings.TrimRight(u.RawPath, "/")
	host := strings.ToLower(u.Hostname())
	segments := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	switch {
	case u.Path == "" && !strings.HasSuffix(host, ".visualstudio.com"):
		return fail("names no organisation or collection: add it to the path, " + example)
	case host == "dev.azure.com" && len(segments) > 1:
		return fail(fmt.Sprintf("names more than the organisation: set it to https://dev.azure.com/%s", segments[0]))
	case strings.Contains(u.Path, "/_"):
		return fail("is a page inside the organisation: set the URL of the organisation itself, " + example)
	}
	return u, nil
}

// isLoopback reports whether the host is this machine.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
