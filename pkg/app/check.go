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
// that they need. What is wrong with one thing does not hide the others. It changes
// nothing. The error is ErrCheck if it has found something wrong.
func (a *App) Check(ctx context.Context, w io.Writer) error {
	r := &report{}
	catalogue, unread := a.liveCatalogue(ctx)
	if catalogue == nil {
		return unread
	}
	var pools []kube
	for _, name := range a.config.Pools {
		k, err := a.lookAt(ctx, name, catalogue)
		switch {
		case errors.Is(err, ErrConfiguration):
			return err
		case err != nil:
			r.line("WRONG", fmt.Sprintf("pool %s: %v", name, err))
		default:
			r.line("ok   ", fmt.Sprintf("pool %s (id %d) at %s", k.settings.Identity.Pool.Name, k.settings.Identity.Pool.ID, a.config.URL))
			pools = append(pools, k)
		}
	}
	if len(pools) > 0 {
		r.problems("installation in namespace "+a.config.Namespace, "", pools[0].installationProblems(ctx))
	}
	if unread != nil {
		r.line("WRONG", unread.Error())
	} else {
		checkClasses(ctx, r, catalogue, pools, len(pools) == len(a.config.Pools))
	}
	if err := r.write(w); err != nil {
		return err
	}
	if r.wrong {
		return ErrCheck
	}
	return ctx.Err()
}

// checkClasses looks at the classes of the pools, of which all may be there.
func checkClasses(ctx context.Context, r *report, catalogue *catalogue, pools []kube, all bool) {
	for _, k := range pools {
		checkPool(ctx, r, k)
	}
	for _, e := range catalogue.all() {
		served := slices.ContainsFunc(pools, func(k kube) bool { return e.class.Serves(k.settings.Identity.Pool.Name) })
		if all && !served {
			r.line("note ", fmt.Sprintf("class %s is for the pools %s, and for none of this scaler", e.class.Name, strings.Join(e.class.Pools, ", ")))
		}
	}
}

// checkPool looks at the classes of one pool.
func checkPool(ctx context.Context, r *report, k kube) {
	pool, o := k.settings.Identity.Pool.Name, k.offer()
	if o.unused {
		r.line("note ", fmt.Sprintf("pool %s has classes of its own: the built-in class (AZP_AGENT_IMAGE) is not used for it", pool))
	}
	for _, name := range slices.Sorted(maps.Keys(o.usable)) {
		r.problems(fmt.Sprintf("class %s for pool %s", name, pool), "class "+name+" for pool "+pool+": ", k.classProblems(ctx, o.usable[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(o.broken)) {
		r.line("WRONG", fmt.Sprintf("class %s for pool %s: %s", name, pool, o.broken[name]))
	}
	if why := o.without(pool); why != "" && len(o.broken) == 0 {
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

func (r *report) write(w io.Writer) error {
	for _, line := range r.lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
