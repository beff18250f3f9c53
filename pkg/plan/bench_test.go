package plan_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// poolShape is a kind of pool to plan for.
type poolShape struct {
	name   string
	shapes []func(*agentpool.AgentJob)
	// known has each agent's own capabilities read from the service.
	known bool
}

// poolShapes are one with Jobs in every phase, one in which all requests are queued and
// all Jobs start, and one in which each agent waits and has been looked at.
func poolShapes() []poolShape {
	return []poolShape{
		{name: "busy pool", shapes: []func(*agentpool.AgentJob){starting, idle, busy, busy, finished, failed}},
		{name: "rush", shapes: []func(*agentpool.AgentJob){starting}},
		{name: "known agents", shapes: []func(*agentpool.AgentJob){idle}, known: true},
	}
}

// BenchmarkMake plans for pools of three sizes.
func BenchmarkMake(b *testing.B) {
	for _, shape := range poolShapes() {
		for _, size := range []int{100, 1000, 10000} {
			s := bigPool(size, shape)
			b.Run(fmt.Sprintf("%s/%d", shape.name, size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					plan.Make(s)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*2*size), "ns/item")
			})
		}
	}
}

// BenchmarkGrowth plans for small pools and for a large one in turn and compares the time
// for one item, a request or a Job. It fails where that grows by more than half.
func BenchmarkGrowth(b *testing.B) {
	const small, large, most, rounds = 100, 10000, 1.5, 7
	for _, shape := range poolShapes() {
		b.Run(shape.name, func(b *testing.B) {
			few, many := bigPool(small, shape), bigPool(large, shape)
			// The least of several is what the work takes; the rest is the machine's.
			least := func(before time.Duration, work func()) time.Duration {
				begun := time.Now()
				work()
				return min(before, time.Since(begun))
			}
			onFew, onMany := time.Hour, time.Hour
			for b.Loop() {
				for range rounds {
					onFew = least(onFew, func() {
						for range large / small {
							plan.Make(few)
						}
					})
					onMany = least(onMany, func() { plan.Make(many) })
				}
			}
			growth := float64(onMany) / float64(onFew)
			b.ReportMetric(growth, "growth")
			b.ReportMetric(float64(onMany.Microseconds())/1000, "ms/plan")
			b.ReportMetric(0, "ns/op") // Of no meaning here.
			if growth > most {
				b.Errorf("an item takes %.2f times as long among %d as among %d, want %.1f at most", growth, large, small, most)
			}
		})
	}
}

// bigPool has as many Jobs as requests, of 50 classes: ten kinds of tools in five
// versions, each more capable than the one before.
func bigPool(size int, shape poolShape) plan.Snapshot {
	random := rand.New(rand.NewPCG(1, uint64(size)))
	s := snapshot(nil)
	s.Classes = nil
	s.Limits.PoolAgents = 0
	s.Limits.CreationsPerCycle = 0
	s.Registered = map[string]agentpool.Capabilities{}
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
		j := job(0, ofClass(class, shape.shapes[random.IntN(len(shape.shapes))]))
		j.RequestID = int64(i + 1)
		j.Name = fmt.Sprintf("azp-test-7-%d-0", i+1)
		j.UID = j.Name
		s.Jobs = append(s.Jobs, j)
		if shape.known {
			s.Registered[j.Name] = registered(j)
		}
	}
	return s
}

// registered is what an agent registers with: what its class claims, its own name, and its
// environment.
func registered(j agentpool.AgentJob) agentpool.Capabilities {
	all := maps.Clone(j.Capabilities)
	all["agent.name"], all["agent.computername"] = j.Name, j.Name+"-pod"
	for n := range 40 {
		all[fmt.Sprintf("variable_%d", n)] = "of the environment"
	}
	return all
}
