package env

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	planted  = "pat-0123456789abcdef-azp-scaler"
	plantedD = "cHJpdmF0ZSBwYXJ0IG9mIGEga2V5IHRoYXQgbm9ib2R5IGtub3dz"
)

// plantedIn makes an object for a sweep to look into.
func plantedIn(t *testing.T, kind string, object any) *unstructured.Unstructured {
	t.Helper()
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		t.Fatal(err)
	}
	made := &unstructured.Unstructured{Object: fields}
	made.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: kind})
	made.SetNamespace(AgentsNamespace)
	if made.GetName() == "" {
		made.SetName("planted")
	}
	return made
}

func startedObserver(t *testing.T) *observer {
	t.Helper()
	o, err := newObserver(filepath.Join(t.TempDir(), containersDir), filepath.Join(t.TempDir(), "objects"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		o.stop()
		if err := o.close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// credentialsSecret is one that the scaler makes for a build that it registers.
func credentialsSecret(t *testing.T, name, d string) *corev1.Secret {
	t.Helper()
	key := map[string]string{"modulus": "public"}
	for _, part := range privateParts() {
		key[part] = base64.StdEncoding.EncodeToString([]byte("another part " + part + " of " + name))
	}
	key["d"] = d
	text, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{keyFile: append([]byte("\ufeff"), text...)}}
}

// TestSweepFindsWhatIsPlantedInObjects: in each kind of object, as it is and in base64.
func TestSweepFindsWhatIsPlantedInObjects(t *testing.T) {
	t.Parallel()
	terminated := func(message string) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "agent", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: message}}}}}
	}
	for where, planting := range map[string]func(secret string) (kind string, object any){
		"the message of an Event": func(s string) (string, any) { return "Event", &corev1.Event{Message: s} },
		"a pod's environment": func(s string) (string, any) {
			return "Pod", &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Env: []corev1.EnvVar{{Name: "X", Value: s}}}}}}
		},
		"a command line": func(s string) (string, any) {
			return "Pod", &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Args: []string{"--token=" + s}}}}}
		},
		"a termination message": func(s string) (string, any) { return "Pod", &corev1.Pod{Status: terminated("failed with " + s)} },
		"a Job's annotation": func(s string) (string, any) {
			return "Job", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"x": s}}}
		},
		"a class": func(s string) (string, any) {
			return "CronJob", &batchv1.CronJob{Spec: batchv1.CronJobSpec{Schedule: s}}
		},
		"a ConfigMap": func(s string) (string, any) { return "ConfigMap", &corev1.ConfigMap{Data: map[string]string{"x": s}} },
		"an account": func(s string) (string, any) {
			return "ServiceAccount", &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"x": s}}}
		},
		"a right": func(s string) (string, any) {
			return "RoleBinding", &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"x": s}}}
		},
		"another Secret": func(s string) (string, any) { return "Secret", &corev1.Secret{Data: map[string][]byte{"x": []byte(s)}} },
	} {
		for name, secret := range map[string]string{"token": planted, "key of Secret " + AgentsNamespace + "/first d": plantedD} {
			for shape, text := range map[string]string{"plain": secret, "as Basic": base64.StdEncoding.EncodeToString([]byte("VstsAgent:" + secret))} {
				o := startedObserver(t)
				kind, object := planting(text)
				// The key is known only afterwards, and what was seen before counts.
				o.see(plantedIn(t, kind, object))
				o.see(plantedIn(t, "Secret", credentialsSecret(t, "first", plantedD)))
				found := searchObserved(t, o)
				if want := []string{name + " in " + kind + " " + AgentsNamespace + "/planted"}; !slices.Equal(found, want) {
					t.Errorf("%s %s in %s: the sweep finds %q, want %q", name, shape, where, found, want)
				}
			}
		}
	}
}

func searchObserved(t *testing.T, o *observer) []string {
	t.Helper()
	set, err := o.canaries(map[string]string{"token": planted})
	if err != nil {
		t.Fatal(err)
	}
	found, err := o.search(set, map[string]string{"Secret " + AgentsNamespace + "/" + TokenSecret: "token"})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestSweepAllowsWhatIsInItsPlace: a Secret may hold what it is for, and nothing else.
func TestSweepAllowsWhatIsInItsPlace(t *testing.T) {
	t.Parallel()
	o := startedObserver(t)
	o.see(plantedIn(t, "Secret", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: TokenSecret}, Data: map[string][]byte{tokenKey: []byte(planted)}}))
	o.see(plantedIn(t, "Secret", credentialsSecret(t, "first", plantedD)))
	if found := searchObserved(t, o); len(found) > 0 {
		t.Errorf("the sweep finds %q", found)
	}
	o.see(plantedIn(t, "Secret", credentialsSecret(t, "second", planted+planted)))
	if found := searchObserved(t, o); !slices.Equal(found, []string{"token in Secret " + AgentsNamespace + "/second"}) {
		t.Errorf("with a token in the Secret of a build, the sweep finds %q", found)
	}
}

// TestSweepFindsWhatIsPlantedInFiles: in every log and page that a run leaves.
func TestSweepFindsWhatIsPlantedInFiles(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		scalerLogName, "audit/" + kubeLogName, serviceLogName, "pods/a_remove.log", buildsDir + "/1001.log", "static-machine.log", "other/deep/file",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		writeFile(t, path, "a line\nanother with "+base64.StdEncoding.EncodeToString([]byte(":"+planted))+" in it\n")
		wantInTree(t, dir, "token in file "+path)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "bin", "scaler"), planted)
	writeFile(t, filepath.Join(dir, "clean.log"), "nothing")
	wantInTree(t, dir)
}

// TestSweepFindsWhatAPageAnswers: in the body and in the header.
func TestSweepFindsWhatAPageAnswers(t *testing.T) {
	t.Parallel()
	for _, page := range scalerPages() {
		for _, answer := range []http.HandlerFunc{
			func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == page {
					_, _ = fmt.Fprintf(w, "azp_scaler_x{pool=%q} 1\n", planted)
				}
			},
			func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == page {
					w.Header().Set("X-Last", planted)
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			},
		} {
			server := httptest.NewServer(answer)
			dir := t.TempDir()
			if err := keepPages(t.Context(), server.URL, dir, "scaler"); err != nil {
				t.Fatal(err)
			}
			server.Close()
			wantInTree(t, dir, "token in file "+filepath.Join(dir, "scaler"+strings.ReplaceAll(page, "/", "_")+".txt"))
		}
	}
}

// TestSweepFindsWhatAContainerSays, which is kept while the pod is there.
func TestSweepFindsWhatAContainerSays(t *testing.T) {
	t.Parallel()
	o := startedObserver(t)
	o.logs = func(_ context.Context, namespace, pod, container string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("level=debug " + strings.Join([]string{namespace, pod, container, planted}, " "))), nil
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "build", UID: "1"}, Status: corev1.PodStatus{
		InitContainerStatuses: []corev1.ContainerStatus{{Name: "remove", ContainerID: "containerd://1"}, {Name: "configure"}},
	}}
	for range 2 { // It is followed once.
		o.see(plantedIn(t, "Pod", pod))
	}
	o.streams.Wait()
	wantInTree(t, o.dir, "token in file "+filepath.Join(o.dir, AgentsNamespace+"_build_remove.log"))
	text, err := os.ReadFile(filepath.Join(o.dir, AgentsNamespace+"_build_remove.log"))
	if err != nil || strings.Count(string(text), planted) != 1 {
		t.Errorf("the log is %q, %v", text, err)
	}
}

func TestExposedNamesNoSecret(t *testing.T) {
	t.Parallel()
	if err := exposed(nil); err != nil {
		t.Error(err)
	}
	var many []string
	for i := range 30 {
		many = append(many, fmt.Sprintf("token in file %02d", i), "token in file 00")
	}
	err := exposed(many)
	if err == nil || !strings.Contains(err.Error(), "token in file 19\nand 10 more") {
		t.Errorf("of thirty it says %v", err)
	}
}

func wantInTree(t *testing.T, dir string, want ...string) {
	t.Helper()
	set, err := startedObserver(t).canaries(map[string]string{"token": planted})
	if err != nil {
		t.Fatal(err)
	}
	found, err := searchTree(dir, set)
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("the sweep finds %q, %v; want %q", found, err, want)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
