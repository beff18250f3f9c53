package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// ErrCheck says that a check has found something wrong, which it has told.
var ErrCheck = errors.New("not everything is as it must be")

// Check looks once at what the scaler needs and writes what it finds: the pool,
// and for each class the namespaces, roles and rights. It changes nothing.
func (a *App) Check(ctx context.Context, w io.Writer) error {
	defer func() { _ = a.listener.Close() }() // Nothing was served on it.
	pool, err := a.client.PoolByName(ctx, a.config.Pool)
	if err != nil {
		return err
	}
	k, err := a.connect(pool)
	if err != nil {
		return err
	}
	lines := []string{fmt.Sprintf("ok    pool %s (id %d) at %s", pool.Name, pool.ID, a.config.URL)}
	wrong := false
	for _, name := range slices.Sorted(maps.Keys(k.classes)) {
		problems := k.problems(ctx, name)
		for _, problem := range problems {
			mark := "note "
			if problem.Fatal {
				mark, wrong = "WRONG", true
			}
			lines = append(lines, fmt.Sprintf("%s class %s: %s", mark, name, problem))
		}
		if len(problems) == 0 {
			lines = append(lines, fmt.Sprintf("ok    class %s in namespace %s", name, a.config.Namespace))
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if wrong {
		return ErrCheck
	}
	return ctx.Err()
}
