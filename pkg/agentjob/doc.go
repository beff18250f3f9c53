// Package agentjob turns a job request and a class of agent into the Kubernetes
// objects of one build: the Job with its pod, the ServiceAccount it runs as and
// the RoleBindings that give it its rights. It is pure: it reads no clock, calls
// nothing and changes nothing it is given.
//
// The Job is the record of intent. Everything else is derived from what the Job
// itself carries, so that a half-made build can be completed after a restart
// with what it was made from, whatever the settings say by then.
//
// The pod has three containers of ours. The native sidecar "remove" and the init
// container "configure" hold the pool's credential and run nothing that a build
// can write; the container "agent" runs the build and holds no credential. They
// hand over through small memory-backed volumes.
package agentjob
