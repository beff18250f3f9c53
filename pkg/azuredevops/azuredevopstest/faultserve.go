package azuredevopstest

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/http"
	"strconv"
	"time"
)

// before acts out what happens instead of handling a request. It reports
// whether that was all; the answer, if any, is then in the call.
func (a *activeFault) before(c *call) bool {
	switch a.Kind {
	case FaultStatus:
		status := a.Status
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		c.refuse(fail(status, "VssServiceException", "TF400898: An Internal Error Occurred. Activity Id: %s.", c.w.Header().Get("ActivityId")))
	case FaultThrottle:
		a.rateHeaders(c, true)
		c.refuse(fail(http.StatusTooManyRequests, "VssServiceException",
			"TF400733: The request has been canceled: Request was blocked due to exceeding usage of resource 'Concurrency' in namespace 'User'."))
	case FaultReset:
		c.reset()
	case FaultHang:
		c.srv.pause(c.r, time.Hour)
		c.reset()
	case FaultLatency:
		return !c.srv.pause(c.r, a.Delay)
	case FaultHTML:
		c.replyPage(http.StatusOK, "")
	case FaultSignIn203:
		c.replyPage(http.StatusNonAuthoritativeInfo, "")
	case FaultSignIn302:
		c.replyPage(http.StatusFound, c.base+"/_signin?realm="+c.r.Host)
	case FaultSignIn401:
		c.refuse(denied())
	case FaultRetryAfter, FaultRateHeaders, FaultTruncate, FaultCut, FaultSlowBody, FaultLostAnswer, FaultHangAnswer,
		FaultMalformedRow, FaultCountMismatch, FaultWrongShape:
		return false
	}
	return true
}

// after sends the answer of a request in the way of the fault.
func (a *activeFault) after(c *call) {
	switch a.Kind {
	case FaultRetryAfter:
		a.rateHeaders(c, true)
		c.send()
		return
	case FaultRateHeaders:
		a.rateHeaders(c, false)
		c.send()
		return
	case FaultHangAnswer:
		c.srv.pause(c.r, time.Hour)
		c.reset()
		return
	case FaultLostAnswer:
		c.reset()
		return
	case FaultStatus, FaultThrottle, FaultReset, FaultHang, FaultLatency, FaultHTML, FaultSignIn203, FaultSignIn302, FaultSignIn401:
		c.send()
		return
	case FaultTruncate, FaultCut, FaultSlowBody, FaultMalformedRow, FaultCountMismatch, FaultWrongShape:
	}
	if !c.collect() {
		return
	}
	body := c.answer.body
	switch a.Kind {
	case FaultTruncate:
		c.answer.body = body[:len(body)/2]
		c.send()
	case FaultCut:
		c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		c.w.WriteHeader(c.answer.status)
		_, _ = c.w.Write(body[:len(body)/2])
		_ = http.NewResponseController(c.w).Flush()
		c.reset()
	case FaultSlowBody:
		a.drip(c, body)
	default:
		c.answer.body = a.spoil(body)
		c.send()
	}
}

// collect turns a streamed answer into one that is held, to change it.
func (c *call) collect() bool {
	if c.answer.status == 0 {
		return false
	}
	if c.answer.stream == nil {
		return true
	}
	var buf bytes.Buffer
	if err := c.answer.stream(&buf); err != nil {
		c.refuse(err)
		c.send()
		return false
	}
	c.answer.body, c.answer.stream = buf.Bytes(), nil
	return true
}

// drip sends a body in eight pieces.
func (a *activeFault) drip(c *call, body []byte) {
	const pieces = 8
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(c.answer.status)
	for i := range pieces {
		if i > 0 && !c.srv.pause(c.r, a.Delay) {
			return
		}
		if _, err := c.w.Write(body[len(body)*i/pieces : len(body)*(i+1)/pieces]); err != nil {
			return
		}
		_ = http.NewResponseController(c.w).Flush()
	}
}

// rateHeaders sets the headers by which the service announces that a caller is
// slowed down, or soon will be.
func (a *activeFault) rateHeaders(c *call, retryAfter bool) {
	h := c.w.Header()
	seconds := strconv.Itoa(max(1, int(a.RetryAfter.Round(time.Second).Seconds())))
	h.Set("X-RateLimit-Resource", "AzureDevOps/DistributedTask")
	h.Set("X-RateLimit-Limit", "200")
	h.Set("X-RateLimit-Reset", strconv.FormatInt(time.Now().Add(a.RetryAfter).Unix(), 10))
	if !retryAfter {
		h.Set("X-RateLimit-Remaining", "40")
		return
	}
	h.Set("Retry-After", seconds)
	h.Set("X-RateLimit-Remaining", "0")
	h.Set("X-RateLimit-Delay", seconds+".000")
}

// reset breaks the connection without an answer. Over a transport whose
// connection cannot be had, the HTTP server is told to abort.
func (c *call) reset() {
	if w, ok := c.w.(*statusWriter); ok {
		w.reset = true
	}
	c.answer = answer{}
	conn, _, err := http.NewResponseController(c.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	raw := conn
	if t, ok := conn.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		// Without lingering, closing sends RST instead of FIN.
		_ = t.SetLinger(0)
	}
	_ = raw.Close()
}
