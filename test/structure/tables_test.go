package structure

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// replaceSection replaces what stands in document between the two marks of name, or says which mark is missing.
func replaceSection(document []byte, name, content string) ([]byte, error) {
	begin := fmt.Appendf(nil, "<!-- %s: begin, written by make docs -->\n", name)
	end := fmt.Appendf(nil, "<!-- %s: end -->\n", name)
	from := bytes.Index(document, begin)
	if from < 0 {
		return nil, fmt.Errorf("no line %q", bytes.TrimSpace(begin))
	}
	from += len(begin)
	length := bytes.Index(document[from:], end)
	if length < 0 {
		return nil, fmt.Errorf("no line %q after it", bytes.TrimSpace(end))
	}
	return slices.Concat(document[:from], []byte(content), document[from+length:]), nil
}

// table renders rows in Markdown.
func table(header []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) {
		for _, cell := range cells {
			b.WriteString("| " + cell + " ")
		}
		b.WriteString("|\n")
	}
	line(header)
	rule := make([]string, len(header))
	for i := range rule {
		rule[i] = "---"
	}
	line(rule)
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// cell keeps what would end a table's cell from doing so.
func cell(text string) string {
	return strings.ReplaceAll(text, "|", `\|`)
}

// configurationTable renders the variables of a configuration struct, in the order of its fields, from their tags:
// envconfig (the variable), desc, and default or needed. The tag is not envconfig's own "required", at which it stops with
// the first variable that is not set.
func configurationTable(config reflect.Type) (string, error) {
	var rows [][]string
	var problems []error
	for i := range config.NumField() {
		field := config.Field(i)
		variable, meaning := field.Tag.Get("envconfig"), field.Tag.Get("desc")
		if !field.IsExported() {
			continue
		}
		if variable == "" || meaning == "" {
			problems = append(problems, fmt.Errorf("%s.%s wants the tags envconfig and desc", config, field.Name))
			continue
		}
		value := ""
		if text, ok := field.Tag.Lookup("default"); ok {
			value = "`" + text + "`"
		} else if field.Tag.Get("needed") == "true" {
			value = "required"
		}
		rows = append(rows, []string{"`" + variable + "`", cell(value), cell(meaning)})
	}
	return table([]string{"Variable", "Default", "Meaning"}, rows), errors.Join(problems...)
}

// described is a Registerer that notes what is registered, and holds it to the rules of a real registry.
type described struct {
	prometheus.Registerer
	rows     [][]string
	problems []error
}

func newDescribed() *described {
	return &described{Registerer: prometheus.NewPedanticRegistry()}
}

// Register notes the metrics of one collector.
func (d *described) Register(collector prometheus.Collector) error {
	if err := d.Registerer.Register(collector); err != nil {
		d.problems = append(d.problems, err)
		return err
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		collector.Describe(descs)
	}()
	for desc := range descs {
		row, err := metricRow(collector, desc)
		if err != nil {
			d.problems = append(d.problems, err)
			continue
		}
		d.rows = append(d.rows, row)
	}
	return nil
}

// MustRegister notes the metrics of several collectors.
func (d *described) MustRegister(collectors ...prometheus.Collector) {
	for _, collector := range collectors {
		if err := d.Register(collector); err != nil {
			panic(err)
		}
	}
}

// A description tells its parts only by its printed form.
var (
	descForm  = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), unit: "[^"]*", constLabels: \{.*\}, variableLabels: \{(.*)\}\}$`)
	labelForm = regexp.MustCompile(`^c\((.*)\)$`)
)

// metricRow is the line of one metric: name, kind, labels, help.
func metricRow(collector prometheus.Collector, desc *prometheus.Desc) ([]string, error) {
	parts := descForm.FindStringSubmatch(desc.String())
	if parts == nil {
		return nil, fmt.Errorf("unknown form of a description: %s", desc)
	}
	name, err := strconv.Unquote(parts[1])
	if err != nil {
		return nil, fmt.Errorf("name in %s: %w", desc, err)
	}
	help, err := strconv.Unquote(parts[2])
	if err != nil {
		return nil, fmt.Errorf("help in %s: %w", desc, err)
	}
	var labels []string
	for label := range strings.SplitSeq(parts[3], ",") {
		if inner := labelForm.FindStringSubmatch(label); inner != nil {
			label = inner[1] // A label with a constraint on its values.
		}
		if label != "" {
			labels = append(labels, "`"+label+"`")
		}
	}
	kind, err := kindOf(collector, name)
	if err != nil {
		return nil, err
	}
	if total := strings.HasSuffix(name, "_total"); total != (kind == "counter") {
		return nil, fmt.Errorf("%s is a %s: the names of counters, and of nothing else, end in _total", name, kind)
	}
	if !strings.HasPrefix(name, "azp_scaler_") {
		return nil, fmt.Errorf("%s does not begin with azp_scaler_", name)
	}
	if !strings.HasSuffix(help, ".") {
		return nil, fmt.Errorf("the help of %s is no sentence: %q", name, help)
	}
	return []string{"`" + name + "`", kind, strings.Join(labels, ", "), cell(help)}, nil
}

// kindOf is the kind of a collector's metric of that name: what it shows at a scrape or, for a vector without a series
// yet, what its type says. A collector of our own with nothing to show counts state, which makes gauges.
func kindOf(collector prometheus.Collector, name string) (string, error) {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(collector); err != nil {
		return "", err
	}
	families, err := registry.Gather()
	if err != nil {
		return "", fmt.Errorf("gather %s: %w", name, err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return strings.ToLower(family.GetType().String()), nil
		}
	}
	switch collector.(type) {
	case *prometheus.CounterVec:
		return "counter", nil
	case *prometheus.HistogramVec:
		return "histogram", nil
	case *prometheus.SummaryVec:
		return "summary", nil
	default:
		return "gauge", nil
	}
}

// table renders what was registered, by name.
func (d *described) table() (string, error) {
	rows := slices.SortedFunc(slices.Values(d.rows), func(a, b []string) int {
		return strings.Compare(strings.Trim(a[0], "`"), strings.Trim(b[0], "`"))
	})
	return table([]string{"Metric", "Kind", "Labels", "Meaning"}, rows), errors.Join(d.problems...)
}

func TestReplaceSection(t *testing.T) {
	t.Parallel()
	document := "# A\n<!-- x: begin, written by make docs -->\nold\n<!-- x: end -->\nrest\n"
	tests := []struct{ name, document, want, problem string }{
		{name: "between the marks", document: document, want: strings.Replace(document, "old\n", "new\n", 1)},
		{name: "no begin", document: "# A\n", problem: `no line "<!-- x: begin, written by make docs -->"`},
		{name: "no end", document: "<!-- x: begin, written by make docs -->\n", problem: `no line "<!-- x: end -->" after it`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := replaceSection([]byte(tt.document), "x", "new\n")
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("document (-want +got):\n%s", diff)
			}
			if message := fmt.Sprint(err); err != nil && message != tt.problem || err == nil && tt.problem != "" {
				t.Errorf("error %q, want %q", message, tt.problem)
			}
		})
	}
}

func TestConfigurationTable(t *testing.T) {
	t.Parallel()
	type config struct {
		URL   string `envconfig:"AZP_URL" needed:"true" desc:"Where"`
		Limit int    `envconfig:"AZP_LIMIT" default:"3" desc:"This | that"`
		Extra string `envconfig:"AZP_EXTRA" desc:"Perhaps"`
		inner int
	}
	_ = config{}.inner
	got, err := configurationTable(reflect.TypeFor[config]())
	if err != nil {
		t.Fatal(err)
	}
	want := "| Variable | Default | Meaning |\n| --- | --- | --- |\n" +
		"| `AZP_URL` | required | Where |\n| `AZP_LIMIT` | `3` | This \\| that |\n| `AZP_EXTRA` |  | Perhaps |\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	type bare struct {
		Name string `envconfig:"AZP_NAME"`
	}
	if _, err := configurationTable(reflect.TypeFor[bare]()); err == nil || !strings.Contains(err.Error(), "bare.Name wants the tags") {
		t.Errorf("a field without a description: error %v", err)
	}
}

func TestDescribed(t *testing.T) {
	t.Parallel()
	opts := func(name, help string) prometheus.Opts { return prometheus.Opts{Name: name, Help: help} }
	d := newDescribed()
	d.MustRegister(
		prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "azp_scaler_b_seconds", Help: `Say "b".`}, []string{"pool", "class"}),
		prometheus.NewCounterVec(prometheus.CounterOpts(opts("azp_scaler_a_total", "A.")), []string{"pool"}),
		prometheus.NewGauge(prometheus.GaugeOpts(opts("azp_scaler_c", "C."))),
		prometheus.NewCounter(prometheus.CounterOpts(opts("azp_scaler_d_total", "D."))),
		prometheus.NewGauge(prometheus.GaugeOpts(opts("azp_scaler_c_depth", "Sorted after its prefix."))),
	)
	got, err := d.table()
	if err != nil {
		t.Fatal(err)
	}
	want := "| Metric | Kind | Labels | Meaning |\n| --- | --- | --- | --- |\n" +
		"| `azp_scaler_a_total` | counter | `pool` | A. |\n" +
		"| `azp_scaler_b_seconds` | histogram | `pool`, `class` | Say \"b\". |\n" +
		"| `azp_scaler_c` | gauge |  | C. |\n" +
		"| `azp_scaler_c_depth` | gauge |  | Sorted after its prefix. |\n" +
		"| `azp_scaler_d_total` | counter |  | D. |\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	for _, bad := range []prometheus.Collector{
		prometheus.NewGauge(prometheus.GaugeOpts(opts("azp_scaler_e_total", "E."))),
		prometheus.NewCounter(prometheus.CounterOpts(opts("azp_scaler_f", "F."))),
		prometheus.NewGauge(prometheus.GaugeOpts(opts("other_g", "G."))),
		prometheus.NewGauge(prometheus.GaugeOpts(opts("azp_scaler_h", "no sentence"))),
	} {
		d := newDescribed()
		d.MustRegister(bad)
		if _, err := d.table(); err == nil {
			t.Errorf("%T passed, want an error", bad)
		}
	}
}
