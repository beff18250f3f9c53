package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	t := time.Now()
	c, err := cluster.Start(ctx, cluster.Options{Progress: os.Stderr, LogDir: "/tmp/clbuild/logs", AuditLog: "/tmp/clbuild/audit.log"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(time.Since(t), c.AdminKubeconfig(), c.HostAddress())
	select {
	case <-ctx.Done():
	case <-c.Failed():
		fmt.Println(c.Err())
	}
	fmt.Println(c.Stop(context.Background()))
}
