package chart_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"

	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// metric is one of the scaler's.
type metric struct {
	kind   string
	labels []string
}

var metricRow = regexp.MustCompile("(?m)^\\| `(azp_scaler_[a-z_]+)` \\| (\\w+) \\| ([^|]*) \\|")

// metrics reads the table in the README of the repository, which a test holds to what the code registers.
func metrics(t *testing.T) map[string]metric {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir.Root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]metric{}
	for _, row := range metricRow.FindAllStringSubmatch(string(text), -1) {
		m := metric{kind: row[2], labels: []string{"namespace", "pod"}} // Prometheus adds these.
		for label := range strings.SplitSeq(row[3], ",") {
			m.labels = append(m.labels, strings.Trim(label, " `"))
		}
		known[row[1]] = m
		if m.kind == "histogram" {
			known[row[1]+"_count"] = metric{"counter", m.labels}
			known[row[1]+"_bucket"] = metric{"counter", append(slices.Clone(m.labels), "le")}
		}
	}
	if len(known) < 20 {
		t.Fatalf("the README's table of metrics was not read: %v", known)
	}
	return known
}

// checkQuery parses a query and holds each name and label in it to the scaler's metrics.
func checkQuery(t *testing.T, known map[string]metric, where, query string) {
	t.Helper()
	expression, err := metricsql.Parse(strings.NewReplacer("$__rate_interval", "5m", "$namespace", ".*", "$pool", ".*").Replace(query))
	if err != nil {
		t.Errorf("%s: %s: %v", where, query, err)
		return
	}
	var labels []string // Of all metrics in the query.
	metricsql.VisitAll(expression, func(part metricsql.Expr) {
		selector, is := part.(*metricsql.MetricExpr)
		if !is {
			return
		}
		name := ""
		for _, filters := range selector.LabelFilterss {
			for _, filter := range filters {
				if filter.Label == "__name__" {
					name = filter.Value
				}
			}
			m, there := known[name]
			if !there {
				t.Errorf("%s: %s: the scaler has no metric %q", where, query, name)
				return
			}
			labels = append(labels, m.labels...)
			for _, filter := range filters {
				if filter.Label != "__name__" && !slices.Contains(m.labels, filter.Label) {
					t.Errorf("%s: %s: %s has no label %s", where, query, name, filter.Label)
				}
				if filter.Label == "outcome" {
					for outcome := range strings.SplitSeq(filter.Value, "|") {
						if !slices.Contains(azuredevops.Outcomes(), outcome) {
							t.Errorf("%s: %s: there is no outcome %s", where, query, outcome)
						}
					}
				}
			}
		}
	})
	if len(labels) == 0 {
		t.Errorf("%s: %s asks for no metric", where, query)
	}
	metricsql.VisitAll(expression, func(part metricsql.Expr) {
		switch e := part.(type) {
		case *metricsql.AggrFuncExpr:
			for _, label := range e.Modifier.Args {
				if !slices.Contains(labels, label) {
					t.Errorf("%s: %s: nothing in it has the label %s", where, query, label)
				}
			}
		case *metricsql.FuncExpr:
			checkRate(t, known, where, query, e)
		}
	})
}

// checkRate: only what counts has a rate.
func checkRate(t *testing.T, known map[string]metric, where, query string, f *metricsql.FuncExpr) {
	t.Helper()
	if f.Name != "rate" && f.Name != "increase" {
		return
	}
	metricsql.VisitAll(f, func(part metricsql.Expr) {
		if selector, is := part.(*metricsql.MetricExpr); is {
			name := selector.LabelFilterss[0][0].Value
			if kind := known[name].kind; kind != "counter" {
				t.Errorf("%s: %s: %s is a %s, which has no %s", where, query, name, kind, f.Name)
			}
		}
	})
}

// TestAlerts: each asks for metrics that there are, and says what to do.
func TestAlerts(t *testing.T) {
	t.Parallel()
	known := metrics(t)
	objects := render(t, examples(t)["everything"])
	rule := find[struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
		Metadata   any    `json:"metadata"`
		Spec       struct {
			Groups []struct {
				Name  string `json:"name"`
				Rules []struct {
					Alert       string            `json:"alert"`
					Expr        string            `json:"expr"`
					For         string            `json:"for"`
					Labels      map[string]string `json:"labels"`
					Annotations map[string]string `json:"annotations"`
				} `json:"rules"`
			} `json:"groups"`
		} `json:"spec"`
	}](t, objects, "PrometheusRule", "azp", "azp-scaler")
	var alerts []string
	templated := regexp.MustCompile(`\$labels\.(\w+)`)
	for _, alert := range rule.Spec.Groups[0].Rules {
		alerts = append(alerts, alert.Alert)
		checkQuery(t, known, alert.Alert, alert.Expr)
		if alert.Annotations["summary"] == "" || alert.Annotations["description"] == "" || alert.Labels["severity"] == "" || alert.Labels["team"] != "build" || alert.For == "" {
			t.Errorf("%s lacks something: %+v", alert.Alert, alert)
		}
		for _, label := range templated.FindAllStringSubmatch(alert.Annotations["summary"], -1) {
			if !strings.Contains(alert.Expr, label[1]) {
				t.Errorf("%s names the label %s, which its result does not have", alert.Alert, label[1])
			}
		}
	}
	for _, needed := range []string{"AzpQueueWaits", "AzpCredentialRefused", "AzpThrottled", "AzpScalerAbsent", "AzpNoLeader"} {
		if !slices.Contains(alerts, needed) {
			t.Errorf("no alert %s", needed)
		}
	}
}

// TestDashboard: each panel asks for metrics that there are.
func TestDashboard(t *testing.T) {
	t.Parallel()
	known := metrics(t)
	objects := render(t, examples(t)["everything"])
	text := find[struct {
		Kind       string            `json:"kind"`
		APIVersion string            `json:"apiVersion"`
		Metadata   any               `json:"metadata"`
		Data       map[string]string `json:"data"`
	}](t, objects, "ConfigMap", "azp", "azp-scaler-dashboard").Data["azp-scaler.json"]
	var dashboard struct {
		Panels []struct {
			ID      int    `json:"id"`
			Title   string `json:"title"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] || len(panel.Targets) == 0 || panel.Title == "" {
			t.Errorf("panel %d %q: twice, or without a query or a title", panel.ID, panel.Title)
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			checkQuery(t, known, panel.Title, target.Expr)
		}
	}
}

// TestQueriesThatAreWrongAreSeen, so that the tests above can fail.
func TestQueriesThatAreWrongAreSeen(t *testing.T) {
	t.Parallel()
	known := metrics(t)
	for name, query := range map[string]string{
		"no such metric": "sum(azp_scaler_nothing)", "no such label": `azp_scaler_leading{class="a"}`, "no such group": "sum by (class) (azp_scaler_leading)",
		"a gauge's rate": "rate(azp_scaler_leading[5m])", "no query": "sum by (", "no such outcome": `azp_scaler_azuredevops_request_duration_seconds_count{outcome="refused"}`,
	} {
		probe := &testing.T{}
		checkQuery(probe, known, name, query)
		if !probe.Failed() {
			t.Errorf("%s: %s was taken", name, query)
		}
	}
}
