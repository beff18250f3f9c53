package env

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops/azuredevopstest"
	"github.com/azp-scaler/azp-scaler/test/e2e/process"
	"github.com/azp-scaler/azp-scaler/test/fakeagent"
)

const (
	foreignIdentity = "static-machine"
	configureLimit  = 30 * time.Second
	foreignStop     = 20 * time.Second
)

// Foreign is an agent of somebody else in the pool: a program that runs on a
// machine of its own for as long as it likes, and takes build after build.
type Foreign struct {
	Name    string
	process *process.Process
	log     *os.File
	service *Service
}

// StartForeign registers such an agent and runs it beside the cluster. Variables
// are added to its environment, and so to its capabilities.
func (e *Env) StartForeign(ctx context.Context, name string, variables map[string]string) (*Foreign, error) {
	f, err := e.startForeign(ctx, name, variables)
	if err != nil {
		return nil, fmt.Errorf("foreign agent %s: %w", name, err)
	}
	return f, nil
}

func (e *Env) startForeign(ctx context.Context, name string, variables map[string]string) (*Foreign, error) {
	token := e.Service.secret(foreignIdentity)
	if err := e.Service.AddToken(azuredevopstest.Token{Secret: token, Identity: foreignIdentity, Rights: azuredevopstest.RightsManage}); err != nil {
		return nil, err
	}
	root := filepath.Join(e.private, "foreign-"+name)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	if err := fakeagent.Unpack(e.built.agentPackage.Path, root); err != nil {
		return nil, err
	}
	environ := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "SSL_CERT_FILE=" + e.CAFile, "AGENT_ALLOW_RUNASROOT=1"}
	for variable, value := range variables {
		environ = append(environ, variable+"="+value)
	}
	configureCtx, cancel := context.WithTimeout(ctx, configureLimit)
	defer cancel()
	configure := exec.CommandContext(configureCtx, filepath.Join(root, "config.sh"),
		"--unattended", "--acceptTeeEula", "--url", e.Service.URL, "--auth", "PAT", "--pool", Pool, "--agent", name, "--work", "_work")
	configure.Env = append([]string{"VSTS_AGENT_INPUT_TOKEN=" + token}, environ...)
	if out, err := configure.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("configure: %w: %s", err, tail(string(out), 800))
	}
	log, err := os.Create(filepath.Join(filepath.Dir(e.ScalerLog), name+".log"))
	if err != nil {
		return nil, err
	}
	command := exec.Command(filepath.Join(root, "bin", "Agent.Listener"), "run")
	command.Env, command.Dir, command.Stdout, command.Stderr = environ, root, log, log
	started, err := process.Start(command)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	f := &Foreign{Name: name, process: started, log: log, service: e.Service}
	e.foreign = append(e.foreign, f)
	return f, nil
}

// Online tells whether the service sees it listening.
func (f *Foreign) Online() bool {
	agent, found := f.service.Agent(f.Name)
	return found && agent.Online
}

// Stop ends the agent and takes its registration away, as its owner does.
func (f *Foreign) Stop(ctx context.Context) error {
	err := f.process.Signal(syscall.SIGINT)
	select {
	case <-f.process.Done():
	case <-time.After(foreignStop):
		err = errors.Join(err, fmt.Errorf("foreign agent %s did not end within %s: see %s", f.Name, foreignStop, f.log.Name()))
	}
	return errors.Join(err, f.service.RemoveAgent(ctx, f.Name), f.close())
}

// close ends the process where it is still there.
func (f *Foreign) close() error {
	if !f.process.Running() {
		_ = f.log.Close() // A second close is no matter.
		return nil
	}
	return errors.Join(f.process.Kill(), f.log.Close())
}
