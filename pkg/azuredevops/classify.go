package azuredevops

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// Bounds of what an error answer may cost and show.
const (
	maxErrorBody    = 64 << 10
	maxErrorMessage = 500
)

// unknownWait is the wait after a refusal for overuse that names none.
const unknownWait = 10 * time.Second

// What a person can do about each kind of failure.
const (
	remedyToken    = "check that the token is current and belongs to this organisation, and that no proxy answers in the service's place; a token file is read again when it changes"
	remedyIdentity = "check that the identity was added to this organisation (Organization settings, Users), that the organisation is connected to the identity's tenant, and that no proxy answers in the service's place"
	remedyExpired  = "the personal access token has expired: make a new one and put it in the place of the old one"
	remedyRights   = "reading takes the scope Agent Pools (read); registering, disabling and deleting agents takes Agent Pools (read & manage) and the administrator role on the pool"
	remedyReach    = "check the URL, the name resolution, the proxy and the way out of the network; it is tried again"
	remedyCA       = "if the server's certificate comes from an authority of your own, give that authority's certificate (AZP_CA_FILE)"
	remedyURL      = "check that the URL names an organisation or collection that exists, such as https://dev.azure.com/your-organisation"
)

// reply is an answer with as much of its body as tells what it is.
type reply struct {
	status int
	header http.Header
	body   []byte // Bounded; the whole body only of an error.
}

// problem is the service's description of an error.
type problem struct {
	Message string `json:"message"`
	TypeKey string `json:"typeKey"`
	// Value holds the message in the other form that some routes answer.
	Value struct {
		Message string `json:"Message"`
	} `json:"value"`
}

// problemOf reads the description, if there is one.
func problemOf(r reply) (problem, bool) {
	var p problem
	if json.Unmarshal(trimMark(r.body), &p) == nil {
		if p.Message == "" {
			p.Message = p.Value.Message
		}
		if p.Message != "" || p.TypeKey != "" {
			return p, true
		}
	}
	if text, err := url.QueryUnescape(r.header.Get("X-TFS-ServiceError")); err == nil && text != "" {
		return problem{Message: text}, false
	}
	return problem{}, false
}

// classify gives the error that an answer stands for, or nil for one that brings
// what was asked for.
func classify(r reply, files bool, now time.Time) *Error {
	p, told := problemOf(r)
	e := &Error{Status: r.status, TypeKey: p.TypeKey, Message: oneLine(p.Message)}
	switch {
	case r.status == http.StatusNonAuthoritativeInfo:
		return e.as(ErrAuthentication, "the service answered with its sign-in page", remedyToken)
	case r.status >= 200 && r.status < 300:
		return e.checkContent(r, files)
	case r.status >= 300 && r.status < 400:
		return e.redirected(r)
	case p.TypeKey == "TaskAgentJobStillRunningException" || strings.Contains(p.Message, "is running a job for pool"):
		return e.as(ErrAgentBusy, "", "")
	case r.status == http.StatusTooManyRequests || strings.Contains(p.Message, "TF400733"):
		wait, ok := retryAfter(r.header, now)
		if !ok {
			wait = resetWait(r.header, now)
		}
		e.retry = true
		return e.as(&ThrottledError{RetryAfter: wait}, "", "the identity of this token asks too much: poll less often, or give this installation an identity of its own")
	case r.status == http.StatusUnauthorized:
		if strings.Contains(strings.ToLower(p.Message), "expired") {
			return e.as(ErrAuthentication, "", remedyExpired)
		}
		return e.as(ErrAuthentication, "", remedyToken)
	case r.status == http.StatusForbidden:
		return e.as(ErrAuthorization, "", remedyRights)
	case r.status == http.StatusProxyAuthRequired:
		return proxyRefusal(&refusedByProxy{status: r.status})
	case r.status == http.StatusNotFound && told:
		return e.as(ErrNotFound, "", "")
	case r.status == http.StatusConflict || p.TypeKey == "TaskAgentExistsException":
		return e.as(ErrConflict, "", "")
	case r.status == http.StatusRequestTimeout || r.status >= 500:
		e.retry = r.status != http.StatusNotImplemented
		return e.as(ErrUnavailable, "", "it is tried again; https://status.dev.azure.com shows known outages")
	case r.status == http.StatusNotFound:
		// A proxy's or a gateway's 404, or the whole organisation: it must not pass
		// for the service's word that an agent is gone.
		return e.as(ErrUnexpectedAnswer, "not found, but not in the service's words", remedyURL)
	default:
		return e.as(ErrUnexpectedAnswer, "", "")
	}
}

// as completes the error; the message is used where the service gave none.
func (e *Error) as(kind error, message, remedy string) *Error {
	e.Kind, e.Remedy = kind, remedy
	if e.Message == "" {
		e.Message = message
	}
	return e
}

// checkContent tells an answer from a page that only looks like success.
func (e *Error) checkContent(r reply, files bool) *Error {
	if files && hasHTML(r.header) {
		return e.as(ErrUnexpectedAnswer, "a page came instead of a file", "check that no proxy answers in the server's place, and that the download needs no sign-in")
	}
	if files || r.status == http.StatusNoContent {
		return nil
	}
	content := bytes.TrimLeft(trimMark(r.body), " \t\r\n")
	mediaType, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	html := strings.Contains(mediaType, "html") || bytes.HasPrefix(content, []byte("<"))
	switch {
	case html:
		e.Message = ""
		return e.as(ErrAuthentication, "a page came instead of JSON, as it does when the sign-in failed", remedyToken)
	case len(content) > 0 && mediaType != "" && !strings.HasSuffix(mediaType, "json"):
		e.Message = ""
		return e.as(ErrUnexpectedAnswer, fmt.Sprintf("the answer is %s, not JSON", mediaType), "check that the URL is Azure DevOps and that no proxy answers in its place")
	default:
		return nil
	}
}

// redirected tells a way to the sign-in page from a service that has moved. No
// redirect is followed: it could carry the token elsewhere.
func (e *Error) redirected(r reply) *Error {
	target := "an unnamed place"
	signIn := r.status == http.StatusFound
	if location, err := url.Parse(r.header.Get("Location")); err == nil && location.String() != "" {
		target = bareURL(location)
		signIn = signIn || strings.Contains(strings.ToLower(location.Path), "signin")
	}
	if signIn {
		return e.as(ErrAuthentication, "redirected to sign in at "+target, remedyToken)
	}
	return e.as(ErrUnexpectedAnswer, "redirected to "+target, "redirects are not followed: set the URL to where the service is")
}

// failed classifies a request that got no answer. ctx is the attempt's own
// context, whose cause tells our time limit from the caller's.
func failed(ctx context.Context, err error) *Error {
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		host    x509.HostnameError
		record  tls.RecordHeaderError
		dns     *net.DNSError
		known   *Error
		refused *refusedByProxy
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &refused):
		return proxyRefusal(refused)
	case errors.Is(context.Cause(ctx), errAttemptTime):
		return &Error{Kind: ErrUnavailable, Message: "no whole answer within the time limit", Err: errAttemptTime, Remedy: remedyReach}
	case errors.Is(ctx.Err(), context.Canceled):
		return &Error{Message: "given up by the caller", Err: ended(ctx)}
	case ctx.Err() != nil:
		return &Error{Kind: ErrUnavailable, Message: "no whole answer within the caller's time limit", Err: ended(ctx), Remedy: remedyReach}
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &host):
		return &Error{Kind: ErrUnavailable, Message: "the server's certificate is not trusted", Err: err, Remedy: remedyCA}
	case errors.As(err, &record):
		return &Error{Kind: ErrUnavailable, Message: "the server does not speak TLS there", Err: err, Remedy: "check the scheme and the port of the URL"}
	case errors.As(err, &dns) && dns.IsNotFound:
		return &Error{Kind: ErrUnavailable, Message: "the host's name is unknown", Err: err, Remedy: remedyReach, retry: true}
	default:
		return &Error{Kind: ErrUnavailable, Message: "no answer", Err: err, Remedy: remedyReach, retry: true}
	}
}

// ended is why a context ended, beside the context's own error.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return errors.Join(ctx.Err(), cause)
	}
	return ctx.Err()
}

// resetWait is until the service's own time of reset, or a default.
func resetWait(h http.Header, now time.Time) time.Duration {
	if limit, ok := rateLimit(h); ok && limit.Reset.After(now) {
		return limit.Reset.Sub(now)
	}
	return unknownWait
}

// oneLine makes a message of the service fit for a log.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if runes := []rune(text); len(runes) > maxErrorMessage {
		text = string(runes[:maxErrorMessage]) + "…"
	}
	return text
}

// bareURL is the part of a URL that cannot hold a secret.
func bareURL(u *url.URL) string {
	bare := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return bare.String()
}
