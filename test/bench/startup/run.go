package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/audit"
	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

const (
	closeLimit = 60 * time.Second
	buildLimit = 3 * time.Minute // For one build, until nothing of it is left.
	resultName = "bench-startup.json"
)

// podIdentity is who the pods are for the service. In an installation they sign in with
// the scaler's token or with one of the same rights; here the log has to tell them apart.
const podIdentity = "pods"

// run measures. What it starts is gone when it returns.
func run(ctx context.Context, s settings, out io.Writer) (err error) {
	path := filepath.Join(s.out, resultName)
	// An old result must not pass for this run's.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the last run's result: %w", err)
	}
	e, err := env.Start(ctx, env.Options{
		Dir: filepath.Join(s.out, "bench-startup"), Seed: s.seed, Node: s.node, Progress: out, Classes: classes(),
	})
	if err != nil {
		return err
	}
	defer func() {
		// The run's own context may be what ended.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		err = errors.Join(err, e.Close(closing))
	}()
	if err := ownTokenForPods(ctx, e); err != nil {
		return err
	}
	if err := e.StartScaler(ctx); err != nil {
		return err
	}
	spans, err := perform(ctx, e, s.builds)
	if err != nil {
		return err
	}
	logs, err := readLogs(e)
	if err != nil {
		return err
	}
	logs.scaler, logs.scalerUser, logs.pods = e.Name, "system:serviceaccount:"+e.ScalerNamespace+":"+env.ScalerAccount, podIdentity
	var measured []Build
	for _, span := range spans {
		build, err := logs.measure(span)
		if err != nil {
			return err
		}
		measured = append(measured, build)
	}
	result := summarise(measured)
	result.Node, result.Seed = e.Node().String(), s.seed
	if err := write(path, result); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "\n%s\nThe figures of each build are in %s.\n", result.table(), path); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// classes has one class for each way to register agents; nothing else differs.
func classes() []env.Class {
	var classes []env.Class
	for _, mode := range modes() {
		classes = append(classes, env.Class{
			Name: mode, Variables: map[string]string{"registered_by": mode}, Annotations: map[string]string{"registration": mode},
		})
	}
	return classes
}

// ownTokenForPods gives the pods a token of their own.
func ownTokenForPods(ctx context.Context, e *env.Env) error {
	secret := "pat-of-" + podIdentity
	if err := e.Service.AddToken(azuredevopstest.Token{Secret: secret, Identity: podIdentity, Rights: azuredevopstest.RightsManage}); err != nil {
		return fmt.Errorf("a token for the pods: %w", err)
	}
	secrets := e.Admin.CoreV1().Secrets(env.AgentsNamespace)
	held, err := secrets.Get(ctx, env.TokenSecret, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("a token for the pods: %w", err)
	}
	for key := range held.Data {
		held.Data[key] = []byte(secret)
	}
	if _, err := secrets.Update(ctx, held, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("a token for the pods: %w", err)
	}
	return nil
}

// perform runs the builds, each alone. The modes take turns at being the first of a pair,
// and the first pair is not measured: the node meets the image and the classes in it.
func perform(ctx context.Context, e *env.Env, builds int) ([]span, error) {
	var spans []span
	for pair := range builds + 1 {
		order := modes()
		if pair%2 == 1 {
			order[0], order[1] = order[1], order[0]
		}
		for _, mode := range order {
			done, err := one(ctx, e, mode, pair)
			if err != nil {
				return nil, err
			}
			if pair > 0 {
				spans = append(spans, done)
			}
		}
	}
	return spans, nil
}

// one runs a build on an agent of a mode, and waits until nothing of it is left.
func one(ctx context.Context, e *env.Env, mode string, number int) (span, error) {
	build := env.Build{
		Name: fmt.Sprintf("%s-%d", mode, number), Kind: env.KindPlain, Steps: []string{"true"}, Demands: []string{"registered_by -equals " + mode}, Want: "succeeded",
	}
	begun := time.Now()
	queued, err := e.Queue(ctx, []env.Build{build})
	if err != nil {
		return span{}, err
	}
	if err := e.WaitAtRest(ctx, buildLimit); err != nil {
		return span{}, fmt.Errorf("build %s: %w", build.Name, err)
	}
	if err := e.Check(ctx, queued); err != nil {
		return span{}, err
	}
	status, err := e.Service.Build(queued[0].RequestID)
	if err != nil {
		return span{}, fmt.Errorf("build %s: %w", build.Name, err)
	}
	return span{mode: mode, agent: status.AgentName, from: begun, to: time.Now()}, nil
}

func readLogs(e *env.Env) (logs, error) {
	var l logs
	for path, read := range map[string]func(io.Reader) error{
		e.KubeAuditLog:     func(r io.Reader) (err error) { l.kube, err = audit.ReadKubeLog(r); return err },
		e.Service.AuditLog: func(r io.Reader) (err error) { l.service, err = audit.ReadServiceLog(r); return err },
	} {
		file, err := os.Open(path)
		if err != nil {
			return l, fmt.Errorf("read the audit logs: %w", err)
		}
		if err := errors.Join(read(file), file.Close()); err != nil {
			return l, fmt.Errorf("read the audit logs: %w", err)
		}
	}
	return l, nil
}

func write(path string, result Result) error {
	data, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}
