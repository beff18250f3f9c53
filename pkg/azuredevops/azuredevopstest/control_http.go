package azuredevopstest

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// controlPrefix is where the control API lives, beside the organisation.
const controlPrefix = "/_control/"

// controlRoutes is the control API over HTTP. Bodies and answers are the JSON
// forms of the types that the methods of Server take and return.
func (s *Server) controlRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			writeControl(w, v, err)
		})
	}
	handle("GET /pools", func(*http.Request) (any, error) { return s.controlPools(), nil })
	handle("POST /pools", func(r *http.Request) (any, error) {
		var body struct{ Name string }
		if err := readControl(r, &body); err != nil {
			return nil, err
		}
		return controlPool{ID: s.CreatePool(body.Name), Name: body.Name}, nil
	})
	handle("GET /builds", func(r *http.Request) (any, error) {
		pool, err := queryNumber(r, "poolId")
		return s.Builds(pool), err
	})
	handle("POST /builds", func(r *http.Request) (any, error) {
		var b Build
		if err := readControl(r, &b); err != nil {
			return nil, err
		}
		id, err := s.Queue(b)
		if err != nil {
			return nil, err
		}
		return s.Build(id)
	})
	handle("GET /builds/{id}", withID(s.Build))
	handle("POST /builds/{id}/cancel", withID(func(id int64) (BuildStatus, error) {
		if err := s.Cancel(id); err != nil {
			return BuildStatus{}, err
		}
		return s.Build(id)
	}))
	handle("GET /builds/{id}/log", withID(s.Log))
	handle("GET /builds/{id}/wait", func(r *http.Request) (any, error) {
		ctx, cancel, err := waitContext(r)
		if err != nil {
			return nil, err
		}
		defer cancel()
		return withID(func(id int64) (BuildStatus, error) { return s.Wait(ctx, id) })(r)
	})
	handle("GET /wait", func(r *http.Request) (any, error) {
		pool, err := queryNumber(r, "poolId")
		if err != nil {
			return nil, err
		}
		ctx, cancel, err := waitContext(r)
		if err != nil {
			return nil, err
		}
		defer cancel()
		return struct{}{}, s.WaitIdle(ctx, pool)
	})
	handle("GET /agents", func(r *http.Request) (any, error) {
		pool, err := queryNumber(r, "poolId")
		return s.Agents(pool), err
	})
	handle("POST /agents/update", func(r *http.Request) (any, error) {
		var body struct {
			PoolID, AgentID int
			Version         string
		}
		if err := readControl(r, &body); err != nil {
			return nil, err
		}
		return struct{}{}, s.RequestUpdate(body.PoolID, body.AgentID, body.Version)
	})
	handle("POST /history", func(r *http.Request) (any, error) {
		var body struct{ PoolID, Rows int }
		if err := readControl(r, &body); err != nil {
			return nil, err
		}
		return struct{}{}, s.AddHistory(body.PoolID, body.Rows)
	})
	s.controlFaults(handle)
	s.controlSettings(handle)
	return mux
}

func (s *Server) controlFaults(handle func(string, func(*http.Request) (any, error))) {
	handle("GET /faults", func(*http.Request) (any, error) { return s.Faults(), nil })
	handle("POST /faults", func(r *http.Request) (any, error) {
		var f Fault
		if err := readControl(r, &f); err != nil {
			return nil, err
		}
		id, err := s.Inject(f)
		return map[string]int{"id": id}, err
	})
	handle("DELETE /faults", func(*http.Request) (any, error) {
		s.ClearFaults()
		return struct{}{}, nil
	})
	handle("DELETE /faults/{id}", withID(func(id int64) (struct{}, error) {
		s.RemoveFault(int(id))
		return struct{}{}, nil
	}))
}

func (s *Server) controlSettings(handle func(string, func(*http.Request) (any, error))) {
	handle("POST /tokens", func(r *http.Request) (any, error) {
		var t Token
		if err := readControl(r, &t); err != nil {
			return nil, err
		}
		return struct{}{}, s.AddToken(t)
	})
	handle("POST /settings", func(r *http.Request) (any, error) {
		var body struct {
			ParallelJobs  *int
			SecondJob     *bool
			SignInFailure *SignInFailure
		}
		if err := readControl(r, &body); err != nil {
			return nil, err
		}
		if body.ParallelJobs != nil {
			s.SetParallelJobs(*body.ParallelJobs)
		}
		if body.SecondJob != nil {
			s.SetSecondJob(*body.SecondJob)
		}
		if body.SignInFailure != nil {
			s.SetSignInFailure(*body.SignInFailure)
		}
		return struct{}{}, nil
	})
	handle("GET /audit", func(r *http.Request) (any, error) {
		after, err := queryNumber(r, "after")
		if err != nil {
			return nil, err
		}
		return s.Events(uint64(max(after, 0))), nil
	})
}

type controlPool struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
}

func (s *Server) controlPools() []controlPool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []controlPool{}
	for _, p := range s.sortedPools() {
		all = append(all, controlPool{p.id, p.name})
	}
	return all
}

// serveControl answers what comes to the control API.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	want := "Bearer " + s.opts.ControlToken
	if s.opts.ControlToken != "" && subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(want)) != 1 {
		writeControl(w, nil, errControlToken)
		return
	}
	http.StripPrefix(strings.TrimSuffix(controlPrefix, "/"), s.control).ServeHTTP(w, r)
}

var (
	errControlToken = errors.New("the control API needs the bearer token of Options.ControlToken")
	errBadControl   = errors.New("bad request")
)

func readControl(r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("%w: body of %s %s: %w", errBadControl, r.Method, r.URL.Path, err)
	}
	return nil
}

func queryNumber(r *http.Request, name string) (int, error) {
	n, err := strconv.Atoi(r.URL.Query().Get(name))
	if err != nil {
		return 0, fmt.Errorf("%w: query %s=%q: use a number", errBadControl, name, r.URL.Query().Get(name))
	}
	return n, nil
}

func withID[T any](f func(int64) (T, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: id %q: use a number", errBadControl, r.PathValue("id"))
		}
		return f(id)
	}
}

// waitContext bounds a wait by the query's timeout, 30 s unless given.
func waitContext(r *http.Request) (context.Context, context.CancelFunc, error) {
	timeout := 30 * time.Second
	if text := r.URL.Query().Get("timeout"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, nil, fmt.Errorf("%w: query timeout=%q: use a duration such as 30s", errBadControl, text)
		}
		timeout = d
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	return ctx, cancel, nil
}

// writeControl answers with JSON, with text for a log, or with an error.
func writeControl(w http.ResponseWriter, v any, err error) {
	if err != nil {
		status := http.StatusUnprocessableEntity
		switch {
		case errors.Is(err, errControlToken):
			status = http.StatusUnauthorized
		case errors.Is(err, errBadControl):
			status = http.StatusBadRequest
		case errors.Is(err, ErrUnknown):
			status = http.StatusNotFound
		case errors.Is(err, ErrFinished):
			status = http.StatusConflict
		case errors.Is(err, context.DeadlineExceeded):
			status = http.StatusRequestTimeout
		}
		http.Error(w, err.Error(), status)
		return
	}
	if text, ok := v.(string); ok {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(text))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(mustJSON(v) + "\n"))
}
