package entratest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// refusal is an error of the token endpoint.
type refusal struct {
	status  int
	name    string // RFC 6749 §5.2.
	code    int    // The number after AADSTS.
	message string
}

func (r *refusal) Error() string { return fmt.Sprintf("AADSTS%d: %s", r.code, r.message) }

// refuse makes a refusal. Entra answers 401 where the client's proof is wrong, and 400
// for everything else.
func refuse(name string, code int, format string, a ...any) *refusal {
	status := http.StatusBadRequest
	if name == "invalid_client" {
		status = http.StatusUnauthorized
	}
	return &refusal{status: status, name: name, code: code, message: fmt.Sprintf(format, a...)}
}

// write answers with the refusal, in the shape of Entra.
func (r *refusal) write(w http.ResponseWriter) {
	trace, correlation, now := uuid.NewString(), uuid.NewString(), time.Now().UTC().Format("2006-01-02 15:04:05Z")
	reply(w, r.status, map[string]any{
		"error":             r.name,
		"error_description": fmt.Sprintf("%s Trace ID: %s Correlation ID: %s Timestamp: %s", r.Error(), trace, correlation, now),
		"error_codes":       []int{r.code},
		"timestamp":         now,
		"trace_id":          trace,
		"correlation_id":    correlation,
		"error_uri":         fmt.Sprintf("https://login.microsoftonline.com/error?code=%d", r.code),
	})
}

// reply answers with JSON.
func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store, no-cache")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // The caller may be gone.
}
