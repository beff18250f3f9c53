package azuredevops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// maxShownPools bounds how many pools an error names.
const maxShownPools = 30

// PoolByName finds the one pool of that name, without regard to case. If there is
// none the error is ErrNotFound and names the pools that the token can see; if
// there are several it is ErrAmbiguous.
func (c *Client) PoolByName(ctx context.Context, name string) (agentpool.Pool, error) {
	fail := func(kind error, message, remedy string) (agentpool.Pool, error) {
		return agentpool.Pool{}, &Error{Op: OpPools, Kind: kind, Message: fmt.Sprintf("pool %q (AZP_POOL) %s", name, message), Remedy: remedy}
	}
	if strings.TrimSpace(name) == "" {
		return fail(ErrNotFound, "has no name", "name the agent pool")
	}
	pools, err := c.pools(ctx, url.Values{"poolName": {name}})
	if err != nil {
		return agentpool.Pool{}, err
	}
	pools = slices.DeleteFunc(pools, func(p wirePool) bool { return !strings.EqualFold(p.Name, name) })
	switch {
	case len(pools) > 1:
		ids := make([]string, len(pools))
		for i, p := range pools {
			ids[i] = fmt.Sprint(p.ID)
		}
		return fail(ErrAmbiguous, fmt.Sprintf("is the name of %d pools, with the ids %s", len(pools), strings.Join(ids, ", ")), "rename one of them")
	case len(pools) == 1 && pools[0].IsHosted:
		return fail(ErrNotFound, "is run by Microsoft and takes no agents", "name a pool of the organisation's own")
	case len(pools) == 1:
		return agentpool.Pool{ID: pools[0].ID, Name: pools[0].Name}, nil
	}
	visible, err := c.pools(ctx, nil)
	if err != nil {
		return agentpool.Pool{}, err
	}
	return fail(ErrNotFound, "does not exist or is not visible to this token; visible: "+poolNames(visible),
		"check the name, and that the token has the scope Agent Pools (read) and a role on the pool")
}

// pools lists the pools that the token can see. One that cannot be read fails the
// list: it may be the pool that is looked for.
func (c *Client) pools(ctx context.Context, query url.Values) ([]wirePool, error) {
	var pools []wirePool
	_, malformed, err := list(ctx, c, request{
		call:     call{op: OpPools},
		method:   http.MethodGet,
		location: locationPools,
		query:    query,
	}, func(row []byte) error {
		var pool wirePool
		if err := json.Unmarshal(row, &pool); err != nil {
			return fmt.Errorf("pool: %w", err)
		}
		if pool.ID <= 0 || pool.Name == "" {
			return errors.New("pool without id or name")
		}
		pools = append(pools, pool)
		return nil
	})
	if err == nil && malformed > 0 && len(pools) == 0 {
		err = &Error{Op: OpPools, URL: c.url, Kind: ErrUnexpectedAnswer, Message: fmt.Sprintf("none of %d pools can be read", malformed)}
	}
	return pools, err
}

// poolNames shows names for an error.
func poolNames(pools []wirePool) string {
	var names []string
	for _, p := range pools {
		if !p.IsHosted {
			names = append(names, fmt.Sprintf("%q", p.Name))
		}
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	if more := len(names) - maxShownPools; more > 0 {
		names = append(names[:maxShownPools], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// wirePool is a pool as it comes.
type wirePool struct {
	ID       int    `json:"id"`
	Name     string `json:"name"`
	IsHosted bool   `json:"isHosted"`
}
