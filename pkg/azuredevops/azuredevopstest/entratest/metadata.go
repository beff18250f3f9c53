package entratest

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// metadataPath is where machines ask for the tokens of their managed identities.
const metadataPath = "/metadata/identity/oauth2/token"

// Metadata is the metadata endpoint of a machine that has the applications with
// Assigned as its managed identities. Like the original it gives out a token that it
// has until half of its life is over, and refuses what came through a proxy.
func (s *Server) Metadata() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != metadataPath {
			http.NotFound(w, r)
			return
		}
		if s.failing(w, func(c *Counts) { c.Metadata++ }) {
			return
		}
		s.machineToken(w, r)
	})
}

// machineToken answers one request for a token.
func (s *Server) machineToken(w http.ResponseWriter, r *http.Request) {
	invalid := func(name, why string) {
		reply(w, http.StatusBadRequest, map[string]string{"error": name, "error_description": why})
	}
	query := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		invalid("invalid_request", "Required metadata header not specified")
		return
	case r.Header.Get("X-Forwarded-For") != "":
		reply(w, http.StatusForbidden, map[string]string{"error": "forbidden", "error_description": "X-Forwarded-For is not allowed"})
		return
	case query.Get("api-version") != "2018-02-01":
		invalid("invalid_request", "Required query variable 'api-version' is missing or not supported")
		return
	case query.Get("resource") == "":
		invalid("invalid_request", "Required audience parameter not specified")
		return
	}
	audience, e := checkResource(query.Get("resource"))
	if e != nil {
		invalid(e.name, e.Error())
		return
	}
	now := time.Now()
	s.mu.Lock()
	client, why := s.assigned(query.Get("client_id"))
	if why != "" {
		s.mu.Unlock()
		invalid("invalid_request", why)
		return
	}
	kept, found := s.metadata[client+" "+audience]
	if !found || kept.Expires.Sub(now) < kept.Expires.Sub(kept.at)/2 {
		kept = s.issue(client, audience, now)
		s.metadata[client+" "+audience] = kept
	}
	s.mu.Unlock()
	seconds := strconv.Itoa(int(kept.Expires.Sub(now) / time.Second))
	reply(w, http.StatusOK, map[string]string{
		"access_token": kept.Secret, "client_id": client, "expires_in": seconds, "ext_expires_in": seconds,
		"expires_on": strconv.FormatInt(kept.Expires.Unix(), 10), "not_before": strconv.FormatInt(kept.at.Unix(), 10),
		"resource": audience, "token_type": "Bearer",
	})
}

// assigned finds the identity that is meant. The caller holds the mutex.
func (s *Server) assigned(wanted string) (client, why string) {
	var all []string
	for _, a := range s.applications {
		if a.Assigned {
			all = append(all, a.ClientID)
		}
	}
	for _, id := range all {
		if strings.EqualFold(id, wanted) {
			return id, ""
		}
	}
	switch {
	case wanted != "" || len(all) == 0:
		return "", "Identity not found"
	case len(all) > 1:
		return "", "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
	default:
		return all[0], ""
	}
}
