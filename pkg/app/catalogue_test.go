package app

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentjob"
)

// shelf is where a test puts classes, and what the catalogue has told of them.
type shelf struct {
	cronJobs []*batchv1.CronJob
	events   []string
	log      strings.Builder
	reads    int
	catalogue
}

func newShelf(image string) *shelf {
	config := Config{URL: "https://dev.azure.com/acme", Namespace: "agents", AgentImage: image, AgentSource: "image", AgentTokenSecret: "azp-token", AgentTokenKey: "token"}
	config.StartupLimit.Duration = agentjob.DefaultStartupLimit
	s := &shelf{}
	accept := fits(config)
	s.catalogue = catalogue{
		source: func() []*batchv1.CronJob { return s.cronJobs }, defaults: classDefaults(config), builtin: builtin(config),
		fits: func(c agentclass.Class) error {
			s.reads++
			return accept(c)
		},
		event: func(cronJob *batchv1.CronJob, _ bool, reason, _ string) {
			s.events = append(s.events, cronJob.Name+" "+reason)
		},
		log: slog.New(slog.NewTextHandler(&s.log, nil)),
	}
	return s
}

// put has a class in the version, with annotations as pairs of name and value.
func (s *shelf) put(name, version string, annotations ...string) *batchv1.CronJob {
	suspended := true
	c := &batchv1.CronJob{}
	c.Name, c.Namespace, c.UID, c.ResourceVersion = name, "agents", types.UID("uid-"+name), version
	c.Annotations = map[string]string{}
	for i := 0; i < len(annotations); i += 2 {
		c.Annotations[agentjob.Prefix+annotations[i]] = annotations[i+1]
	}
	c.Spec.Suspend = &suspended
	c.Spec.JobTemplate.Spec.Template.Spec.Containers = []corev1.Container{{Name: "agent", Image: name + ":" + version}}
	s.take(name)
	s.cronJobs = append(s.cronJobs, c)
	slices.SortFunc(s.cronJobs, func(a, b *batchv1.CronJob) int { return strings.Compare(a.Name, b.Name) })
	return c
}

func (s *shelf) take(name string) {
	s.cronJobs = slices.DeleteFunc(s.cronJobs, func(c *batchv1.CronJob) bool { return c.Name == name })
}

// names gives the usable classes of a pool, and the broken ones after a minus.
func (s *shelf) names(pool string) []string {
	var names []string
	classes := s.of(pool).classes()
	for _, class := range classes.Usable {
		names = append(names, class.Name)
	}
	for name := range classes.Broken {
		names = append(names, "-"+name)
	}
	slices.Sort(names)
	return names
}

func (s *shelf) want(t *testing.T, why, pool string, names ...string) {
	t.Helper()
	if diff := cmp.Diff(names, s.names(pool)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", why, diff)
	}
}

func TestCatalogue(t *testing.T) {
	s := newShelf("agent:1")
	s.want(t, "without classes there is the one from the environment", "linux", "default")
	s.put("java", "1", "pools", "linux")
	s.want(t, "with one of its own, a pool does without it", "linux", "java")
	s.want(t, "and another pool does not", "large", "default")
	if !s.of("linux").unused || s.of("large").unused {
		t.Error("it is to be known where the class from the environment is not used")
	}
	s.put("npm", "1", "max-agents", "many")
	s.want(t, "a broken class is disabled alone", "linux", "-npm", "java")
	s.want(t, "and is not replaced without a word", "large", "-npm")
	s.put("npm", "2", "max-agents", "3")
	s.want(t, "and serves once it is mended", "large", "npm")
	before := s.of("linux").usable["java"].Version
	s.put("java", "2", "pools", "linux")
	if after := s.of("linux").usable["java"].Version; after == before {
		t.Error("a class that has changed is still of the old version")
	}
	s.take("java")
	s.take("npm")
	s.want(t, "with the last class, the one from the environment is back", "linux", "default")
	if diff := cmp.Diff([]string{"npm BrokenClass", "npm ClassMended"}, s.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for _, want := range []string{"is there", "has changed", "is broken", "max-agents", "is mended", "is gone"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, s.log.String())
		}
	}
}

func TestCatalogueReadsAClassOnce(t *testing.T) {
	s := newShelf("")
	s.put("java", "1", "max-agents", "3")
	s.put("npm", "1")
	for range 10 {
		s.names("linux")
		s.names("large")
	}
	if s.reads != 2 {
		t.Errorf("two classes were read %d times", s.reads)
	}
	if n := strings.Count(s.log.String(), "\n"); n != 2 {
		t.Errorf("told %d times, want once of each class:\n%s", n, s.log.String())
	}
}

func TestAPodThatGivesTheTokenAwayIsABrokenClass(t *testing.T) {
	s := newShelf("")
	c := s.put("java", "1")
	c.Spec.JobTemplate.Spec.Template.Spec.HostPID = true
	s.want(t, "what Jobs can't be made of", "linux", "-java")
	if why := s.of("linux").broken["java"]; !strings.Contains(why, "hostPID") {
		t.Errorf("it does not say why: %s", why)
	}
}

func TestWithoutAnyClass(t *testing.T) {
	s := newShelf("")
	if why := s.of("linux").without("linux"); !strings.Contains(why, "AZP_AGENT_IMAGE") || !strings.Contains(why, "pool linux") {
		t.Errorf("the remedy is missing: %s", why)
	}
	s.put("java", "1", "max-agents", "many")
	if why := s.of("linux").without("linux"); !strings.Contains(why, "class java") || !strings.Contains(why, "max-agents") {
		t.Errorf("the broken class is missing: %s", why)
	}
	s.put("npm", "1")
	if why := s.of("linux").without("linux"); why != "" {
		t.Errorf("there is one: %s", why)
	}
}

func TestTargetNamespaces(t *testing.T) {
	s := newShelf("")
	s.put("java", "1", "role-bindings", "shop Role/a\nfront Role/b")
	s.put("other", "1", "role-bindings", "elsewhere Role/a", "pools", "large")
	config := Config{TargetNamespaces: Names{"old", "shop"}}
	if diff := cmp.Diff([]string{"front", "old", "shop"}, targetNamespaces(config, s.of("linux"))); diff != "" {
		t.Errorf("namespaces (-want +got):\n%s", diff)
	}
}

func TestMergeAccounts(t *testing.T) {
	every := agentjob.ServiceAccountTemplate{Labels: map[string]string{"a": "1", "b": "1"}, ImagePullSecrets: []string{"x", "y"}}
	class := agentjob.ServiceAccountTemplate{Labels: map[string]string{"b": "2"}, Annotations: map[string]string{"c": "3"}, ImagePullSecrets: []string{"y", "z"}}
	want := agentjob.ServiceAccountTemplate{
		Labels: map[string]string{"a": "1", "b": "2"}, Annotations: map[string]string{"c": "3"}, ImagePullSecrets: []string{"x", "y", "z"},
	}
	if diff := cmp.Diff(want, mergeAccounts(every, class)); diff != "" {
		t.Errorf("what a build's account gets (-want +got):\n%s", diff)
	}
}
