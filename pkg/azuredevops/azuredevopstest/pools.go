package azuredevopstest

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// poolJSON is a pool as the service writes it.
type poolJSON struct {
	ID            int    `json:"id"`
	Name          string `json:"name"`
	CreatedOn     string `json:"createdOn"`
	AutoProvision bool   `json:"autoProvision"`
	AutoUpdate    bool   `json:"autoUpdate"`
	AutoSize      bool   `json:"autoSize"`
	IsHosted      bool   `json:"isHosted"`
	IsLegacy      bool   `json:"isLegacy"`
	PoolType      any    `json:"poolType"`
	Options       any    `json:"options"`
	Scope         string `json:"scope"`
	Size          int    `json:"size,omitempty"`
}

func (c *call) poolJSON(p *pool) poolJSON {
	return poolJSON{
		ID:         p.id,
		Name:       p.name,
		CreatedOn:  c.srv.stamp(p.created),
		AutoUpdate: true,
		AutoSize:   true,
		PoolType:   c.enum(enumValue{"automation", 1}),
		Options:    c.enum(enumValue{"none", 0}),
		Scope:      c.srv.hostID.String(),
		Size:       len(p.agents),
	}
}

// listPools answers by name, by ids, or with all pools. The name is compared
// as a whole and without regard to case.
func (c *call) listPools() error {
	name, byName := c.param("poolName")
	ids, byID := c.param("poolIds")
	var wanted []int
	if byID {
		for field := range strings.SplitSeq(ids, ",") {
			id, err := strconv.Atoi(strings.TrimSpace(field))
			if err != nil {
				return badRequest("The value '%s' is not valid for poolIds.", ids)
			}
			wanted = append(wanted, id)
		}
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	value := []poolJSON{}
	for _, p := range c.srv.sortedPools() {
		switch {
		case !c.who.sees(p),
			byName && name != "" && !strings.EqualFold(p.name, name),
			byID && !slices.Contains(wanted, p.id):
			continue
		}
		value = append(value, c.poolJSON(p))
	}
	return c.reply(http.StatusOK, list{len(value), value})
}

func (c *call) getPool() error {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	p, err := c.pool()
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, c.poolJSON(p))
}

// resourceUsage tells how many jobs may run at once and how many do. Without a
// limit the service leaves the limit out.
func (c *call) resourceUsage() error {
	s := c.srv
	hosted := c.flag("poolIsHosted")
	tag, _ := c.param("parallelismTag")
	if tag == "" {
		tag = "Private"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	usage := map[string]any{}
	limit := map[string]any{"hostId": s.hostID.String(), "parallelismTag": tag, "isHosted": hosted}
	if s.settings.parallelJobs > 0 && !hosted {
		limit["totalCount"] = s.settings.parallelJobs
	}
	usage["resourceLimit"] = limit
	if used := s.used(); used > 0 && !hosted {
		usage["usedCount"] = used
	}
	if c.flag("includeRunningRequests") {
		running := []rowJSON{}
		for _, p := range s.sortedPools() {
			for _, r := range p.sortedUnfinished() {
				if !hosted && r.state() != StateQueued {
					running = append(running, c.row(r, r.progress, nil))
				}
			}
		}
		usage["runningRequests"] = running
	}
	return c.reply(http.StatusOK, usage)
}
