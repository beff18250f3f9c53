package azuredevops

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

const signInPage = "<!DOCTYPE html><html><head><title>Azure DevOps Services | Sign In</title></head></html>"

// TestTypedErrors shows for every way in which the service refuses that the list of
// job requests fails with the right kind, once, and never as an empty queue.
func TestTypedErrors(t *testing.T) {
	t.Parallel()
	html := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(signInPage))
		}
	}
	refuse := func(status int, typeKey, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { answerError(w, status, typeKey, message) }
	}
	moved := func(status int, location string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(status)
		}
	}
	body := func(contentType, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = []string{contentType}
			_, _ = w.Write([]byte(text))
		}
	}
	tests := map[string]struct {
		answer  http.HandlerFunc
		kind    error
		outcome string
		says    []string
		tries   int
	}{
		"203 with a sign-in page":     {html(203), ErrAuthentication, OutcomeAuthentication, []string{"status 203", "sign-in page", "check that the token"}, 1},
		"203 with JSON":               {func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 203, `{"count":0,"value":[]}`) }, ErrAuthentication, OutcomeAuthentication, []string{"status 203"}, 1},
		"302 to sign in":              {moved(302, "https://spsprodeus.vssps.visualstudio.com/_signin?realm=dev.azure.com&x=SECRETQUERY"), ErrAuthentication, OutcomeAuthentication, []string{"redirected to sign in at https://spsprodeus.vssps.visualstudio.com/_signin"}, 1},
		"307 to sign in":              {moved(307, "https://sts.test/_signin"), ErrAuthentication, OutcomeAuthentication, []string{"sign in"}, 1},
		"301 to another place":        {moved(301, "https://elsewhere.test/acme"), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"redirected to https://elsewhere.test/acme", "set the URL"}, 1},
		"200 with a page":             {html(200), ErrAuthentication, OutcomeAuthentication, []string{"a page came instead of JSON"}, 1},
		"200 with a page called JSON": {body("application/json", signInPage), ErrAuthentication, OutcomeAuthentication, []string{"a page came instead of JSON"}, 1},
		"200 with text":               {body("text/plain", "hello"), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"cannot be read"}, 1},
		"401 TF400813":                {refuse(401, "UnauthorizedRequestException", "TF400813: The user 'aaaa' is not authorized to access this resource."), ErrAuthentication, OutcomeAuthentication, []string{"TF400813", "check that the token"}, 1},
		"401 expired": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Tfs-Serviceerror", "Access+Denied%3A+The+Personal+Access+Token+used+has+expired.")
			w.WriteHeader(401)
		}, ErrAuthentication, OutcomeAuthentication, []string{"The Personal Access Token used has expired", "make a new one"}, 1},
		"403":                        {refuse(403, "AccessCheckException", "Access denied. Bot needs View permissions for pool ci."), ErrAuthorization, OutcomeAuthorization, []string{"needs View permissions", "Agent Pools (read)"}, 1},
		"404 in the service's words": {refuse(404, "TaskAgentPoolNotFoundException", "No agent pool found with identifier 5."), ErrNotFound, OutcomeNotFound, []string{"identifier 5"}, 1},
		"404 of somebody else":       {html(404), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"not in the service's words"}, 1},
		"409":                        {refuse(409, "TaskAgentExistsException", "Pool 5 already contains an agent with name a."), ErrConflict, OutcomeConflict, []string{"already contains"}, 1},
		"agent busy":                 {refuse(400, "TaskAgentJobStillRunningException", `Agent "a" is running a job for pool "ci"`), ErrAgentBusy, OutcomeAgentBusy, []string{"is running a job"}, 1},
		"agent busy, as a 500":       {refuse(500, "", `Agent "a" is running a job for pool "ci"`), ErrAgentBusy, OutcomeAgentBusy, nil, 1},
		"400":                        {refuse(400, "VssVersionNotSpecifiedException", "No api-version was supplied."), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"No api-version"}, 1},
		"500":                        {refuse(500, "X", "TF246017: the database is down"), ErrUnavailable, OutcomeUnavailable, []string{"TF246017"}, 3},
		"503 with a page":            {html(503), ErrUnavailable, OutcomeUnavailable, []string{"status 503"}, 3},
		"501":                        {html(501), ErrUnavailable, OutcomeUnavailable, nil, 1},
		"408":                        {html(408), ErrUnavailable, OutcomeUnavailable, nil, 3},
		"407":                        {html(407), ErrUnavailable, OutcomeUnavailable, []string{"the proxy wants a user and password", "AZP_PROXY_USERNAME_FILE"}, 1},
		"empty answer":               {body("application/json", ""), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"empty"}, 1},
		"another shape":              {body("application/json", "[]"), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"not with an object"}, 1},
		"no list":                    {body("application/json", "{}"), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"no list named value"}, 1},
		"a cut list, called whole":   {body("application/json", `{"count":2,"value":[{"requestId":1},`), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"unexpected EOF"}, 1},
		"fewer rows than the count":  {body("application/json", `{"count":2,"value":[{"requestId":1}]}`), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"the count says 2"}, 1},
		"more rows than the count":   {body("application/json", `{"value":[{"requestId":1}],"count":0}`), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"the count says 0"}, 1},
		"something after the end":    {body("application/json", `{"count":0,"value":[]}{}`), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"follows the end"}, 1},
		"connection cut in the body": {cutBody(`{"count":2,"value":[{"requestId":1},`), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"cut short"}, 1},
		"connection cut before":      {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ErrUnavailable, OutcomeUnavailable, []string{"no answer"}, 3},
		"the token echoed":           {refuse(400, "X", "bad token "+testToken), ErrUnexpectedAnswer, OutcomeUnexpected, []string{"bad token [redacted]"}, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recorder := &recording{}
			c := newService(t, test.answer, func(c *Config) { c.Recorder = recorder })
			_, _, err := poll(t.Context(), c)
			if !errors.Is(err, test.kind) {
				t.Fatalf("got %v, want %v", err, test.kind)
			}
			if got := Outcome(err); got != test.outcome {
				t.Errorf("outcome %s, want %s", got, test.outcome)
			}
			var e *Error
			if !errors.As(err, &e) || e.Op != OpJobRequests || e.Method != http.MethodGet || !strings.Contains(e.URL, "/Acme/_apis/distributedtask/pools/5/jobrequests") {
				t.Errorf("error without what it is about: %#v", e)
			}
			for _, want := range append(test.says, OpJobRequests) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			for _, secret := range []string{testToken, "SECRETQUERY", "completedRequestCount"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q tells %q", err, secret)
				}
			}
			// Recorded are the discovery and each attempt, and nothing else.
			seen := recorder.seen()
			if len(seen) != test.tries+1 || seen[0] != OpDiscover+" "+OutcomeOK {
				t.Errorf("recorded %q, want %d attempts after the discovery", seen, test.tries)
			}
			for _, got := range seen[1:] {
				if !strings.HasPrefix(got, OpJobRequests+" ") {
					t.Errorf("recorded %q", got)
				}
			}
		})
	}
}

// cutBody announces more than it sends.
func cutBody(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write([]byte(text))
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
		panic(http.ErrAbortHandler)
	}
}

func TestDiscovery(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		answer http.HandlerFunc
		kind   error
		says   string
	}{
		"empty": {func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"count":0,"value":[]}`) }, ErrUnexpectedAnswer, "0 usable routes"},
		"entries that would crash the SDK": {func(w http.ResponseWriter, _ *http.Request) {
			answerJSON(w, 200, `{"count":2,"value":[{"id":"`+locationPools+`"},7,{"id":"`+locationAgents+`","area":"a","resourceName":"r","routeTemplate":"t","resourceVersion":1,"minVersion":"1.0","maxVersion":"x","releasedVersion":"0.0"}]}`)
		}, ErrUnexpectedAnswer, "0 usable routes"},
		"not JSON":             {func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, 200, `{"count":`) }, ErrUnexpectedAnswer, "not Azure DevOps'"},
		"no such organisation": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, ErrUnexpectedAnswer, "names an organisation"},
		"no such organisation, in JSON": {func(w http.ResponseWriter, _ *http.Request) {
			answerError(w, 404, "HostNotFound", "The organisation is not there.")
		}, ErrUnexpectedAnswer, "The organisation is not there"},
		"refused": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, ErrAuthentication, "check that the token"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := true
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case bad:
					test.answer(w, r)
				case r.Method == http.MethodOptions:
					answerJSON(w, 200, routesAnswer())
				case r.Method == http.MethodDelete:
					answerJSON(w, 200, "")
				default:
					answerJSON(w, 200, `{"count":0,"value":[]}`)
				}
			}))
			defer server.Close()
			c := newClient(t, server.URL+"/acme")
			err := c.DeleteAgent(t.Context(), 5, 7)
			// Above all not ErrNotFound, which would say that the agent is gone.
			if !errors.Is(err, test.kind) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v, want %v saying %q", err, test.kind, test.says)
			}
			bad = false
			if err := c.DeleteAgent(t.Context(), 5, 7); err != nil {
				t.Errorf("still %v after the server has recovered", err)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	_, _, err := poll(t.Context(), newClient(t, url+"/acme"))
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "no answer") || !strings.Contains(err.Error(), "check the URL") {
		t.Errorf("got %v", err)
	}
}

func TestUntrustedCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	recorder := &recording{}
	_, _, err := poll(t.Context(), newClient(t, server.URL+"/acme", func(c *Config) { c.Recorder = recorder }))
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "not trusted") || !strings.Contains(err.Error(), "AZP_CA_FILE") {
		t.Errorf("got %v", err)
	}
	if got := recorder.seen(); len(got) != 1 {
		t.Errorf("tried %d times, though that cannot help", len(got))
	}
}

// TestCallerGivesUp tells a cancellation from a failure of the service.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	reached := make(chan struct{}, 10)
	c := newService(t, func(_ http.ResponseWriter, r *http.Request) {
		reached <- struct{}{}
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	_, _, err := poll(ctx, c)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) || Outcome(err) != OutcomeCanceled {
		t.Errorf("canceled: got %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err = poll(ctx, c)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("deadline: got %v", err)
	}
}

// TestServiceHangs shows that our own limit ends an attempt, in the headers as in
// the middle of a list.
func TestServiceHangs(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]string{"before the headers": "", "in the list": `{"count":2,"value":[{"requestId":1},`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recorder := &recording{}
			c := newService(t, func(w http.ResponseWriter, r *http.Request) {
				if start != "" {
					w.Header().Set("Content-Type", "application/json")
					_, _ = w.Write([]byte(start))
					flush(t, w)
				}
				<-r.Context().Done()
			}, func(c *Config) { c.Timeout, c.Recorder = 200*time.Millisecond, recorder })
			_, _, err := poll(t.Context(), c)
			if !errors.Is(err, ErrUnavailable) || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "time limit of the request") {
				t.Errorf("got %v", err)
			}
			if got := recorder.seen(); !slices.Contains(got, OpJobRequests+" "+OutcomeUnavailable) || len(got) != 2 {
				t.Errorf("recorded %q", got)
			}
		})
	}
}

func TestOutcomesAndOperationsAreClosedSets(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, ErrAuthentication, ErrAuthorization, &ThrottledError{}, ErrNotFound, ErrConflict, ErrAgentBusy, ErrUnavailable, ErrUnexpectedAnswer, context.Canceled, ErrAmbiguous} {
		if got := Outcome(err); !slices.Contains(Outcomes(), got) {
			t.Errorf("outcome %q of %v is not listed", got, err)
		}
	}
	for _, set := range [][]string{Outcomes(), Operations()} {
		if unique := slices.Compact(slices.Sorted(slices.Values(set))); len(unique) != len(set) {
			t.Errorf("%q has doubles", set)
		}
	}
}

func TestMessagesAreBounded(t *testing.T) {
	t.Parallel()
	e := classify(reply{status: 400, header: http.Header{}, body: []byte(`{"message":"` + strings.Repeat(`é\n`, 2000) + `"}`)}, false, time.Now())
	if n := len([]rune(e.Message)); n > maxErrorMessage+1 || strings.ContainsAny(e.Message, "\n\r") {
		t.Errorf("message of %d characters: %q", n, e.Message)
	}
}

// FuzzClassify holds that no answer but a good one passes for one: what is no JSON, a page to
// sign in and a redirection are errors, whatever they say, and never an empty queue.
func FuzzClassify(f *testing.F) {
	f.Add(200, "application/json; charset=utf-8", "", `{"count":0,"value":[]}`)
	f.Add(203, "text/html", "", "<html>")
	f.Add(200, "text/html", "5", "<html>")
	f.Add(302, "application/json", "", "{}")
	f.Add(429, "application/json", "-1", `{"message":"TF400733"}`)
	f.Add(503, "", "Thu, 01 Jan 2026 00:00:00 GMT", "")
	f.Add(400, "application/json", "99999999999999999999", `{"message":"Agent \"x\" is running a job for pool \"p\"","typeKey":"TaskAgentJobStillRunningException"}`)
	f.Fuzz(func(t *testing.T, status int, contentType, wait, body string) {
		if status < 100 || status > 599 {
			t.Skip("no status of HTTP")
		}
		header := http.Header{"Content-Type": {contentType}, "Retry-After": {wait}}
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		e := classify(reply{status: status, header: header, body: []byte(body)}, false, now)
		good := status >= 200 && status < 300 && status != http.StatusNonAuthoritativeInfo
		switch {
		case e == nil && !good:
			t.Errorf("%d passes for a good answer", status)
		case e == nil && strings.HasPrefix(strings.TrimSpace(body), "<") && status != http.StatusNoContent:
			t.Errorf("a page passes for JSON: %q", body)
		case e != nil && e.Error() == "":
			t.Errorf("%d is an error without words", status)
		}
		if pause, ok := retryAfter(header, now); ok && pause < 0 {
			t.Errorf("Retry-After %q is a wait of %s", wait, pause)
		}
	})
}
