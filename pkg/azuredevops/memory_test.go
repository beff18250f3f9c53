package azuredevops

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

const (
	mebibyte = 1 << 20
	// heapBound is how much a poll may take above idle.
	heapBound = 20 * mebibyte
)

// manyRows answers a list of queued and finished requests, each of the queued
// matching that many agents, without holding it. It must allocate next to nothing,
// since it shares the heap that is measured.
func manyRows(queued, finished, matched int) http.HandlerFunc {
	var agents []string
	for i := range matched {
		agents = append(agents, fmt.Sprintf(`{"_links":{"self":{"href":"https://dev.azure.com/acme/_apis/distributedtask/pools/5/agents/%[1]d"}},"id":%[1]d,"name":"azp-0a1b2c3d-5-%[1]d-0","version":"4.248.0","osDescription":"Linux 6.1.0 #1 SMP","enabled":true,"status":"online","provisioningState":"Provisioned"}`, i+1))
	}
	const head = `"queueTime":"2026-01-02T03:04:05.1234567Z","serviceOwner":"00025394-6065-48ca-87d9-7f5672854ef7","hostId":"11111111-2222-3333-4444-555555555555","scopeId":"11111111-2222-3333-4444-555555555555","planType":"Build","planId":"11111111-2222-3333-4444-555555555555","jobId":"11111111-2222-3333-4444-555555555555","demands":["npm","Agent.Version -gtVersion 2.182.1"],"definition":{"id":3,"name":"app","_links":{"web":{"href":"https://dev.azure.com/acme/_build?definitionId=3"}}},"data":{"ParallelismTag":"Private"},"poolId":5,"priority":0`
	waiting := []byte("," + head + `,"matchedAgents":[` + strings.Join(agents, ",") + `]}`)
	// As short as a finished row gets, so that there are many of them.
	done := []byte(`,"queueTime":"2026-01-02T03:04:05Z","finishTime":"2026-01-02T03:14:05Z","result":"succeeded","demands":["npm"],"reservedAgent":{"id":8,"name":"a8"}}`)
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/pools/5/") {
			answerJSON(w, 200, emptyList)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"count":%d,"value":[`, queued+finished)
		var row []byte
		for i := range queued + finished {
			row = row[:0]
			if i > 0 {
				row = append(row, ',')
			}
			row = fmt.Appendf(row, `{"requestId":%d,"owner":{"id":%[1]d,"name":"20260102.%[1]d"}`, i+1)
			if i%((queued+finished)/queued) == 0 && i/((queued+finished)/queued) < queued {
				row = append(row, waiting...)
			} else {
				row = append(row, done...)
			}
			if _, err := w.Write(row); err != nil {
				return
			}
		}
		_, _ = io.WriteString(w, "]}")
	}
}

// heapInUse is the size of the live and the not yet collected objects.
func heapInUse() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// pollHeap polls once, keeping what waits as the scaler does, and gives how far the
// heap rose above idle.
func pollHeap(t testing.TB, c *Client) (peak int64, waiting int, stats RequestStats) {
	t.Helper()
	runtime.GC()
	idle := heapInUse()
	var kept []agentpool.JobRequest
	seen := 0
	stats, err := c.JobRequests(t.Context(), 5, func(r agentpool.JobRequest) error {
		if seen++; seen%50 == 0 {
			peak = max(peak, heapInUse()-idle)
		}
		if r.State() == agentpool.RequestQueued {
			kept = append(kept, r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return max(peak, heapInUse()-idle), len(kept), stats
}

// TestPollMemoryIsFlat holds the bound for 2,000 queued among 50,000 historic rows,
// though those are not even asked for. It is not parallel: it measures the heap of
// the process.
func TestPollMemoryIsFlat(t *testing.T) {
	const queued, finished = 2000, 50_000
	c := newService(t, manyRows(queued, finished, 25), func(c *Config) { c.Timeout = 5 * time.Minute })
	// What is there once: connection, routes, buffers.
	if _, err := c.JobRequests(t.Context(), 1, func(agentpool.JobRequest) error { return nil }); err != nil {
		t.Fatal(err)
	}
	peak, waiting, stats := pollHeap(t, c)
	if waiting != queued || stats != (RequestStats{Rows: queued + finished}) {
		t.Errorf("%d waiting, %+v", waiting, stats)
	}
	t.Logf("peak %.1f MiB above idle", float64(peak)/mebibyte)
	if peak > heapBound {
		t.Errorf("peak %.1f MiB above idle, over %d", float64(peak)/mebibyte, heapBound/mebibyte)
	}
}

// BenchmarkPoll reads 2,000 queued requests that match a hundred agents each: as
// the service answers for a pool with 50,000 finished ones, which it leaves out
// when asked to, and as an answer that has those too.
func BenchmarkPoll(b *testing.B) {
	for name, finished := range map[string]int{"queued=2000": 0, "queued=2000,historic=50000": 50_000} {
		b.Run(name, func(b *testing.B) {
			c := newService(b, manyRows(2000, finished, 100), func(c *Config) { c.Timeout = 5 * time.Minute })
			b.ReportAllocs()
			var highest int64
			for b.Loop() {
				peak, waiting, _ := pollHeap(b, c)
				if waiting != 2000 {
					b.Fatalf("%d waiting", waiting)
				}
				highest = max(highest, peak)
			}
			b.ReportMetric(float64(highest)/mebibyte, "peak-MiB")
		})
	}
}
