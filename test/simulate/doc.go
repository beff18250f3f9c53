// Package simulate runs the real loop and planner against a small model of a cluster
// and a pool, in virtual time, and judges what became of it.
//
// One seed is one history: which builds there are, how late everything is known, what
// fails, who is restarted, and when. The model stands behind the loop's two interfaces
// and fails as the real things do: with the errors of packages cluster and azuredevops,
// before or after a call has taken effect. Everything that happens is recorded, and a
// checker that knows nothing of the model reads the record: it says what was done twice,
// lost or left behind. A seed gives the same history again, event for event.
package simulate
