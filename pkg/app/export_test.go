package app

import (
	"time"

	"k8s.io/client-go/kubernetes"
)

// UseCluster has a test's cluster instead of the one that the kubeconfig names.
func (a *App) UseCluster(client kubernetes.Interface) { a.kube = client }

// UseRenewing has the scaler's token come from a source that renews it, which is looked at so often.
func (a *App) UseRenewing(source renewing, every time.Duration) {
	a.renewing, a.keepEvery = source, every
}
