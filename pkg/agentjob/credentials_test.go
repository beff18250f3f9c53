package agentjob_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// jit is a class whose agents the scaler registers.
func jit() agentpool.AgentClass {
	c := class()
	c.Registration = agentpool.RegistrationJIT
	return c
}

// build makes a Job of the class.
func build(t *testing.T, s agentjob.Settings, class agentpool.AgentClass, template batchv1.JobTemplateSpec) *batchv1.Job {
	t.Helper()
	job, err := agentjob.Build(s, class, template, request(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func TestAPodWithoutTheCredential(t *testing.T) {
	job := build(t, settings(), jit(), template())
	pod := job.Spec.Template.Spec
	if len(pod.InitContainers) != len(template().Spec.Template.Spec.InitContainers) || len(pod.Containers) != len(template().Spec.Template.Spec.Containers) {
		t.Errorf("it has containers of ours: %d and %d", len(pod.InitContainers), len(pod.Containers))
	}
	for _, volume := range pod.Volumes {
		if volume.Secret != nil && volume.Secret.SecretName != job.Name {
			t.Errorf("volume %q shows the Secret %q", volume.Name, volume.Secret.SecretName)
		}
	}
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), settings().TokenSecret) {
		t.Errorf("the Job names the Secret with the pool's credential: %s", text)
	}
	agent := pod.Containers[slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == agentjob.ContainerAgent })]
	if !slices.Contains(agent.Env, corev1.EnvVar{Name: "AZP_REGISTRATION", Value: "jit"}) {
		t.Errorf("the agent's container is not told who registers: %v", agent.Env)
	}
	if job.Annotations[agentjob.AnnotationRegistration] != "jit" || job.Annotations[agentjob.AnnotationAgentID] != "" {
		t.Errorf("the Job records %v", job.Annotations)
	}
}

func credentials(t *testing.T, bits int) agentjob.AgentCredentials {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return agentjob.AgentCredentials{AgentID: 17, ClientID: "client", AuthorizationURL: "https://acme/oauth", Key: key}
}

func TestSecret(t *testing.T) {
	job := build(t, settings(), jit(), template())
	job.UID = "uid-1"
	given := credentials(t, 2048)
	secret, err := agentjob.Secret(settings(), job, given)
	if err != nil {
		t.Fatal(err)
	}
	if secret.Name != job.Name || secret.Namespace != job.Namespace || len(secret.OwnerReferences) != 1 || secret.OwnerReferences[0].UID != job.UID {
		t.Errorf("it does not go with its Job: %+v", secret.ObjectMeta)
	}
	if secret.Immutable == nil || !*secret.Immutable {
		t.Error("it can be changed")
	}
	var agent struct {
		AcceptTeeEula                              bool
		AgentID, PoolID                            int
		AgentName, PoolName, ServerURL, WorkFolder string
	}
	decode(t, secret, ".agent", &agent)
	identity := settings().Identity
	if !agent.AcceptTeeEula || agent.AgentID != 17 || agent.AgentName != job.Name || agent.PoolID != identity.Pool.ID ||
		agent.PoolName != identity.Pool.Name || agent.ServerURL != identity.URL || agent.WorkFolder != "_work" {
		t.Errorf(".agent has %+v", agent)
	}
	var signIn struct {
		Scheme string
		Data   map[string]string
	}
	decode(t, secret, ".credentials", &signIn)
	if signIn.Scheme != "OAuth" || signIn.Data["clientId"] != "client" || signIn.Data["authorizationUrl"] != "https://acme/oauth" || signIn.Data["oauthEndpointUrl"] != "https://acme/oauth" {
		t.Errorf(".credentials has %+v", signIn)
	}
	var key map[string]any
	decode(t, secret, ".credentials_rsaparams", &key)
	for name, want := range map[string]struct {
		number *big.Int
		width  int
	}{
		"modulus": {given.Key.N, 256}, "d": {given.Key.D, 256}, "exponent": {big.NewInt(65537), 3},
		"p": {given.Key.Primes[0], 128}, "q": {given.Key.Primes[1], 128},
		"dp": {given.Key.Precomputed.Dp, 128}, "dq": {given.Key.Precomputed.Dq, 128}, "inverseQ": {given.Key.Precomputed.Qinv, 128},
	} {
		text, _ := key[name].(string)
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(raw) != want.width || new(big.Int).SetBytes(raw).Cmp(want.number) != 0 {
			t.Errorf("%s of the key is %d bytes long, want the number in %d: %v", name, len(raw), want.width, err)
		}
	}
	if key["ContainerName"] != "" || key["UseCng"] != false {
		t.Errorf("the key says %v and %v of where it is", key["ContainerName"], key["UseCng"])
	}
}

// decode reads a file as the agent does, which expects a byte order mark.
func decode(t *testing.T, secret *corev1.Secret, name string, into any) {
	t.Helper()
	text, marked := strings.CutPrefix(string(secret.Data[name]), "\ufeff")
	if !marked {
		t.Errorf("%s has no byte order mark", name)
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func TestSecretRefusesOtherKeys(t *testing.T) {
	job := &batchv1.Job{}
	for name, given := range map[string]agentjob.AgentCredentials{"too long": credentials(t, 3072), "none": {}} {
		if _, err := agentjob.Secret(settings(), job, given); err == nil || !strings.Contains(err.Error(), "2048 bits") {
			t.Errorf("%s: want an error that says which, got %v", name, err)
		}
	}
}

// panics has this test's program end in a panic, for the test that starts it.
var panics = flag.Bool("panic", false, "panic with an agent's credentials")

func TestCredentialsPanicWithoutTheirKey(t *testing.T) {
	if *panics {
		panic(credentials(t, 2048))
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "-test.run", "^"+t.Name()+"$", "-panic").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: ") || !strings.Contains(string(out), "[redacted]") {
		t.Errorf("the panic does not say whose credentials they are: %v\n%s", err, out)
	}
}

func TestCredentialsPrintWithoutTheirKey(t *testing.T) {
	given := credentials(t, 2048)
	inside := struct{ Credentials agentjob.AgentCredentials }{given}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("made", "credentials", given, "inside", inside)
	encoded, err := json.Marshal(inside)
	if err != nil {
		t.Fatal(err)
	}
	secret := given.Key.D.String()
	for _, text := range []string{
		fmt.Sprintf("%v", given), fmt.Sprintf("%+v", inside), fmt.Sprintf("%#v", inside), fmt.Sprint(&given), logged.String(), string(encoded),
	} {
		if strings.Contains(text, secret[:20]) || !strings.Contains(text, "[redacted]") {
			t.Errorf("printed: %.200s", text)
		}
	}
}

// TestSecretOfAServer holds the agent's token endpoint against the way that leads to it: a
// server's own idea of its address need not be that of the cluster.
func TestSecretOfAServer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ collection, authorization, endpoint string }{
		{"https://dev.azure.com/acme", "https://vstoken.dev.azure.com/4711", "https://vstoken.dev.azure.com/4711"},
		{"https://acme.visualstudio.com", "https://app.vstoken.visualstudio.com/4711", "https://app.vstoken.visualstudio.com/4711"},
		{"https://tfs.example.com/tfs/DefaultCollection", "https://tfs.example.com/tfs/DefaultCollection/_apis/oauth2/token", "https://tfs.example.com/tfs/DefaultCollection/_apis/oauth2/token"},
		{"https://proxy.example.com:8443/tfs/DefaultCollection", "http://tfs:8080/tfs/DefaultCollection/_apis/oauth2/token", "https://proxy.example.com:8443/tfs/DefaultCollection/_apis/oauth2/token"},
	} {
		s := settings()
		s.Identity.URL = tc.collection
		job := build(t, s, jit(), template())
		given := credentials(t, 2048)
		given.AuthorizationURL = tc.authorization
		secret, err := agentjob.Secret(s, job, given)
		if err != nil {
			t.Fatal(err)
		}
		var signIn struct{ Data map[string]string }
		decode(t, secret, ".credentials", &signIn)
		// The audience of what the agent signs is what the server says.
		if signIn.Data["authorizationUrl"] != tc.authorization || signIn.Data["oauthEndpointUrl"] != tc.endpoint {
			t.Errorf("%s: %+v, want the endpoint %s", tc.collection, signIn.Data, tc.endpoint)
		}
		var agent struct{ ServerURL string }
		if decode(t, secret, ".agent", &agent); agent.ServerURL != tc.collection {
			t.Errorf(".agent leads to %s, want %s", agent.ServerURL, tc.collection)
		}
	}
}
