package azuredevopstest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// maxBody bounds what a caller may send.
const maxBody = 8 << 20

// call is one request to the service on its way through.
type call struct {
	srv   *Server
	w     http.ResponseWriter
	r     *http.Request
	route *route
	vars  map[string]string
	query url.Values
	who   identity
	// base is the organisation's address as this caller knows it.
	base   string
	answer answer
}

// list is the service's wrapper for arrays.
type list struct {
	Count int `json:"count"`
	Value any `json:"value"`
}

// answer is what a handler leaves to be sent once it holds no lock any more.
type answer struct {
	status int
	body   []byte
	// stream, if set, writes the body piece by piece instead.
	stream func(io.Writer) error
}

// reply answers with JSON.
func (c *call) reply(status int, body any) error {
	var buf bytes.Buffer
	buf.WriteString(c.srv.mark())
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return fail(http.StatusInternalServerError, "VssServiceException", "cannot encode the answer: %v", err)
	}
	c.jsonHeader()
	c.answer = answer{status: status, body: buf.Bytes()}
	return nil
}

// replyEmpty answers with a status alone.
func (c *call) replyEmpty(status int) error {
	c.answer = answer{status: status}
	return nil
}

// mark is what leads every JSON answer.
func (s *Server) mark() string {
	if s.opts.BOM {
		return byteOrderMark
	}
	return ""
}

func (c *call) jsonHeader() {
	c.w.Header().Set("Content-Type", "application/json; charset=utf-8; api-version="+c.answeredVersion())
}

func (c *call) answeredVersion() string {
	if v := requestedVersion(c.r); v != "" {
		return v
	}
	return "7.2-preview.1"
}

const byteOrderMark = "\xef\xbb\xbf"

// decode reads a JSON body.
func (c *call) decode(into any) error {
	kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return fail(http.StatusUnsupportedMediaType, "UnsupportedMediaTypeException",
			"The request contains an entity body but the Content-Type %q is not supported for this resource.", c.r.Header.Get("Content-Type"))
	}
	raw, err := c.body()
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return badRequest("Value cannot be null. Parameter name: body")
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return badRequest("The body of %s %s cannot be read: %v", c.r.Method, c.r.URL.Path, err)
	}
	return nil
}

func (c *call) body() ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, fail(http.StatusRequestEntityTooLarge, "VssServiceException", "The body is larger than %d bytes.", maxBody)
	}
	if err != nil {
		return nil, badRequest("The body of %s %s cannot be read: %v", c.r.Method, c.r.URL.Path, err)
	}
	return bytes.TrimPrefix(raw, []byte(byteOrderMark)), nil
}

// number reads a number from the path.
func (c *call) number(name string) (int64, error) {
	n, err := strconv.ParseInt(c.vars[name], 10, 64)
	if err != nil || n < 0 {
		return 0, badRequest("The value '%s' is not valid for %s.", c.vars[name], name)
	}
	return n, nil
}

// param reads a query parameter; names are compared without regard to case.
func (c *call) param(name string) (string, bool) {
	for key, values := range c.query {
		if strings.EqualFold(key, name) && len(values) > 0 {
			return values[0], true
		}
	}
	return "", false
}

func (c *call) flag(name string) bool {
	v, _ := c.param(name)
	b, err := strconv.ParseBool(strings.ToLower(v))
	return err == nil && b
}

// count reads a query parameter that must be a number from 0 up.
func (c *call) count(name string) (n int, given bool, err error) {
	v, ok := c.param(name)
	if !ok || v == "" {
		return 0, false, nil
	}
	n, convErr := strconv.Atoi(v)
	if convErr != nil || n < 0 {
		return 0, true, badRequest("The value '%s' is not valid for %s.", v, name)
	}
	return n, true, nil
}

func (c *call) guid(text, what string) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil {
		return uuid.Nil, badRequest("The value '%s' is not valid for %s.", text, what)
	}
	return id, nil
}

// enumValue is a member of one of the service's enumerations in both spellings.
type enumValue struct {
	text   string
	number int
}

// enum gives the spelling this caller gets.
func (c *call) enum(v enumValue) any {
	if c.srv.opts.NumericEnums || strings.Contains(strings.ToLower(c.r.Header.Get("Accept")), "enumsasnumbers=true") {
		return v.number
	}
	return v.text
}

// results are the values of the service's TaskResult by number.
func results() []string {
	return []string{ResultSucceeded, ResultSucceededWithIssues, ResultFailed, ResultCanceled, ResultSkipped, ResultAbandoned}
}

// resultOf reads a TaskResult that a caller sent as number or as string in any
// case.
func resultOf(raw json.RawMessage) (string, error) {
	known := results()
	var n int
	if json.Unmarshal(raw, &n) == nil && n >= 0 && n < len(known) {
		return known[n], nil
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		for _, k := range known {
			if strings.EqualFold(k, text) {
				return k, nil
			}
		}
	}
	return "", badRequest("The value %s is not a task result.", raw)
}

func resultValue(result string) enumValue {
	for i, k := range results() {
		if k == result {
			return enumValue{k, i}
		}
	}
	return enumValue{result, -1}
}

// stamp writes a time as the service does: UTC with between no and seven digits
// of fraction. The zero time is left out.
func (s *Server) stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	const digits = "2006-01-02T15:04:05.0000000"
	text := t.UTC().Format(digits)
	keep := int(s.noise("digits", t.UnixNano()) % 8)
	text = text[:len(text)-7+keep]
	return strings.TrimSuffix(text, ".") + "Z"
}

// requestedVersion is the api-version of a request, from Accept, Content-Type
// or the query.
func requestedVersion(r *http.Request) string {
	for key, values := range r.URL.Query() {
		if strings.EqualFold(key, "api-version") && len(values) > 0 {
			return values[0]
		}
	}
	for _, header := range []string{"Accept", "Content-Type"} {
		for _, value := range r.Header.Values(header) {
			for part := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ';' || r == ',' }) {
				if name, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && strings.EqualFold(name, "api-version") {
					return strings.TrimSpace(v)
				}
			}
		}
	}
	return ""
}
