package app_test

import (
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

// TestAccountsThatBuildsRunAs looks at a class that names one: what is wrong with it blocks the
// class and no other, and check and explain say why.
func TestAccountsThatBuildsRunAs(t *testing.T) {
	account := func(t *testing.T, w *world) {
		t.Helper()
		made := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "cloud", Namespace: "agents"}}
		if err := w.clientset.Tracker().Add(made); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(w *world, resource string, object runtime.Object, err error) {
		w.clientset.PrependReactor("create", resource, func(clienttesting.Action) (bool, runtime.Object, error) { return true, object, err })
	}
	const subject = "class azure for pool kubernetes"
	for name, test := range map[string]struct {
		prepare func(*testing.T, *world)
		check   []string
		waits   string // What explain says of a build of the class.
	}{
		"there": {account, []string{"ok    " + subject}, "an agent of class azure is made for it"},
		"absent": {
			func(*testing.T, *world) {}, []string{"WRONG " + subject, "ServiceAccount agents/cloud: not found", "kubectl create serviceaccount cloud --namespace agents"}, "kubectl create serviceaccount cloud",
		},
		"the scaler's own": {func(t *testing.T, w *world) {
			account(t, w)
			answer(w, "selfsubjectreviews", &authenticationv1.SelfSubjectReview{
				Status: authenticationv1.SelfSubjectReviewStatus{UserInfo: authenticationv1.UserInfo{Username: "system:serviceaccount:agents:cloud"}},
			}, nil)
		}, []string{"WRONG " + subject, "it is the scaler's own"}, "it is the scaler's own"},
		"one that reads Secrets": {func(t *testing.T, w *world) {
			account(t, w)
			answer(w, "localsubjectaccessreviews", &authorizationv1.LocalSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}}, nil)
		}, []string{"WRONG " + subject, "could read the pool's token", "get secrets azp-token"}, "could read the pool's token"},
		"one of whose rights one is seen and the next is not": {func(t *testing.T, w *world) {
			account(t, w)
			w.clientset.PrependReactor("create", "localsubjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
				create, _ := action.(clienttesting.CreateActionImpl)
				review, asked := create.Object.(*authorizationv1.LocalSubjectAccessReview)
				if !asked || review.Spec.ResourceAttributes.Verb != "get" {
					return true, nil, errors.New("no answer")
				}
				return true, &authorizationv1.LocalSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}}, nil
			})
		}, []string{"WRONG " + subject, "could read the pool's token"}, "could read the pool's token"},
		"one whose rights can't be seen": {func(t *testing.T, w *world) {
			account(t, w)
			answer(w, "localsubjectaccessreviews", nil, errors.New("no such right"))
		}, []string{"note  " + subject, `"cloud"`, "no such right", "no role is bound to it"}, "an agent of class azure is made for it"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"AZP_POOL": "kubernetes"}, class("azure", "azure", "service-account", "cloud"), class("java", "java"))
			answer(w, "localsubjectaccessreviews", &authorizationv1.LocalSubjectAccessReview{}, nil)
			test.prepare(t, w)
			w.placeholder(t, "kubernetes", "azp-scaler", "azure")
			request := w.queue(t, "kubernetes", "azure")
			var check, explained strings.Builder
			if err := w.Check(t.Context(), &check); errors.Is(err, app.ErrCheck) != strings.HasPrefix(test.check[0], "WRONG") {
				t.Errorf("check ended with %v", err)
			}
			contains(t, check.String(), append(test.check, "ok    class java for pool kubernetes")...)
			if err := w.Explain(t.Context(), &explained, request); err != nil {
				t.Fatal(err)
			}
			contains(t, explained.String(), test.waits)
			w.wantNoWrites(t)
		})
	}
}

func TestAccountsAndRolesExcludeEachOther(t *testing.T) {
	w := newWorld(t, map[string]string{"AZP_POOL": "kubernetes"}, class("azure", "azure", "service-account", "cloud", "role-bindings", "shop Role/deployer"))
	var text strings.Builder
	if err := w.Check(t.Context(), &text); !errors.Is(err, app.ErrCheck) {
		t.Errorf("want it to say that something is wrong, got %v", err)
	}
	contains(t, text.String(), "WRONG class azure for pool kubernetes: ", `service-account: "cloud" can't be with`, "bind roles to this account yourself")
}
