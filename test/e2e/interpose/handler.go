package interpose

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync/atomic"
)

// Hook is asked at each moment of each call; when it reports true the connection ends there.
// It is called by several goroutines at once and may take its time: the client waits for it.
type Hook func(Call, Moment) bool

// Handler has a hook be asked around each request to a server.
func Handler(server string, next http.Handler, hook Hook) http.Handler {
	var calls atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		watch := r.URL.Query().Get("watch")
		call := Call{
			N: int(calls.Add(1)) - 1, Server: server, Method: r.Method, Path: r.URL.Path,
			Watch: watch == "true" || watch == "1", Remote: r.RemoteAddr,
		}
		if hook(call, Before) {
			panic(http.ErrAbortHandler)
		}
		answer := &answer{ResponseWriter: w, client: r.Context(), call: call, hook: hook}
		next.ServeHTTP(answer, r)
		answer.end()
	})
}

// answer asks the hook about what a server answers with.
type answer struct {
	http.ResponseWriter
	client         context.Context //nolint:containedctx // It ends with the client, as the answer does.
	call           Call
	hook           Hook
	begun, through bool
}

// WriteHeader begins the answer. One that the hook ends goes no further: the server takes the
// panic for that.
func (a *answer) WriteHeader(status int) {
	if status < http.StatusOK {
		a.ResponseWriter.WriteHeader(status)
		return
	}
	a.begin()
	a.ResponseWriter.WriteHeader(status)
	if a.call.Watch {
		a.end() // There may be nothing to follow for hours.
	}
}

func (a *answer) Write(data []byte) (int, error) {
	a.begin()
	return a.ResponseWriter.Write(data)
}

// Hijack is for a server that breaks the connection: there is no answer then.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	a.begun, a.through = true, true
	return http.NewResponseController(a.ResponseWriter).Hijack()
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) begin() {
	if !a.begun {
		a.begun = true
		a.ask(Sent)
	}
}

// end is reached when all that is to be waited for was written.
func (a *answer) end() {
	if a.through {
		return
	}
	a.begin() // A handler need not write anything to answer 200.
	a.through = true
	// What can't be sent has no client any more.
	_ = http.NewResponseController(a.ResponseWriter).Flush()
	a.ask(Answered)
}

// ask asks the hook, unless the client is gone already.
func (a *answer) ask(moment Moment) {
	if a.client.Err() == nil && a.hook(a.call, moment) {
		panic(http.ErrAbortHandler)
	}
}
