package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	clusterDomain = "cluster.local"
	// nameTTL is how many seconds an answer holds.
	nameTTL = 5
	// largestQuestion is what one packet holds without extensions (RFC 1035, 2.3.4), and more.
	largestQuestion = 1500
)

// nameServer answers pods that look for a Service by the name that Kubernetes gives it:
// SERVICE.NAMESPACE.svc.cluster.local, at its cluster address.
// https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
type nameServer struct {
	connection net.PacketConn
	services   kubernetes.Interface
	ctx        context.Context //nolint:containedctx // It is the life of the answers that are looked up.
	cancel     context.CancelFunc
	work       sync.WaitGroup
}

// serveNames serves on port 53 of an address. The context bounds the start only.
func serveNames(ctx context.Context, address string, services kubernetes.Interface) (*nameServer, error) {
	connection, err := new(net.ListenConfig).ListenPacket(ctx, "udp4", net.JoinHostPort(address, "53"))
	if err != nil {
		return nil, fmt.Errorf("name service of the cluster: %w: end what has that port, or do without Options.NameService", err)
	}
	return newNameServer(ctx, connection, services), nil
}

func newNameServer(ctx context.Context, connection net.PacketConn, services kubernetes.Interface) *nameServer {
	s := &nameServer{connection: connection, services: services}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.work.Go(s.serve)
	return s
}

func (s *nameServer) serve() {
	buffer := make([]byte, largestQuestion)
	for {
		size, from, err := s.connection.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // Of one packet, whose sender asks again.
		}
		question := append([]byte(nil), buffer[:size]...)
		s.work.Go(func() {
			if answer, err := s.answer(question); err == nil {
				_, _ = s.connection.WriteTo(answer, from) // Lost packets are asked for again.
			}
		})
	}
}

// answer gives the packet that answers another one; an error is for what is no question.
func (s *nameServer) answer(packet []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(packet)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	address, code := s.lookUp(question.Name.String())
	answer := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RCode: code},
		Questions: []dnsmessage.Question{question},
	}
	// Of another type there is nothing, which is no error.
	if address.Is4() && question.Type == dnsmessage.TypeA {
		answer.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: nameTTL},
			Body:   &dnsmessage.AResource{A: address.As4()},
		}}
	}
	return answer.Pack()
}

func (s *nameServer) lookUp(name string) (netip.Addr, dnsmessage.RCode) {
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(name), "."), ".")
	if len(labels) != 5 || strings.Join(labels[2:], ".") != "svc."+clusterDomain {
		return netip.Addr{}, dnsmessage.RCodeNameError
	}
	ctx, cancel := context.WithTimeout(s.ctx, askLimit)
	defer cancel()
	service, err := s.services.CoreV1().Services(labels[1]).Get(ctx, labels[0], metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return netip.Addr{}, dnsmessage.RCodeNameError
	case err != nil:
		return netip.Addr{}, dnsmessage.RCodeServerFailure
	}
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return netip.Addr{}, dnsmessage.RCodeSuccess // One without an address of its own.
	}
	return address, dnsmessage.RCodeSuccess
}

// close ends the service and waits for what it is at.
func (s *nameServer) close() error {
	s.cancel()
	err := s.connection.Close()
	s.work.Wait()
	if err != nil {
		return fmt.Errorf("ending the name service: %w", err)
	}
	return nil
}
