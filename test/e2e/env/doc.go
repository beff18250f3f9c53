// Package env is the whole system on one machine, for the demonstration and the
// end-to-end tests: a real Kubernetes (test/cluster), the fake Azure DevOps, the
// images, the scaler as a process of its own that signs in as a ServiceAccount
// with only the documented rights, and the independent auditor.
//
// What stands in for what: the Kubernetes is real, and so is the node where the
// machine allows one; the Azure DevOps service is pkg/azuredevops/azuredevopstest
// and Microsoft's agent program is test/fakeagent. Everything else is what users
// install.
//
// An Env owns everything it starts. Close ends it; when the process that holds
// it is killed, the kernel ends what it started.
package env
