package agentclass_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

const prefix = "azp-scaler.github.io/"

func defaults() agentclass.Defaults {
	return agentclass.Defaults{
		Architecture: "X64", AgentRoot: "/azp/agent", GracePeriod: time.Hour, IgnoredVariables: []string{"HIDDEN"},
	}
}

// cronJob is a class that is right, with annotations as pairs of name and value.
func cronJob(annotations ...string) *batchv1.CronJob {
	suspended := true
	c := &batchv1.CronJob{}
	c.Name, c.Namespace = "java", "azp-agents"
	c.Labels = map[string]string{agentclass.Label: ""}
	c.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: "{}"}
	for i := 0; i < len(annotations); i += 2 {
		c.Annotations[prefix+annotations[i]] = annotations[i+1]
	}
	c.Spec.Suspend = &suspended
	c.Spec.JobTemplate.Spec.Template.Spec.Containers = []corev1.Container{
		{Name: "agent", Image: "registry.example.com/java:1", Env: []corev1.EnvVar{
			{Name: "JAVA_HOME", Value: "/opt/java"},
			{Name: "HIDDEN", Value: "x"},
			{Name: "AZP_WORK", Value: "w"},
			{Name: "FROM_SECRET", ValueFrom: &corev1.EnvVarSource{}},
			{Name: "PATHS", Value: "$(JAVA_HOME)/bin"},
			{Name: "LONG", Value: strings.Repeat("x", 1024)},
		}},
		{Name: "docker", Env: []corev1.EnvVar{{Name: "SIDE", Value: "car"}}},
	}
	return c
}

func podOf(c *batchv1.CronJob) *corev1.PodSpec { return &c.Spec.JobTemplate.Spec.Template.Spec }

func parse(t *testing.T, c *batchv1.CronJob) agentclass.Class {
	t.Helper()
	class, err := agentclass.Parse(c, defaults())
	if err != nil {
		t.Fatal(err)
	}
	return class
}

func TestParse(t *testing.T) {
	c := cronJob(
		"pools", "Linux, linux-large\nbig", "capabilities", "java=17\n\n maven = 3.9 \nAgent.OSArchitecture=ARM64\n",
		"max-agents", "20", "min-idle", "2", "priority", "-5", "registration", "config", "grace-period", "2h",
		"role-bindings", "shop ClusterRole/edit\nfront Role/deployer\n",
	)
	podOf(c).ServiceAccountName = "cloud"
	got := parse(t, c)
	claims := map[string]string{
		"Agent.OS": "Linux", "Agent.OSArchitecture": "ARM64", "Agent.ComputerName": "", "Agent.HomeDirectory": "/azp/agent",
		"InteractiveSession": "True", "JAVA_HOME": "/opt/java", "java": "17", "maven": "3.9",
	}
	want := agentclass.Class{
		AgentClass: agentpool.AgentClass{
			Name: "java", Version: got.Version, Claims: claims, Capabilities: agentpool.NewCapabilities(claims),
			Priority: -5, MaxAgents: 20, MinIdle: 2, Registration: agentpool.RegistrationConfig, GracePeriod: 2 * time.Hour,
			RoleBindings: []agentpool.RoleBinding{
				{Namespace: "shop", Kind: "ClusterRole", Name: "edit"}, {Namespace: "front", Kind: "Role", Name: "deployer"},
			},
		},
		Pools: []string{"Linux", "linux-large", "big"}, AccountTemplate: "cloud", Template: c.Spec.JobTemplate,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("class (-want +got):\n%s", diff)
	}
	if got.Version == "" {
		t.Error("the class has no version")
	}
	for pool, want := range map[string]bool{"linux": true, "LINUX-large": true, "windows": false, "": false} {
		if got.Serves(pool) != want {
			t.Errorf("serves %q: want %v", pool, want)
		}
	}
}

func TestAClassThatSaysNothing(t *testing.T) {
	got := parse(t, cronJob())
	if got.GracePeriod != time.Hour || got.Registration != agentpool.RegistrationConfig || got.MaxAgents != 0 || !got.Serves("any") {
		t.Errorf("the defaults do not hold: %+v", got.AgentClass)
	}
}

// TestAccountOfTheClass: builds run as the account in the annotation, and then no account is
// made that could take after one.
func TestAccountOfTheClass(t *testing.T) {
	for name, test := range map[string]struct {
		annotation, inTemplate    string
		account, accountsTemplate string
	}{
		"neither":           {"", "", "", ""},
		"the template's":    {"", "cloud", "", "cloud"},
		"the class's":       {" cloud\n", "", "cloud", ""},
		"the same for both": {"cloud", "cloud", "cloud", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := cronJob()
			podOf(c).ServiceAccountName = test.inTemplate
			if test.annotation != "" {
				c.Annotations[prefix+"service-account"] = test.annotation
			}
			got := parse(t, c)
			if got.ServiceAccount != test.account || got.AccountTemplate != test.accountsTemplate {
				t.Errorf("builds run as %q, accounts are made after %q", got.ServiceAccount, got.AccountTemplate)
			}
		})
	}
}

func TestFromTemplate(t *testing.T) {
	c := cronJob("capabilities", "java=17", "min-idle", "1")
	read := parse(t, c)
	made := agentclass.FromTemplate("java", c.Spec.JobTemplate, map[string]string{"java": "17"}, nil, 1, defaults())
	if diff := cmp.Diff(read, made); diff != "" {
		t.Errorf("from a CronJob and from a template (-CronJob +template):\n%s", diff)
	}
}

func TestWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		annotations []string
		change      func(*batchv1.CronJob)
		want        []string // What the message says: where, the value, and what would be right.
	}{
		"not suspended":        {change: func(c *batchv1.CronJob) { *c.Spec.Suspend = false }, want: []string{"spec.suspend", "suspend: true"}},
		"suspend not said":     {change: func(c *batchv1.CronJob) { c.Spec.Suspend = nil }, want: []string{"spec.suspend", "suspend: true"}},
		"misspelled":           {annotations: []string{"max-agent", "3"}, want: []string{prefix + "max-agent:", `"3"`, prefix + "max-agents"}},
		"somebody's idea":      {annotations: []string{"min-replicas", "3"}, want: []string{"min-replicas", `"3"`, prefix + "min-idle"}},
		"plural":               {annotations: []string{"capability", "java"}, want: []string{"capability:", `"java"`, prefix + "capabilities"}},
		"no pool":              {annotations: []string{"pools", " , "}, want: []string{"pools", "names no pool", `"linux, linux-large"`}},
		"a pool twice":         {annotations: []string{"pools", "linux,LINUX"}, want: []string{"pools", `"LINUX"`, "twice"}},
		"no name":              {annotations: []string{"capabilities", "=17"}, want: []string{"capabilities", `"=17"`, "no name", "java=17"}},
		"two in a line":        {annotations: []string{"capabilities", "java maven"}, want: []string{"capabilities", `"java maven"`, "one capability a line", "java=17"}},
		"contradiction":        {annotations: []string{"capabilities", "java=17\nJava=21"}, want: []string{"capabilities", `"Java=21"`, "java=17"}},
		"the agent's name":     {annotations: []string{"capabilities", "agent.name=x"}, want: []string{"capabilities", `"agent.name=x"`, "can't be claimed"}},
		"the agent's version":  {annotations: []string{"capabilities", "Agent.Version=4"}, want: []string{"capabilities", `"Agent.Version=4"`, "can't be claimed"}},
		"many":                 {annotations: []string{"max-agents", "many"}, want: []string{"max-agents", `"many"`, "no whole number", `"20"`}},
		"none":                 {annotations: []string{"max-agents", "0"}, want: []string{"max-agents", `"0"`, "out of bounds", `"20"`}},
		"half an agent":        {annotations: []string{"max-agents", "1.5"}, want: []string{"max-agents", `"1.5"`, "no whole number"}},
		"too many":             {annotations: []string{"max-agents", "1000000"}, want: []string{"max-agents", `"1000000"`, "100000"}},
		"blank":                {annotations: []string{"max-agents", ""}, want: []string{"max-agents", `""`, "no whole number"}},
		"fewer than none":      {annotations: []string{"min-idle", "-1"}, want: []string{"min-idle", `"-1"`, "out of bounds", `"2"`}},
		"more idle than ever":  {annotations: []string{"min-idle", "5", "max-agents", "3"}, want: []string{"min-idle", `"5"`, "max-agents", "3"}},
		"high":                 {annotations: []string{"priority", "high"}, want: []string{"priority", `"high"`, "no whole number", `"10"`}},
		"too high":             {annotations: []string{"priority", "1000001"}, want: []string{"priority", `"1000001"`, "1000000"}},
		"a role alone":         {annotations: []string{"role-bindings", "edit"}, want: []string{"role-bindings", `"edit"`, "shop ClusterRole/edit"}},
		"a role of what kind":  {annotations: []string{"role-bindings", "shop Group/edit"}, want: []string{"role-bindings", `"shop Group/edit"`, `"Group"`}},
		"no namespace":         {annotations: []string{"role-bindings", "Shop_1 Role/edit"}, want: []string{"role-bindings", `"Shop_1 Role/edit"`, `"Shop_1"`}},
		"the agents' own":      {annotations: []string{"role-bindings", "azp-agents Role/edit"}, want: []string{"role-bindings", `"azp-agents Role/edit"`, "token", "shop ClusterRole/edit"}},
		"a role twice":         {annotations: []string{"role-bindings", "shop Role/a\nshop Role/a"}, want: []string{"role-bindings", `"shop Role/a"`, "twice"}},
		"no account":           {annotations: []string{"service-account", ""}, want: []string{"service-account", `""`, "no name", `"azure-builds"`}},
		"an odd account":       {annotations: []string{"service-account", "Azure Builds"}, want: []string{"service-account", `"Azure Builds"`, "no name", `"azure-builds"`}},
		"everybody's account":  {annotations: []string{"service-account", "default"}, want: []string{"service-account", `"default"`, "not for these builds alone", `"azure-builds"`}},
		"a build's account":    {annotations: []string{"service-account", "azp-abcdefgh-1-42-0"}, want: []string{"service-account", `"azp-abcdefgh-1-42-0"`, "go with their build"}},
		"an account and roles": {annotations: []string{"service-account", "cloud", "role-bindings", "shop Role/a"}, want: []string{"service-account", `"cloud"`, "role-bindings", "bind roles to this account yourself"}},
		"two accounts": {
			annotations: []string{"service-account", "cloud"}, change: func(c *batchv1.CronJob) { podOf(c).ServiceAccountName = "other" },
			want: []string{"service-account", `"cloud"`, `"other"`, "leave serviceAccountName out"},
		},
		"registered by magic":  {annotations: []string{"registration", "magic"}, want: []string{"registration", `"magic"`, `"jit"`}},
		"a bare number":        {annotations: []string{"grace-period", "3600"}, want: []string{"grace-period", `"3600"`, "unit", `"2h"`}},
		"a short grace":        {annotations: []string{"grace-period", "30s"}, want: []string{"grace-period", `"30s"`, "2m0s"}},
		"an eternal grace":     {annotations: []string{"grace-period", "169h"}, want: []string{"grace-period", `"169h"`, "168h"}},
		"a node for windows":   {change: selecting(corev1.LabelOSStable, "windows"), want: []string{"windows", "linux"}},
		"a pod for windows":    {change: func(c *batchv1.CronJob) { podOf(c).OS = &corev1.PodOS{Name: corev1.Windows} }, want: []string{"windows", "linux"}},
		"an unknown processor": {change: selecting(corev1.LabelArchStable, "s390x"), want: []string{"nodeSelector", "s390x", "arm64"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := cronJob(test.annotations...)
			if test.change != nil {
				test.change(c)
			}
			class, err := agentclass.Parse(c, defaults())
			if err == nil {
				t.Fatalf("read as %+v", class)
			}
			if class.Name != "java" {
				t.Errorf("the name of a class that is wrong is %q", class.Name)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
		})
	}
}

func TestAllThatIsWrongIsToldAtOnce(t *testing.T) {
	c := cronJob("pools", "linux", "max-agents", "x", "priority", "y", "grace-period", "z", "colour", "blue")
	class, err := agentclass.Parse(c, defaults())
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Fatalf("want four problems, got: %v", err)
	}
	if !class.Serves("linux") || class.Serves("other") {
		t.Error("the pools of a class that is wrong are to be known")
	}
}

func selecting(label, value string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { podOf(c).NodeSelector = map[string]string{label: value} }
}

func affine(terms ...[]string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) {
		required := &corev1.NodeSelector{}
		for _, values := range terms {
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, corev1.NodeSelectorTerm{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelArchStable, Operator: corev1.NodeSelectorOpIn, Values: values}},
			})
		}
		podOf(c).Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: required}}
	}
}

func TestArchitecture(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*batchv1.CronJob)
		want   string
	}{
		"not said":             {func(*batchv1.CronJob) {}, "X64"},
		"selected":             {selecting(corev1.LabelArchStable, "arm64"), "ARM64"},
		"by affinity":          {affine([]string{"arm64"}), "ARM64"},
		"by all terms":         {affine([]string{"arm64"}, []string{"arm64"}), "ARM64"},
		"either":               {affine([]string{"amd64", "arm64"}), "X64"},
		"either of two terms":  {affine([]string{"amd64"}, []string{"arm64"}), "X64"},
		"only by some term":    {affine([]string{"arm64"}, nil), "X64"},
		"selected counts more": {func(c *batchv1.CronJob) { affine([]string{"amd64"})(c); selecting(corev1.LabelArchStable, "arm")(c) }, "ARM"},
	} {
		t.Run(name, func(t *testing.T) {
			c := cronJob()
			test.change(c)
			if got := parse(t, c).Claims["Agent.OSArchitecture"]; got != test.want {
				t.Errorf("want %s, got %s", test.want, got)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	original := parse(t, cronJob("capabilities", "java=17"))
	for name, test := range map[string]struct {
		change func(*batchv1.CronJob)
		same   bool
	}{
		"nothing":         {func(*batchv1.CronJob) {}, true},
		"resourceVersion": {func(c *batchv1.CronJob) { c.ResourceVersion, c.UID, c.Generation = "5", "u", 7 }, true},
		"a label":         {func(c *batchv1.CronJob) { c.Labels["team"] = "shop" }, true},
		"a cap":           {func(c *batchv1.CronJob) { c.Annotations[prefix+"max-agents"] = "7" }, true},
		"idle agents":     {func(c *batchv1.CronJob) { c.Annotations[prefix+"min-idle"] = "7" }, true},
		"priority":        {func(c *batchv1.CronJob) { c.Annotations[prefix+"priority"] = "7" }, true},
		"pools":           {func(c *batchv1.CronJob) { c.Annotations[prefix+"pools"] = "linux" }, true},
		"applied again":   {func(c *batchv1.CronJob) { c.Annotations[corev1.LastAppliedConfigAnnotation] = "other" }, true},
		"the schedule":    {func(c *batchv1.CronJob) { c.Spec.Schedule = "0 0 1 1 *" }, true},
		"the image":       {func(c *batchv1.CronJob) { podOf(c).Containers[0].Image = "java:2" }, false},
		"a variable":      {func(c *batchv1.CronJob) { podOf(c).Containers[0].Env[0].Value = "/opt/other" }, false},
		"a claim":         {func(c *batchv1.CronJob) { c.Annotations[prefix+"capabilities"] = "java=21" }, false},
		"a right":         {func(c *batchv1.CronJob) { c.Annotations[prefix+"role-bindings"] = "shop Role/a" }, false},
		"the grace":       {func(c *batchv1.CronJob) { c.Annotations[prefix+"grace-period"] = "2h" }, false},
		"an account":      {func(c *batchv1.CronJob) { c.Annotations[prefix+"service-account"] = "cloud" }, false},
		"a pod's label":   {func(c *batchv1.CronJob) { c.Spec.JobTemplate.Labels = map[string]string{"a": "b"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := cronJob("capabilities", "java=17")
			test.change(c)
			if got := parse(t, c); (got.Version == original.Version) != test.same {
				t.Errorf("the version is %s, and was %s", got.Version, original.Version)
			}
		})
	}
}

func TestParseChangesNothing(t *testing.T) {
	c := cronJob("capabilities", "java=17")
	before := c.DeepCopy()
	class := parse(t, c)
	maps.DeleteFunc(class.Claims, func(string, string) bool { return true })
	if diff := cmp.Diff(before, c); diff != "" {
		t.Errorf("the CronJob (-before +after):\n%s", diff)
	}
}

// FuzzParse looks for annotations that are taken and should not be.
func FuzzParse(f *testing.F) {
	f.Add("linux", "java=17\nmaven", "3", "1", "0", "shop Role/a", "2h")
	f.Add(",", "=", "0", "-1", "x", "a b c", "1s")
	f.Add("a\nA", "a=1\nA=2", "99999999999999999999", "+1", " 7 ", "azp-agents Role/a", "1e9h")
	f.Fuzz(func(t *testing.T, pools, capabilities, most, idle, priority, bindings, grace string) {
		c := cronJob("pools", pools, "capabilities", capabilities, "max-agents", most, "min-idle", idle, "priority", priority, "role-bindings", bindings, "grace-period", grace)
		class, err := agentclass.Parse(c, defaults())
		if err != nil {
			if !strings.Contains(err.Error(), prefix) {
				t.Errorf("the error names no annotation: %v", err)
			}
			return
		}
		switch {
		case class.MaxAgents < 1, class.MinIdle < 0, class.MinIdle > class.MaxAgents:
			t.Errorf("%d to %d agents", class.MinIdle, class.MaxAgents)
		case class.GracePeriod < 2*time.Minute || class.GracePeriod > 168*time.Hour:
			t.Errorf("a grace of %v", class.GracePeriod)
		case len(class.Pools) == 0:
			t.Error("a class for no pool")
		case len(class.Claims) != len(class.Capabilities):
			t.Errorf("claims that differ by case alone: %v", class.Claims)
		}
		for _, binding := range class.RoleBindings {
			if again, err := agentpool.ParseRoleBinding(binding.String()); err != nil || again != binding || binding.Namespace == "azp-agents" {
				t.Errorf("a right %q", binding)
			}
		}
		for name := range class.Claims {
			if name == "" || strings.ContainsAny(name, " \t\n") {
				t.Errorf("a capability %q", name)
			}
		}
	})
}
