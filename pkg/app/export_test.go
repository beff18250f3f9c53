package app

import "k8s.io/client-go/kubernetes"

// UseCluster has a test's cluster instead of the one that the kubeconfig names.
func (a *App) UseCluster(client kubernetes.Interface) { a.kube = client }
