package scaler

import (
	"context"
	"errors"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/plan"
)

// Look makes a snapshot of pool and cluster as they are now, without a cache, and
// changes nothing.
func Look(ctx context.Context, config Config, service Service, cluster Cluster, now func() time.Time) (plan.Snapshot, error) {
	return plan.Snapshot{}, errors.New("not written yet")
}
