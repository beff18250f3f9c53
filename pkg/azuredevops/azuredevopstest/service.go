package azuredevopstest

import (
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// access is who may use a route.
type access int

const (
	// accessOpen needs no sign-in.
	accessOpen access = iota
	// accessAny needs any identity.
	accessAny
	// accessRead needs a token that may read, or the agent of that pool.
	accessRead
	// accessManage needs a token that may manage.
	accessManage
	// accessAgent needs an agent's own access token.
	accessAgent
	// accessJob needs the access token of a job.
	accessJob
)

// route is one operation of the service.
type route struct {
	operation string
	method    string
	pattern   []string
	access    access
	handle    func(*call) error
}

// table lists the operations; every path starts behind the organisation.
func (s *Server) table() []route {
	const (
		dt     = "_apis/distributedtask/"
		agents = dt + "pools/{poolId}/agents"
		plans  = "{scope}/" + dt + "hubs/{hub}/plans/{planId}/"
	)
	downloads := accessOpen
	if s.opts.SignInToDownload {
		downloads = accessRead
	}
	var routes []route
	add := func(operation, method, path string, who access, handle func(*call) error) {
		routes = append(routes, route{operation, method, strings.Split(path, "/"), who, handle})
	}
	add("options", http.MethodOptions, "_apis", accessAny, (*call).options)
	add("options", http.MethodOptions, "_apis/{area}", accessAny, (*call).options)
	add("connectiondata", http.MethodGet, "_apis/connectionData", accessAny, (*call).connectionData)
	add("resourceareas", http.MethodGet, "_apis/ResourceAreas", accessAny, (*call).resourceAreas)
	add("resourceareas", http.MethodGet, "_apis/ResourceAreas/{areaId}", accessAny, (*call).resourceArea)
	add("oauth.token", http.MethodPost, oauthPath, accessOpen, (*call).oauthToken)

	add("pools.list", http.MethodGet, dt+"pools", accessRead, (*call).listPools)
	add("pools.get", http.MethodGet, dt+"pools/{poolId}", accessRead, (*call).getPool)

	add("agents.list", http.MethodGet, agents, accessRead, (*call).listAgents)
	add("agents.add", http.MethodPost, agents, accessManage, (*call).addAgent)
	add("agents.get", http.MethodGet, agents+"/{agentId}", accessRead, (*call).getAgent)
	add("agents.replace", http.MethodPut, agents+"/{agentId}", accessManage, (*call).replaceAgent)
	add("agents.update", http.MethodPatch, agents+"/{agentId}", accessManage, (*call).updateAgent)
	add("agents.delete", http.MethodDelete, agents+"/{agentId}", accessManage, (*call).deleteAgent)

	add("sessions.create", http.MethodPost, dt+"pools/{poolId}/sessions", accessAgent, (*call).createSession)
	add("sessions.delete", http.MethodDelete, dt+"pools/{poolId}/sessions/{sessionId}", accessAgent, (*call).deleteSession)
	add("messages.get", http.MethodGet, dt+"pools/{poolId}/messages", accessAgent, (*call).getMessage)
	add("messages.delete", http.MethodDelete, dt+"pools/{poolId}/messages/{messageId}", accessAgent, (*call).deleteMessage)

	add("jobrequests.list", http.MethodGet, dt+"pools/{poolId}/jobrequests", accessRead, (*call).listRequests)
	add("jobrequests.get", http.MethodGet, dt+"pools/{poolId}/jobrequests/{requestId}", accessRead, (*call).getRequest)
	add("jobrequests.update", http.MethodPatch, dt+"pools/{poolId}/jobrequests/{requestId}", accessAgent, (*call).updateRequest)

	add("packages.list", http.MethodGet, dt+"packages/{type}", accessRead, (*call).listPackages)
	add("packages.list", http.MethodGet, dt+"packages/{type}/{platform}", accessRead, (*call).listPackages)
	add("packages.get", http.MethodGet, dt+"packages/{type}/{platform}/{version}", accessRead, (*call).getPackage)
	add("packages.download", http.MethodGet, downloadPath+"/{type}/{version}/{filename}", downloads, (*call).downloadPackage)
	add("resourceusage", http.MethodGet, dt+"resourceusage", accessRead, (*call).resourceUsage)

	add("timeline.get", http.MethodGet, plans+"timelines/{timelineId}/records", accessJob, (*call).getRecords)
	add("timeline.update", http.MethodPatch, plans+"timelines/{timelineId}/records", accessJob, (*call).updateRecords)
	add("feed.append", http.MethodPost, plans+"timelines/{timelineId}/records/{recordId}/feed", accessJob, (*call).appendFeed)
	add("logs.create", http.MethodPost, plans+"logs", accessJob, (*call).createLog)
	add("logs.append", http.MethodPost, plans+"logs/{logId}", accessJob, (*call).appendLog)
	add("events.raise", http.MethodPost, plans+"events", accessJob, (*call).raiseEvent)
	return routes
}

// serveService answers what comes to the organisation.
func (s *Server) serveService(w http.ResponseWriter, r *http.Request) {
	out := &statusWriter{ResponseWriter: w}
	c := &call{srv: s, w: out, r: r, query: r.URL.Query()}
	// Deferred, as an injected fault ends a request with a panic that the HTTP
	// server understands.
	defer func() {
		who := c.who.name
		if who == "" {
			who = "anonymous"
		}
		s.audit.record(Event{Event: "http", By: who, Result: out.result(), Detail: r.Method + " " + r.URL.Path})
	}()

	route, vars, err := s.find(r)
	c.base = origin(r) + "/" + s.opts.Organisation
	s.standardHeaders(c)
	if err != nil {
		c.refuse(err)
		c.send()
		return
	}
	c.route, c.vars = route, vars
	if !s.pause(r, s.opts.Latency) {
		return
	}
	signInErr := s.signIn(c)
	f := s.faults.strike(route.operation, c.who.name)
	if f != nil {
		s.audit.record(Event{Event: "fault", By: c.who.name, Result: string(f.Kind), Detail: route.operation})
		if f.before(c) {
			c.send()
			return
		}
	}
	if signInErr != nil {
		c.refuse(signInErr)
	} else if err := c.handle(); err != nil {
		c.refuse(err)
	}
	if f != nil {
		f.after(c)
		return
	}
	c.send()
}

// handle runs the operation.
func (c *call) handle() error {
	if err := c.checkVersion(); err != nil {
		return err
	}
	return c.route.handle(c)
}

// send writes the answer. It runs without any lock, as the caller may read
// slowly or not at all; that it has gone away is no failure of the service.
func (c *call) send() {
	a := c.answer
	if a.status == 0 {
		return
	}
	if a.stream != nil {
		c.w.WriteHeader(a.status)
		_ = a.stream(c.w)
		return
	}
	c.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	c.w.WriteHeader(a.status)
	_, _ = c.w.Write(a.body)
}

// find looks a request's operation up. Paths are compared without regard to
// case, as the service does, while the values in them keep theirs.
func (s *Server) find(r *http.Request) (*route, map[string]string, error) {
	segments := strings.Split(strings.Trim(r.URL.EscapedPath(), "/"), "/")
	for i, segment := range segments {
		plain, err := url.PathUnescape(segment)
		if err != nil {
			return nil, nil, badRequest("The path '%s' cannot be read.", r.URL.Path)
		}
		segments[i] = plain
	}
	depth := min(strings.Count(s.opts.Organisation, "/")+1, len(segments))
	if name := strings.Join(segments[:depth], "/"); !strings.EqualFold(name, s.opts.Organisation) {
		return nil, nil, fail(http.StatusNotFound, "VssServiceException",
			"VS800075: The organization '%s' does not exist, or you do not have access to it.", name)
	}
	segments = segments[depth:]
	known := false
	for i := range s.routes {
		vars, ok := match(s.routes[i].pattern, segments)
		if !ok {
			continue
		}
		known = true
		if s.routes[i].method == r.Method {
			return &s.routes[i], vars, nil
		}
	}
	if known {
		return nil, nil, fail(http.StatusMethodNotAllowed, "VssRequestMethodNotAllowedException",
			"The requested resource does not support http method '%s'.", r.Method)
	}
	return nil, nil, controllerNotFound(r.URL.Path)
}

func match(pattern, segments []string) (map[string]string, bool) {
	if len(pattern) != len(segments) {
		return nil, false
	}
	vars := make(map[string]string)
	for i, want := range pattern {
		if name, ok := strings.CutPrefix(want, "{"); ok {
			if segments[i] == "" {
				return nil, false
			}
			vars[strings.TrimSuffix(name, "}")] = segments[i]
			continue
		}
		if !strings.EqualFold(want, segments[i]) {
			return nil, false
		}
	}
	return vars, true
}

// origin is the scheme and host by which a caller came.
func origin(r *http.Request) string {
	if r.TLS == nil {
		return "http://" + r.Host
	}
	return "https://" + r.Host
}

// standardHeaders sets what every answer of the service carries.
func (s *Server) standardHeaders(c *call) {
	s.mu.Lock()
	activity := s.newID().String()
	s.mu.Unlock()
	h := c.w.Header()
	h.Set("X-TFS-ProcessId", s.hostID.String())
	h.Set("X-TFS-Session", activity)
	h.Set("ActivityId", activity)
	h.Set("X-VSS-E2EID", activity)
	h.Set("X-FRAME-OPTIONS", "SAMEORIGIN")
	h.Set("Cache-Control", "no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("Expires", "-1")
}

var apiVersion = regexp.MustCompile(`^\d+\.\d+(-preview(\.\d+)?)?$`)

// checkVersion holds a request to the service's rules for versions: one that
// changes something must name the version it was written for.
func (c *call) checkVersion() error {
	if c.route.operation == "options" || c.route.access == accessOpen {
		return nil
	}
	v := requestedVersion(c.r)
	switch {
	case v == "" && c.r.Method != http.MethodGet:
		return fail(http.StatusBadRequest, "VssVersionNotSpecifiedException",
			"No api-version was supplied for the \"%s\" request. The version must be supplied either as part of the Accept header (e.g. \"application/json; api-version=1.0\") or as a query parameter (e.g. \"?api-version=1.0\").", c.r.Method)
	case v != "" && !apiVersion.MatchString(v):
		return fail(http.StatusBadRequest, "VssInvalidApiVersionException", "The requested api-version \"%s\" is not valid.", v)
	case v != "" && compareVersions(v, maxAPIVersion) > 0:
		return fail(http.StatusBadRequest, "VssVersionOutOfRangeException",
			"The requested REST API version of %s is out of range for this server. The latest REST API version this server supports is %s.", v, maxAPIVersion)
	}
	return nil
}

// refuse answers with an exception or with the sign-in page.
func (c *call) refuse(err error) {
	if p := (*signInPage)(nil); errors.As(err, &p) {
		c.replyPage(p.status, p.location)
		return
	}
	var e *serviceError
	if !errors.As(err, &e) {
		e = fail(http.StatusInternalServerError, "VssServiceException", "TF400898: An Internal Error Occurred: %v", err)
	}
	c.w.Header().Set("X-TFS-ServiceError", url.QueryEscape(e.message))
	if e.status == http.StatusUnauthorized {
		challenge(c.w.Header(), c.r)
	}
	c.jsonHeader()
	c.answer = answer{status: e.status, body: []byte(c.srv.mark() + mustJSON(e.body()))}
}

// pause waits, but not beyond the caller's patience or the server's end. It
// reports whether to go on.
func (s *Server) pause(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	case <-s.ctx.Done():
		return false
	}
}

// statusWriter remembers the status for the audit log.
type statusWriter struct {
	http.ResponseWriter
	status int
	reset  bool
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) result() string {
	switch {
	case w.reset:
		return "reset"
	case w.status == 0:
		return "none"
	default:
		return strconv.Itoa(w.status)
	}
}
