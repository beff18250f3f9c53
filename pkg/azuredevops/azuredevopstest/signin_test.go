package azuredevopstest_test

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

func TestSignIn(t *testing.T) {
	html, redirect, refused := azuredevopstest.SignInHTML, azuredevopstest.SignInRedirect, azuredevopstest.SignInDenied
	for _, tc := range []struct {
		name, auth, path string
		method           string
		mode             azuredevopstest.SignInFailure
		suppress         bool
		status           int
		says             string
	}{
		{name: "no sign-in", status: 401, says: "TF400813"},
		{name: "good PAT", auth: basic(readPAT), status: 200},
		{name: "good PAT with a user name", auth: "Basic " + base64.StdEncoding.EncodeToString([]byte("VstsAgent:"+readPAT)), status: 200},
		{name: "good PAT as Bearer", auth: "Bearer " + readPAT, status: 200},
		{name: "bad PAT, page", auth: basic("wrong"), mode: html, status: 203, says: "<html"},
		{name: "bad PAT, redirect", auth: basic("wrong"), mode: redirect, status: 302, says: "<html"},
		{name: "bad PAT, redirect suppressed", auth: basic("wrong"), mode: redirect, suppress: true, status: 401, says: "TF400813"},
		{name: "bad PAT, denied", auth: basic("wrong"), mode: refused, status: 401, says: "TF400813"},
		{name: "bad Bearer", auth: "Bearer wrong", status: 203, says: "<html"},
		{name: "expired PAT", auth: basic(expiredPAT), status: 401, says: "The Personal Access Token used has expired"},
		{name: "no rights", auth: basic(nothingPAT), status: 403, says: "nobody needs View permissions"},
		{name: "reading is not managing", auth: basic(readPAT), method: http.MethodPost, path: "agents", status: 403, says: "reader needs Manage permissions"},
		{name: "a PAT is no agent", auth: basic(managePAT), method: http.MethodPost, path: "sessions", status: 403, says: "manager needs Listen permissions"},
		{name: "pool out of sight", auth: basic(blindPAT), path: "agents", status: 404, says: "TaskAgentPoolNotFoundException"},
		{name: "not Base64", auth: "Basic %", status: 400, says: "Base64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, azuredevopstest.Options{SignInFailure: tc.mode})
			path, method := "/_apis/distributedtask/pools", http.MethodGet
			if tc.path != "" {
				path = s.poolPath(tc.path)
			}
			var body any
			if tc.method != "" {
				method, body = tc.method, map[string]string{}
			}
			req := httptest.NewRequest(method, s.url+path+"?api-version=7.1-preview", nil)
			if body != nil {
				req = httptest.NewRequest(method, s.url+path+"?api-version=7.1-preview", strings.NewReader("{}"))
				req.Header.Set("Content-Type", "application/json")
			}
			req.RequestURI = ""
			if tc.auth != "" {
				req.Header.Set("Authorization", tc.auth)
			}
			if tc.suppress {
				req.Header.Set("X-TFS-FedAuthRedirect", "Suppress")
			}
			r := s.do(req)
			if r.err != nil || r.status != tc.status || !strings.Contains(r.body, tc.says) {
				t.Fatalf("status %d, %v: %s; want %d and %q", r.status, r.err, r.body, tc.status, tc.says)
			}
			switch challenges := r.header.Values("WWW-Authenticate"); {
			case r.status == 401:
				all := strings.Join(challenges, " ")
				if !strings.Contains(all, "Bearer") || !strings.Contains(all, "Basic") || r.header.Get("X-TFS-ServiceError") == "" {
					t.Errorf("401 with WWW-Authenticate %q and X-TFS-ServiceError %q", all, r.header.Get("X-TFS-ServiceError"))
				}
			case len(challenges) > 0:
				t.Errorf("status %d with WWW-Authenticate %q", r.status, challenges)
			}
			if r.status == 302 && r.header.Get("Location") == "" {
				t.Error("302 without Location")
			}
		})
	}
}

func TestPlainHTTP(t *testing.T) {
	for _, allow := range []bool{false, true} {
		srv, err := azuredevopstest.New(azuredevopstest.Options{Tokens: allTokens(), AllowPlainHTTP: allow})
		if err != nil {
			t.Fatal(err)
		}
		defer srv.Close()
		req := httptest.NewRequest(http.MethodGet, "http://fake/acme/_apis/distributedtask/pools", nil)
		req.Header.Set("Authorization", basic(readPAT))
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, req)
		want := http.StatusUnauthorized
		if allow {
			want = http.StatusOK
		}
		if w.Code != want {
			t.Errorf("plain HTTP allowed %t: status %d, want %d: %s", allow, w.Code, want, w.Body)
		}
	}
}

func TestTokensComeAndGo(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	list := func(pat string) int {
		return s.send(t.Context(), http.MethodGet, "/_apis/distributedtask/pools", basic(pat), nil).status
	}
	if err := s.srv.AddToken(azuredevopstest.Token{Secret: "fresh", Rights: azuredevopstest.RightsRead}); err != nil {
		t.Fatal(err)
	}
	if got := list("fresh"); got != 200 {
		t.Fatalf("fresh token: %d", got)
	}
	s.srv.RemoveToken("fresh")
	if got := list("fresh"); got != 203 {
		t.Fatalf("revoked token: %d", got)
	}
	s.srv.SetSignInFailure(azuredevopstest.SignInDenied)
	if got := list("fresh"); got != 401 {
		t.Fatalf("revoked token after the switch: %d", got)
	}
	if err := s.srv.AddToken(azuredevopstest.Token{}); err == nil {
		t.Fatal("a token without a secret was taken")
	}
}

// TestAssertions breaks the agent's assertion in every way.
func TestAssertions(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	a := s.register("agent-1", nil)
	other := s.register("agent-2", nil)
	for _, tc := range []struct {
		name  string
		spoil func(*jwt.RegisteredClaims)
		says  string
	}{
		{"unknown client", func(c *jwt.RegisteredClaims) { c.Issuer = "0e0d2f2f-0000-4000-8000-000000000000"; c.Subject = c.Issuer }, "clientId"},
		{"no client", func(c *jwt.RegisteredClaims) { c.Issuer = "agent-1" }, "clientId"},
		{"another's subject", func(c *jwt.RegisteredClaims) { c.Subject = other.auth.ClientID }, "sub"},
		{"another audience", func(c *jwt.RegisteredClaims) { c.Audience = jwt.ClaimStrings{"https://elsewhere/"} }, "aud"},
		{"expired", func(c *jwt.RegisteredClaims) { c.ExpiresAt = jwt.NewNumericDate(c.NotBefore.Add(-60e9)) }, "expired"},
		{"no expiry", func(c *jwt.RegisteredClaims) { c.ExpiresAt = nil }, "exp"},
		{"too long a life", func(c *jwt.RegisteredClaims) { c.ExpiresAt = jwt.NewNumericDate(c.NotBefore.Add(3600e9)) }, "exp"},
		{"not yet", func(c *jwt.RegisteredClaims) { c.NotBefore = jwt.NewNumericDate(c.NotBefore.Add(120e9)) }, "not valid yet"},
		{"no jti", func(c *jwt.RegisteredClaims) { c.ID = "" }, "jti"},
	} {
		claims := a.claims()
		tc.spoil(&claims)
		if r := a.exchange(claims, jwt.SigningMethodRS256, a.key); r.status != 400 || !strings.Contains(r.body, "invalid_client") || !strings.Contains(r.body, tc.says) {
			t.Errorf("%s: %d %s, want 400 with %q", tc.name, r.status, r.body, tc.says)
		}
	}
	claims := a.claims()
	if r := a.exchange(claims, jwt.SigningMethodHS256, []byte("secret")); r.status != 400 || !strings.Contains(r.body, "signing method") {
		t.Errorf("another algorithm: %d %s", r.status, r.body)
	}
	if r := a.exchange(claims, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType); r.status != 400 {
		t.Errorf("no signature: %d %s", r.status, r.body)
	}
	if r := a.exchange(claims, jwt.SigningMethodRS256, a.key); r.status != 200 {
		t.Errorf("good assertion: %d %s", r.status, r.body)
	}
	if r := a.exchange(claims, jwt.SigningMethodRS256, a.key); r.status != 400 || !strings.Contains(r.body, "jti was used") {
		t.Errorf("replay: %d %s", r.status, r.body)
	}
	for _, form := range []string{"", "grant_type=password", "grant_type=client_credentials", "%zz"} {
		req := httptest.NewRequest(http.MethodPost, a.auth.AuthorizationURL, strings.NewReader(form))
		req.RequestURI = ""
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if r := s.do(req); r.status != 400 || !strings.Contains(r.body, `"error"`) {
			t.Errorf("form %q: %d %s", form, r.status, r.body)
		}
	}
}

// TestWhoMayDoWhat tries the tokens of agents and jobs where they do not belong.
func TestWhoMayDoWhat(t *testing.T) {
	s := start(t, azuredevopstest.Options{NoSecondJob: true})
	a, b := s.register("agent-1", nil), s.register("agent-2", nil)
	a.connect()
	b.connect()
	first, second := s.queue(azuredevopstest.Build{Name: "one"}), s.queue(azuredevopstest.Build{Name: "two"})
	_, ja := a.nextJob()
	_, jb := b.nextJob()
	if ja.RequestID == jb.RequestID {
		t.Fatalf("both got %d of %d and %d", ja.RequestID, first, second)
	}
	token := "Bearer " + ja.Resources.Endpoints[0].Authorization.Parameters["AccessToken"]
	plan := func(j job, scope string) string {
		return "/" + scope + "/_apis/distributedtask/hubs/build/plans/" + j.Plan.PlanID
	}
	empty := map[string]any{"path": "x", "value": []string{}}
	for _, tc := range []struct {
		name, method, path, auth string
		body                     any
		want                     int
	}{
		{"an agent deletes itself", http.MethodDelete, s.poolPath("agents/" + itoa(a.ID)), a.bearer, nil, 403},
		{"an agent disables itself", http.MethodPatch, s.poolPath("agents/" + itoa(a.ID)), a.bearer, map[string]any{"id": a.ID, "enabled": false}, 403},
		{"an agent reads itself", http.MethodGet, s.poolPath("agents/" + itoa(a.ID)), a.bearer, nil, 200},
		{"an agent finishes another's job", http.MethodPatch, s.poolPath("jobrequests/" + itoa(int(jb.RequestID)) + "?lockToken=00000000-0000-0000-0000-000000000000"), a.bearer, map[string]any{"result": 0}, 403},
		{"an agent polls another's session", http.MethodGet, s.poolPath("messages?sessionId=" + b.session), a.bearer, nil, 404},
		{"an agent closes another's session", http.MethodDelete, s.poolPath("sessions/" + b.session), a.bearer, nil, 404},
		{"an agent opens another's session", http.MethodPost, s.poolPath("sessions"), a.bearer, map[string]any{"ownerName": "x", "agent": map[string]any{"id": b.ID}}, 403},
		{"an agent writes to its job's plan", http.MethodPost, plan(ja, ja.Plan.ScopeIdentifier) + "/logs", a.bearer, empty, 403},
		{"a job reads the queue", http.MethodGet, s.poolPath("jobrequests"), token, nil, 403},
		{"a job reads the agents", http.MethodGet, s.poolPath("agents"), token, nil, 403},
		{"a job deletes its agent", http.MethodDelete, s.poolPath("agents/" + itoa(a.ID)), token, nil, 403},
		{"a job writes to another's plan", http.MethodPost, plan(jb, jb.Plan.ScopeIdentifier) + "/logs", token, empty, 403},
		{"a job writes under another scope", http.MethodPost, plan(ja, jb.Plan.PlanID) + "/logs", token, empty, 404},
		{"a job writes to another timeline", http.MethodPatch, plan(ja, ja.Plan.ScopeIdentifier) + "/timelines/" + jb.Timeline.ID + "/records", token, empty, 404},
		{"a job writes to a log that is not there", http.MethodPost, plan(ja, ja.Plan.ScopeIdentifier) + "/logs/9", token, empty, 404},
		{"a job ends another", http.MethodPost, plan(ja, ja.Plan.ScopeIdentifier) + "/events", token, map[string]any{"name": "JobCompleted", "jobId": jb.JobID, "requestId": jb.RequestID}, 400},
		{"a job writes its console", http.MethodPost, plan(ja, ja.Plan.ScopeIdentifier) + "/timelines/" + ja.Timeline.ID + "/records/" + ja.JobID + "/feed", token, empty, 204},
		{"a job writes to its plan", http.MethodPost, plan(ja, ja.Plan.ScopeIdentifier) + "/logs", token, empty, 201},
		{"a job reads its timeline", http.MethodGet, plan(ja, ja.Plan.ScopeIdentifier) + "/timelines/" + ja.Timeline.ID + "/records", token, nil, 200},
		{"a PAT writes to a plan", http.MethodPost, plan(ja, ja.Plan.ScopeIdentifier) + "/logs", basic(managePAT), empty, 403},
	} {
		if r := s.send(t.Context(), tc.method, tc.path, tc.auth, tc.body); r.err != nil || r.status != tc.want {
			t.Errorf("%s: %d %v %s, want %d", tc.name, r.status, r.err, r.body, tc.want)
		}
	}
}
