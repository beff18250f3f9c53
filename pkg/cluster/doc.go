// Package cluster acts on Kubernetes for the loop: it watches the Jobs of this
// instance with their pods, makes the objects of a build in an order that a
// crash can interrupt anywhere, deletes what is no longer wanted without ever
// taking an agent that may have a build, and sweeps what a crash has left.
//
// Reads for planning come from informers and are late; whatever is destroyed is
// looked at live first, and the deletion carries the UID, and where it matters
// the resource version, of what was looked at. Every call has a limit. Every
// error says what failed, on what, and what to do.
package cluster
