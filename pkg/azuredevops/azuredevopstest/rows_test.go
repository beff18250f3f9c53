package azuredevopstest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
)

// rows is an answer to a query for job requests.
type rows struct {
	Count int
	Value []struct {
		RequestID                                                   int64
		QueueTime, AssignTime, ReceiveTime, FinishTime, LockedUntil string
		Result                                                      any
		ReservedAgent                                               *struct {
			ID   int
			Name string
		}
		MatchedAgents          []struct{ Name string }
		MatchesAllAgentsInPool bool
		Demands                []string
	}
}

func (s *service) rows(query string) (rows, http.Header) {
	s.t.Helper()
	r := s.manage(http.MethodGet, s.poolPath("jobrequests"+query), nil)
	var got rows
	r.into(s.t, &got)
	if got.Count != len(got.Value) {
		s.t.Fatalf("count %d, %d rows", got.Count, len(got.Value))
	}
	return got, r.header
}

func (r rows) ids() []int64 {
	var ids []int64
	for _, row := range r.Value {
		ids = append(ids, row.RequestID)
	}
	slices.Sort(ids)
	return ids
}

// TestQueryForms asks for job requests in each form.
func TestQueryForms(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 2, NoSecondJob: true})
	const history = 450
	if err := s.srv.AddHistory(s.pool, history); err != nil {
		t.Fatal(err)
	}
	a := s.register("agent-1", nil)
	s.register("agent-2", map[string]string{"npm": "yes"})
	a.connect()
	done := s.queue(azuredevopstest.Build{Name: "done"})
	a.nextJob()
	a.finish(done, 0)
	running := s.queue(azuredevopstest.Build{Name: "running"})
	a.nextJob()
	a.renew(running)
	waiting := s.queue(azuredevopstest.Build{Name: "waiting", Demands: []string{"npm"}})
	canceled := s.queue(azuredevopstest.Build{Name: "canceled", Demands: []string{"npm"}})
	if err := s.srv.Cancel(canceled); err != nil {
		t.Fatal(err)
	}

	open, _ := s.rows("?completedRequestCount=0")
	if !slices.Equal(open.ids(), []int64{running, waiting}) {
		t.Fatalf("unfinished %v, want %d and %d", open.ids(), running, waiting)
	}
	for _, row := range open.Value {
		switch row.RequestID {
		case running:
			if row.AssignTime == "" || row.ReceiveTime == "" || row.LockedUntil == "" || row.Result != nil || row.ReservedAgent == nil || row.ReservedAgent.ID != a.ID ||
				len(row.MatchedAgents) != 2 || !row.MatchesAllAgentsInPool {
				t.Errorf("running row %+v", row)
			}
		case waiting:
			if row.QueueTime == "" || row.AssignTime != "" || row.ReservedAgent != nil || len(row.MatchedAgents) != 1 || row.MatchedAgents[0].Name != "agent-2" || row.MatchesAllAgentsInPool {
				t.Errorf("waiting row %+v", row)
			}
		}
	}
	if some, _ := s.rows("?completedRequestCount=3"); len(some.Value) != 5 || !slices.Contains(some.ids(), canceled) || !slices.Contains(some.ids(), done) {
		t.Errorf("with three finished: %v", some.ids())
	}
	if all, _ := s.rows(""); len(all.Value) != history+4 {
		t.Errorf("%d rows in all, want %d", len(all.Value), history+4)
	}
	if of, _ := s.rows(fmt.Sprintf("?agentIds=%d,7&completedRequestCount=0", a.ID)); !slices.Equal(of.ids(), []int64{running}) {
		t.Errorf("of one agent, unfinished: %v", of.ids())
	}
	if of, _ := s.rows(fmt.Sprintf("?agentIds=%d&completedRequestCount=5", a.ID)); !slices.Equal(of.ids(), []int64{done, running}) {
		t.Errorf("of one agent: %v", of.ids())
	}

	seen := map[int64]bool{}
	token, pages := "", 0
	for {
		page, header := s.rows("?$top=1000&continuationToken=" + token)
		pages++
		if len(page.Value) > 200 {
			t.Fatalf("page of %d rows", len(page.Value))
		}
		for _, row := range page.Value {
			if seen[row.RequestID] {
				t.Fatalf("request %d twice", row.RequestID)
			}
			seen[row.RequestID] = true
			if len(row.MatchedAgents) > 0 {
				t.Fatalf("request %d with matchedAgents in pages", row.RequestID)
			}
		}
		if token = header.Get("X-MS-ContinuationToken"); token == "" {
			break
		}
	}
	if len(seen) != history+4 || pages != 3 || !seen[waiting] || !seen[canceled] {
		t.Errorf("%d rows in %d pages, want %d in 3", len(seen), pages, history+4)
	}
	if few, _ := s.rows("?$top=2"); !slices.Equal(few.ids(), []int64{waiting, canceled}) {
		t.Errorf("top 2: %v, want the newest", few.ids())
	}

	past := slices.Min(slices.Collect(keys(seen)))
	var one struct {
		RequestID     int64
		Result        string
		StatusMessage string
	}
	s.manage(http.MethodGet, s.poolPath(fmt.Sprintf("jobrequests/%d?includeStatus=true", past)), nil).into(t, &one)
	if one.RequestID != past || one.Result == "" {
		t.Errorf("row of the past %+v", one)
	}
	s.manage(http.MethodGet, s.poolPath(fmt.Sprintf("jobrequests/%d?includeStatus=true", waiting)), nil).into(t, &one)
	if one.StatusMessage != "All eligible agents are disabled or offline." {
		t.Errorf("status message %q", one.StatusMessage)
	}
	if err := s.srv.AddHistory(s.pool, -1); err == nil {
		t.Error("a negative past was taken")
	}
	if err := s.srv.AddHistory(0, 1); err == nil {
		t.Error("a past of no pool was taken")
	}
}

func keys(m map[int64]bool) func(func(int64) bool) {
	return func(yield func(int64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestSpellings checks the forms in which the service writes times,
// enumerations and the start of a body.
func TestSpellings(t *testing.T) {
	s := start(t, azuredevopstest.Options{Seed: 9, BOM: true})
	if err := s.srv.AddHistory(s.pool, 200); err != nil {
		t.Fatal(err)
	}
	r := s.manage(http.MethodGet, s.poolPath("jobrequests"), nil)
	text, ok := strings.CutPrefix(r.body, "\xef\xbb\xbf")
	if !ok {
		t.Error("no byte order mark")
	}
	var got rows
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	digits, unfinished := map[int]bool{}, 0
	for _, row := range got.Value {
		at, err := time.Parse(time.RFC3339Nano, row.QueueTime)
		if err != nil || at.Location() != time.UTC || !strings.HasSuffix(row.QueueTime, "Z") {
			t.Fatalf("time %q: %v", row.QueueTime, err)
		}
		_, fraction, _ := strings.Cut(strings.TrimSuffix(row.QueueTime, "Z"), ".")
		digits[len(fraction)] = true
		if row.FinishTime == "" {
			unfinished++
		}
		if row.Result == nil {
			t.Fatalf("row of the past without a result: %+v", row)
		}
	}
	if len(digits) != 8 {
		t.Errorf("fractions of %v digits, want 0 to 7", digits)
	}
	if unfinished == 0 || unfinished == len(got.Value) {
		t.Errorf("%d of %d rows of the past carry no finishTime, want some", unfinished, len(got.Value))
	}
	if again := s.manage(http.MethodGet, s.poolPath("jobrequests"), nil); again.body == r.body {
		t.Error("the order of rows is the same twice: none is promised")
	}
	req := func(accept string) string {
		s.register("agent-"+itoa(len(accept)), nil)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+s.poolPath("agents"), nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", basic(readPAT))
		request.Header.Set("Accept", accept)
		return s.do(request).body
	}
	if body := req("application/json;api-version=7.1"); !strings.Contains(body, `"status":"offline"`) {
		t.Errorf("no string in %s", body)
	}
	if body := req("application/json;api-version=7.1;enumsAsNumbers=true"); !strings.Contains(body, `"status":1`) {
		t.Errorf("no number in %s", body)
	}
}

// TestHistoryIsCheap reads a past of 50,000 rows without holding it.
func TestHistoryIsCheap(t *testing.T) {
	s := start(t, azuredevopstest.Options{})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	if err := s.srv.AddHistory(s.pool, 50_000); err != nil {
		t.Fatal(err)
	}
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("the past takes %d bytes", grown)
	}
	if open, _ := s.rows("?completedRequestCount=0"); open.Count != 0 {
		t.Errorf("%d unfinished", open.Count)
	}
	if page, header := s.rows("?$top=200"); page.Count != 200 || header.Get("X-MS-ContinuationToken") == "" {
		t.Errorf("page of %d", page.Count)
	}
}
