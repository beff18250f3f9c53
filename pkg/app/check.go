package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// ErrCheck says that a check has found something wrong, which it has told.
var ErrCheck = errors.New("not everything is as it must be")

// Check looks once at what the scaler needs and writes what it finds: the
// installation, and for each pool its classes with the namespaces, roles and rights
// that they need. It changes nothing.
func (a *App) Check(ctx context.Context, w io.Writer) error {
	pools, err := a.look(ctx)
	if err != nil {
		return err
	}
	r := &report{}
	r.problems("installation in namespace "+a.config.Namespace, "", pools[0].installationProblems(ctx))
	for _, k := range pools {
		a.checkPool(ctx, r, k)
	}
	for _, e := range pools[0].catalogue.all() {
		if !slices.ContainsFunc(pools, func(k kube) bool { return e.class.Serves(k.settings.Identity.Pool.Name) }) {
			r.line("note ", fmt.Sprintf("class %s is for the pools %s, and for none of this scaler", e.class.Name, strings.Join(e.class.Pools, ", ")))
		}
	}
	for _, line := range r.lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	if r.wrong {
		return ErrCheck
	}
	return ctx.Err()
}

// checkPool looks at one pool and its classes.
func (a *App) checkPool(ctx context.Context, r *report, k kube) {
	pool, o := k.settings.Identity.Pool, k.offer()
	r.line("ok   ", fmt.Sprintf("pool %s (id %d) at %s", pool.Name, pool.ID, a.config.URL))
	if o.unused {
		r.line("note ", fmt.Sprintf("pool %s has classes of its own: the built-in class (AZP_AGENT_IMAGE) is not used for it", pool.Name))
	}
	for _, name := range slices.Sorted(maps.Keys(o.usable)) {
		r.problems(fmt.Sprintf("class %s for pool %s", name, pool.Name), "class "+name+": ", k.classProblems(ctx, o.usable[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(o.broken)) {
		r.line("WRONG", fmt.Sprintf("class %s: %s", name, o.broken[name]))
	}
	if why := o.without(pool.Name); why != "" && len(o.broken) == 0 {
		r.line("WRONG", why)
	}
}

// report gathers what a check finds.
type report struct {
	lines []string
	wrong bool
}

func (r *report) line(mark, text string) {
	r.lines = append(r.lines, mark+" "+text)
	r.wrong = r.wrong || mark == "WRONG"
}

// problems tells what is wrong with something, or that nothing is.
func (r *report) problems(what, prefix string, problems []cluster.Problem) {
	if len(problems) == 0 {
		r.line("ok   ", what)
	}
	for _, problem := range problems {
		mark := "note "
		if problem.Fatal {
			mark = "WRONG"
		}
		r.line(mark, prefix+problem.String())
	}
}
