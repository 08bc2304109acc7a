package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gonum.org/v1/plot/plotter"
)

// A section is replaced in its place, and the others stay as they are.
func TestSections(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, s := range []struct{ name, body string }{{"failover", "## F\n"}, {"peers", "## P\n\nold\n"},
		{"peers", "## P\n\nnew\n"}} {
		if err := writeSection(folder, s.name, s.body); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(folder, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	want := resultsHeader +
		"\n<!-- begin peers -->\n## P\n\nnew\n<!-- end peers -->\n\n<!-- begin failover -->\n## F\n<!-- end " +
		"failover -->\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestChart(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	c := chart{title: "a title", x: "x", y: "y", logX: true, logY: true,
		lines: []line{{"one", plotter.XYs{{X: 1, Y: 10}, {X: 10, Y: 20}}}, {"none", nil}}}
	for name, steps := range map[string]bool{"points.svg": false, "steps.svg": true} {
		c.steps = steps
		if err := c.write(folder, name); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(folder, plotsFolder, name))
		if err != nil || !strings.Contains(string(b), "a title") || !strings.Contains(string(b), "one") {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

// A chart of one value, or of none, is drawn all the same.
func TestSparseCharts(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string][]line{"none.svg": nil, "empty.svg": {{"empty", nil}},
		"one.svg": {{"one", plotter.XYs{{X: 1, Y: 1}}}}, "zero.svg": {{"zero", plotter.XYs{{X: 0, Y: 0}}}}} {
		if err := (chart{logX: true, logY: true, lines: lines}).write(t.TempDir(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLogTicks(t *testing.T) {
	t.Parallel()
	var labels []string
	for _, tick := range logTicks(3, 260) {
		labels = append(labels, tick.Label)
	}
	if got := strings.Join(labels, " "); got != "5 10 20 50 100 200" {
		t.Error(got)
	}
}

// The whole section, from windows that were made up.
func TestWritePeers(t *testing.T) {
	t.Parallel()
	cfg := peersConfig{folder: t.TempDir(), window: time.Second, delay: time.Millisecond,
		systems: []string{"reflected", "hashicorp"}}
	var reports []*report
	for _, p := range phases {
		r := &report{Config: p.config(cfg), Notes: []string{"a\nnote"}}
		for _, callers := range p.callers {
			for i, s := range cfg.systems {
				at := func(system string, p50 time.Duration) window {
					return window{System: system, Callers: callers,
						loadReport: loadReport{Calls: 1, Elapsed: time.Second,
							P50: p50 + 2*r.Config.Delay}, Client: usage{User: p50}}
				}
				plain := at("plain", 200*time.Microsecond)
				r.Rounds = append(r.Rounds, round{0, plain, at(s, time.Duration(i+1)*300*time.Microsecond), plain})
			}
		}
		reports = append(reports, r)
	}
	if err := writePeers(cfg, &conditions{}, reports); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(cfg.folder, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"### Five replicas\n\n5 replicas", "- a note\n", "| 256 callers | plain | reflected | hashicorp |",
		"| × hashicorp/raft |  | 0.50 | 1.00 |",
		"Plain gRPC's p50 at 1 caller is 2200 µs, and 200 µs without the delay: 2000 µs more, where two delays are " +
			"2000 µs.", "](plots/cpu.svg)",
	} {
		if !strings.Contains(string(got), part) {
			t.Errorf("%q is missing in\n%s", part, got)
		}
	}
}
