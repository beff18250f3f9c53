// Package nodeclient holds the proof that Microsoft's Node client works against
// the fake Azure DevOps as it does against the service: what that client
// understands is understood by whoever was written against the real thing.
package nodeclient
