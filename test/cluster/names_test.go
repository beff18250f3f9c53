package cluster

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNamesOfServicesAreFound asks as a pod does, with the resolver that Go programs have.
func TestNamesOfServicesAreFound(t *testing.T) {
	t.Parallel()
	services := fake.NewClientset(
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "azp", Name: "scaler"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "azp", Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}},
	)
	connection, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newNameServer(t.Context(), connection, services)
	t.Cleanup(func() {
		if err := server.close(); err != nil {
			t.Error(err)
		}
	})
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", connection.LocalAddr().String())
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for name, want := range map[string][]string{
		"scaler.azp.svc.cluster.local.":   {"10.96.0.7"},
		"Scaler.AZP.svc.cluster.local.":   {"10.96.0.7"},
		"headless.azp.svc.cluster.local.": nil,
		"absent.azp.svc.cluster.local.":   nil,
		"scaler.other.svc.cluster.local.": nil,
		"scaler.azp.":                     nil,
		"example.com.":                    nil,
	} {
		got, err := resolver.LookupHost(ctx, name)
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (want != nil) {
			t.Errorf("%s: %v, %v: want %v", name, got, err, want)
		}
	}
}
