package azuredevopstest

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// identity is who sent a request: the owner of a token, an agent, or a job.
type identity struct {
	name    string
	token   *Token
	agent   *agent
	request *request
}

func (t Token) withDefaults() Token {
	if t.Identity == "" {
		t.Identity = "user"
	}
	return t
}

// sees tells whether an identity may know of a pool.
func (i identity) sees(p *pool) bool {
	switch {
	case i.agent != nil:
		return i.agent.pool == p
	case i.token != nil:
		return i.token.Pools == nil || slices.ContainsFunc(i.token.Pools, func(name string) bool {
			return strings.EqualFold(name, p.name)
		})
	default:
		return false
	}
}

// signInPage is how the service turns away who it does not know, instead of
// an error that a program could read.
type signInPage struct {
	status   int
	location string
}

func (p *signInPage) Error() string { return fmt.Sprintf("sign-in page with status %d", p.status) }

// page is the sign-in page itself.
const page = "<!DOCTYPE html>\r\n<html lang=\"en-US\"><head><title>Azure DevOps Services | Sign In</title></head>" +
	"<body><div class=\"header\">Azure DevOps</div><p>Sign in to continue.</p></body></html>\r\n"

// replyPage answers with the sign-in page.
func (c *call) replyPage(status int, location string) {
	c.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if location != "" {
		c.w.Header().Set("Location", location)
	}
	c.answer = answer{status: status, body: []byte(page)}
}

// challenge names the ways to sign in.
func challenge(h http.Header, r *http.Request) {
	h.Add("WWW-Authenticate", `Bearer authorization_uri="https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000"`)
	h.Add("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", origin(r)+"/"))
	h.Add("WWW-Authenticate", "TFS-Federated")
}

// signIn finds out who is calling and whether they may.
func (s *Server) signIn(c *call) error {
	if c.route.access == accessOpen {
		return nil
	}
	secret, basic, err := credentials(c.r)
	if err != nil {
		return err
	}
	if secret == "" {
		return fail(http.StatusUnauthorized, "UnauthorizedRequestException",
			"TF400813: The user '' is not authorized to access this resource.")
	}
	if basic && c.r.TLS == nil && !s.opts.AllowPlainHTTP {
		return fail(http.StatusUnauthorized, "UnauthorizedRequestException",
			"Basic authentication requires a secure connection to the server.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.who = s.identify(secret, time.Now())
	switch {
	case c.who.name == "":
		return s.refuseSignIn(c)
	case c.who.token != nil && c.who.token.Expired:
		return fail(http.StatusUnauthorized, "UnauthorizedRequestException",
			"Access Denied: The Personal Access Token used has expired.")
	}
	return s.authorize(c)
}

// credentials reads the Authorization header.
func credentials(r *http.Request) (secret string, basic bool, err error) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case strings.EqualFold(scheme, "bearer"):
		return strings.TrimSpace(rest), false, nil
	case strings.EqualFold(scheme, "basic"):
		plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		if err != nil {
			return "", true, badRequest("The Authorization header is not valid Base64.")
		}
		// The user's name does not matter to the service: it is mostly empty.
		_, password, _ := strings.Cut(string(plain), ":")
		return password, true, nil
	default:
		return "", false, nil
	}
}

// identify resolves a secret. The caller holds the mutex.
func (s *Server) identify(secret string, now time.Time) identity {
	if t, ok := s.tokens[secret]; ok && (t.Expires.IsZero() || now.Before(t.Expires)) {
		return identity{name: t.Identity, token: &t}
	}
	if g, ok := s.grants[secret]; ok && now.Before(g.expires) {
		return identity{name: g.agent.identity(), agent: g.agent}
	}
	if r, ok := s.jobs[secret]; ok && (r.result == "" || now.Sub(r.finishedAt) < jobTokenAfterlife) {
		return identity{name: fmt.Sprintf("job:%d", r.id), request: r}
	}
	return identity{}
}

// jobTokenAfterlife is how long a job's token lives after its job, for the
// worker's last reports.
const jobTokenAfterlife = 5 * time.Minute

// refuseSignIn answers a secret nobody has. The caller holds the mutex.
func (s *Server) refuseSignIn(c *call) error {
	switch s.settings.signInFailure {
	case SignInRedirect:
		if !strings.EqualFold(c.r.Header.Get("X-TFS-FedAuthRedirect"), "Suppress") {
			return &signInPage{status: http.StatusFound, location: c.base + "/_signin?realm=" + c.r.Host}
		}
		return denied()
	case SignInDenied:
		return denied()
	default:
		return &signInPage{status: http.StatusNonAuthoritativeInfo}
	}
}

func denied() error {
	return fail(http.StatusUnauthorized, "UnauthorizedRequestException",
		"TF400813: The user 'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa' is not authorized to access this resource.")
}

// authorize checks the right that a route asks for. The caller holds the mutex.
func (s *Server) authorize(c *call) error {
	who := c.who
	allowed := true
	need := "View"
	switch c.route.access {
	case accessOpen, accessAny:
	case accessRead:
		allowed = who.agent != nil || who.token != nil && who.token.Rights >= RightsRead
	case accessManage:
		need = "Manage"
		allowed = who.token != nil && who.token.Rights >= RightsManage
	case accessAgent:
		need = "Listen"
		allowed = who.agent != nil
	case accessJob:
		need = "Write"
		allowed = who.request != nil
	}
	if allowed {
		return nil
	}
	name := c.vars["poolId"]
	if name == "" {
		name = s.opts.Organisation
	}
	return accessDenied(who.name, need, name)
}

// pool finds the pool of the path, if the caller may know of it. The caller
// holds the mutex.
func (c *call) pool() (*pool, error) {
	id, err := c.number("poolId")
	if err != nil {
		return nil, err
	}
	p := c.srv.pools[int(id)]
	if p == nil || !c.who.sees(p) {
		return nil, poolNotFound(c.vars["poolId"])
	}
	return p, nil
}
