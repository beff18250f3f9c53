package cluster_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/cluster"
)

// keeping is an installation that keeps the agents' token, with the documented rights for
// that and without those that only classes with jit need.
func keeping(t *testing.T) *environment {
	t.Helper()
	e := setUp(t)
	role := must(e.admin.RbacV1().Roles(e.agents).Get(t.Context(), "azp-scaler", metav1.GetOptions{}))(t)
	role.Rules = slices.DeleteFunc(role.Rules, func(rule rbacv1.PolicyRule) bool {
		return slices.Contains(rule.Resources, "secrets") && slices.Contains(rule.Verbs, "create")
	})
	must(e.admin.RbacV1().Roles(e.agents).Update(t.Context(), role, metav1.UpdateOptions{}))(t)
	e.apply(tokenManifest, e.agents, strings.Replace(e.agents, "agents", "scaler", 1))
	// The one that setUp makes is an administrator's.
	if err := e.admin.CoreV1().Secrets(e.agents).Delete(t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var problems []cluster.Problem
	e.await("the rights in force", func() bool {
		problems = e.cluster.PreflightInstallation(t.Context(), keptBy("us"))
		return len(problems) == 0
	}, func() any { return problems })
	return e
}

// keptBy is an installation whose owner keeps the agents' token.
func keptBy(owner string) cluster.Installation {
	in := installation()
	in.TokenOwner = owner
	return in
}

// tokenSecret is that of the scaler, whose id is "us".
func (e *environment) tokenSecret() *cluster.TokenSecret {
	e.t.Helper()
	secret, err := cluster.NewTokenSecret(cluster.TokenSecretConfig{
		Client: kubernetes.NewForConfigOrDie(e.signIn()), Namespace: e.agents, Name: "azp-token", Key: "token", Owner: "us",
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return secret
}

// token gives what pods would be given.
func (e *environment) token() (token string, object *corev1.Secret) {
	e.t.Helper()
	secret, err := e.admin.CoreV1().Secrets(e.agents).Get(e.t.Context(), "azp-token", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return string(secret.Data["token"]), secret
}

// keep must succeed, and gives whether it wrote.
func keep(t *testing.T, secret *cluster.TokenSecret, token string, ends time.Time, renewed bool) (until time.Time, wrote bool) {
	t.Helper()
	until, wrote, err := secret.Keep(t.Context(), token, ends, renewed)
	if err != nil {
		t.Fatal(err)
	}
	return until, wrote
}

func TestTokenIsKeptWithTheDocumentedRights(t *testing.T) {
	t.Parallel()
	e := keeping(t)
	ours := e.tokenSecret()
	soon, later := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(2*time.Hour).Truncate(time.Second)

	if until, wrote := keep(t, ours, "first", soon, true); !wrote || !until.Equal(soon) {
		t.Errorf("made: wrote %t, until %s, want %s", wrote, until, soon)
	}
	token, object := e.token()
	if token != "first" || object.Type != corev1.SecretTypeOpaque || len(object.Data) != 1 ||
		object.Labels[agentjob.LabelInstance] != "us" || object.Labels[agentjob.LabelManagedBy] != agentjob.ManagedBy ||
		object.Annotations[agentjob.AnnotationTokenEnds] != soon.UTC().Format(time.RFC3339) {
		t.Errorf("the Secret is %+v", object)
	}
	for name, value := range object.Annotations {
		if strings.Contains(value, "first") {
			t.Errorf("annotation %s has the token", name)
		}
	}
	if _, wrote := keep(t, ours, "first", soon, false); wrote {
		t.Error("written though nothing has changed")
	}
	if until, wrote := keep(t, ours, "second", later, true); !wrote || !until.Equal(later) {
		t.Errorf("renewed: wrote %t, until %s", wrote, until)
	}
	if token, _ := e.token(); token != "second" {
		t.Errorf("the token is %q", token)
	}

	// What somebody else has spoilt or taken away is there again.
	_, object = e.token()
	object.Data = nil
	must(e.admin.CoreV1().Secrets(e.agents).Update(t.Context(), object, metav1.UpdateOptions{}))(t)
	if _, wrote := keep(t, ours, "second", later, false); !wrote {
		t.Error("an emptied Secret is left as it is")
	}
	if err := e.admin.CoreV1().Secrets(e.agents).Delete(t.Context(), "azp-token", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, wrote := keep(t, ours, "second", later, false); !wrote {
		t.Error("a deleted Secret is not made again")
	}

	if removed, err := ours.Remove(t.Context()); !removed || err != nil {
		t.Errorf("removed %t, %v", removed, err)
	}
	if removed, err := ours.Remove(t.Context()); removed || err != nil {
		t.Errorf("removed again: %t, %v", removed, err)
	}
	if _, object := e.token(); object != nil {
		t.Error("the Secret is still there")
	}
}

// TestTwoReplicasDoNotWriteInTurns: each has a token of its own, and both are good.
func TestTwoReplicasDoNotWriteInTurns(t *testing.T) {
	t.Parallel()
	e := keeping(t)
	one, other := e.tokenSecret(), e.tokenSecret()
	begin := time.Now().Truncate(time.Second)
	ends := func(minutes int) time.Time { return begin.Add(time.Duration(minutes) * time.Minute) }
	keep(t, one, "one-1", ends(60), true)
	keep(t, other, "other-1", ends(70), true)
	for range 3 {
		if until, wrote := keep(t, one, "one-1", ends(60), false); wrote || !until.Equal(ends(70)) {
			t.Fatalf("the first one wrote %t, until %s", wrote, until)
		}
		if _, wrote := keep(t, other, "other-1", ends(70), false); wrote {
			t.Fatal("the other wrote")
		}
	}
	// A new one is put there though it ends earlier: Entra gives out what ends after 60 to 90
	// minutes, and only whoever has renewed it knows that it is good now.
	if until, wrote := keep(t, one, "one-2", ends(65), true); !wrote || !until.Equal(ends(65)) {
		t.Errorf("renewed: wrote %t, until %s", wrote, until)
	}
}

func TestAnotherWriterIsSeen(t *testing.T) {
	t.Parallel()
	e := keeping(t)
	ours := e.tokenSecret()
	ends := time.Now().Add(time.Hour)
	quicker := func(verb string) {
		once := false
		e.wire.intercept(func(write string) {
			if once || write != verb+" secrets" {
				return
			}
			once = true
			if _, _, err := e.adminTokenSecret("us").Keep(t.Context(), "another's "+verb, ends.Add(-time.Minute), true); err != nil {
				t.Error(err)
			}
		})
	}
	quicker("POST")
	if _, wrote := keep(t, ours, "ours", ends, true); !wrote {
		t.Error("given up when somebody else made the Secret")
	}
	quicker("PUT")
	if _, wrote := keep(t, ours, "ours-2", ends, true); !wrote {
		t.Error("given up when somebody else changed the Secret")
	}
	if token, _ := e.token(); token != "ours-2" {
		t.Errorf("the token is %q", token)
	}
}

// adminTokenSecret is one whose calls go by another wire.
func (e *environment) adminTokenSecret(owner string) *cluster.TokenSecret {
	e.t.Helper()
	secret, err := cluster.NewTokenSecret(cluster.TokenSecretConfig{Client: e.admin, Namespace: e.agents, Name: "azp-token", Key: "token", Owner: owner})
	if err != nil {
		e.t.Fatal(err)
	}
	return secret
}

func TestASecretOfSomebodyElseIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *environment) string{
		"an administrator": func(t *testing.T, e *environment) string {
			t.Helper()
			must(e.admin.CoreV1().Secrets(e.agents).Create(t.Context(), &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: "azp-token", Labels: map[string]string{agentjob.LabelManagedBy: "Helm"}}, StringData: map[string]string{"token": "theirs"},
			}, metav1.CreateOptions{}))(t)
			return "an administrator"
		},
		"another installation": func(t *testing.T, e *environment) string {
			t.Helper()
			keep(t, e.adminTokenSecret("others"), "theirs", time.Now().Add(time.Hour), true)
			return "another installation"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := keeping(t)
			by := prepare(t, e)
			ours := e.tokenSecret()
			_, wrote, err := ours.Keep(t.Context(), "ours", time.Now().Add(2*time.Hour), true)
			if wrote || !errors.Is(err, cluster.ErrNameTaken) {
				t.Fatalf("wrote %t, error %v", wrote, err)
			}
			for _, want := range []string{by, "kubectl delete secret azp-token", "AZP_AGENT_TOKEN_SECRET"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if removed, err := ours.Remove(t.Context()); removed || err != nil {
				t.Errorf("removed %t, %v", removed, err)
			}
			if token, _ := e.token(); token != "theirs" {
				t.Errorf("the token is %q", token)
			}
			problems := e.cluster.PreflightInstallation(t.Context(), keptBy("us"))
			if len(problems) != 1 || !problems[0].Fatal || !strings.Contains(problems[0].Remedy, "AZP_AGENT_TOKEN_SECRET") {
				t.Errorf("preflight: %v", problems)
			}
		})
	}
}

func TestKeepingSaysWhatItMayNot(t *testing.T) {
	t.Parallel()
	e := keeping(t)
	if err := e.admin.RbacV1().RoleBindings(e.agents).Delete(t.Context(), "azp-scaler-agent-token", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var problems []cluster.Problem
	e.await("the missing rights", func() bool {
		problems = e.cluster.PreflightInstallation(t.Context(), keptBy("us"))
		return len(problems) == 1 && problems[0].Reason == agentpool.ReasonForbidden
	}, func() any { return problems })
	for _, want := range []string{"create secrets", "update secrets azp-token", "delete secrets azp-token", "deploy/kustomize/agent-token"} {
		if !strings.Contains(problems[0].String(), want) {
			t.Errorf("%s\ndoes not say %q", problems[0], want)
		}
	}
	ours := e.tokenSecret()
	for _, existing := range []bool{false, true} {
		if existing {
			keep(t, e.adminTokenSecret("us"), "before", time.Now().Add(time.Minute), true)
		}
		_, wrote, err := ours.Keep(t.Context(), "canary", time.Now().Add(time.Hour), true)
		if wrote || !errors.Is(err, cluster.ErrForbidden) || strings.Contains(err.Error(), "canary") {
			t.Errorf("existing %t: wrote %t, error %v", existing, wrote, err)
		}
	}
}

// TestATokenThatNobodyRenewsIsTold: the scaler signed in by Entra once, and does not now.
func TestATokenThatNobodyRenewsIsTold(t *testing.T) {
	t.Parallel()
	e := keeping(t)
	keep(t, e.tokenSecret(), "left", time.Now().Add(time.Hour), true)
	problems := e.cluster.PreflightInstallation(t.Context(), installation())
	if len(problems) != 1 || !problems[0].Fatal || !strings.Contains(problems[0].String(), "nobody renews it") ||
		!strings.Contains(problems[0].Remedy, "kubectl delete secret azp-token") {
		t.Errorf("preflight: %v", problems)
	}
}
