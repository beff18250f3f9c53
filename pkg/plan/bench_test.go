package plan_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// BenchmarkMake plans for pools of three sizes. The time for one item, a request or a
// Job, is not to grow with their number. "busy pool" has Jobs in every phase, "rush" has
// all requests queued and all Jobs starting.
func BenchmarkMake(b *testing.B) {
	for _, pool := range []struct {
		name   string
		shapes []func(*agentpool.AgentJob)
	}{
		{"busy pool", []func(*agentpool.AgentJob){starting, idle, busy, busy, finished, failed}},
		{"rush", []func(*agentpool.AgentJob){starting}},
	} {
		for _, size := range []int{100, 1000, 10000} {
			s := bigPool(size, pool.shapes)
			b.Run(fmt.Sprintf("%s/%d", pool.name, size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					plan.Make(s)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*size), "ns/item")
			})
		}
	}
}

// bigPool has as many Jobs as requests, of 50 classes: ten kinds of tools in five
// versions, each more capable than the one before.
func bigPool(size int, shapes []func(*agentpool.AgentJob)) plan.Snapshot {
	random := rand.New(rand.NewPCG(1, uint64(size)))
	s := snapshot(nil)
	s.Classes = nil
	s.Limits.PoolAgents = 0
	s.Limits.CreationsPerCycle = 0
	for tool := range 10 {
		for version := range 5 {
			claims := map[string]string{
				"Agent.OS": "Linux", "Agent.OSArchitecture": "X64", fmt.Sprintf("tool-%d", tool): fmt.Sprintf("%d.0", version+1),
			}
			for also := range version {
				claims[fmt.Sprintf("tool-%d", (tool+also+1)%10)] = "1.0"
			}
			s.Classes = append(s.Classes, agentpool.AgentClass{
				Name: fmt.Sprintf("tool-%d-%d", tool, version), Version: "1",
				Claims: claims, Capabilities: agentpool.NewCapabilities(claims),
			})
		}
	}
	for i := range size {
		r := request(int64(i + 1))
		r.Demands = []agentpool.Demand{{Name: agentpool.AgentVersion, Op: agentpool.AtLeast, Value: "2.182.1"}}
		tool := random.IntN(10)
		r.Demands = append(r.Demands, []agentpool.Demand{
			{Name: fmt.Sprintf("tool-%d", tool), Op: agentpool.AtLeast, Value: strconv.Itoa(1 + random.IntN(5))},
			{Name: "Agent.OS", Op: agentpool.Equals, Value: "Linux"},
			{Name: fmt.Sprintf("tool-%d", (tool+1)%10)},
		}[:random.IntN(4)]...)
		s.Requests = append(s.Requests, r)
		class := s.Classes[random.IntN(len(s.Classes))]
		j := job(0, ofClass(class, shapes[random.IntN(len(shapes))]))
		j.RequestID = int64(i + 1)
		j.Name = fmt.Sprintf("azp-test-7-%d-0", i+1)
		j.UID = j.Name
		s.Jobs = append(s.Jobs, j)
	}
	return s
}
