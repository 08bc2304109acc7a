package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot/plotter"
)

// peersConfig is what the subcommand peers can be told.
type peersConfig struct {
	folder  string
	bound   time.Duration
	window  time.Duration
	delay   time.Duration
	systems []string
}

// A phase is one comparison of all systems, which gets a share of the time.
type phase struct {
	title    string
	callers  []int
	replicas int
	delayed  bool
	share    float64
}

// phases make up the subcommand peers.
var phases = []phase{
	{title: "Three replicas", callers: []int{1, 16, 64, 256}, replicas: 3, share: 0.5},
	{title: "Three replicas, with a delay", callers: []int{1, 64}, replicas: 3, delayed: true, share: 0.2},
	{title: "Two replicas", callers: []int{16}, replicas: 2, share: 0.1},
	{title: "Three replicas again", callers: []int{16}, replicas: 3, share: 0.1},
	{title: "Five replicas", callers: []int{16}, replicas: 5, share: 0.1},
}

// maxRounds of a phase, whose bound ends it earlier.
const maxRounds = 1000

// peersMain is the subcommand peers: it measures all phases, and writes their section of the
// results and its plots.
func peersMain(args []string, errOut io.Writer) error {
	cfg := peersConfig{}
	systems := strings.Join(comparedNames(), ",")
	err := parse("peers", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.folder, "folder", ".", "the `folder` of "+resultsFile+" and "+plotsFolder)
		f.DurationVar(&cfg.bound, "bound", 14*time.Minute, "how long the windows may take together")
		f.DurationVar(&cfg.window, "window", 400*time.Millisecond, "how long a window is")
		f.DurationVar(&cfg.delay, "delay", time.Millisecond, "in the phase with a delay: "+delayUsage)
		f.StringVar(&systems, "systems", systems, "which systems")
	}, func() error {
		var err error
		cfg.systems, err = systemNames(systems)
		return errors.Join(err,
			complain(cfg.bound <= 0 || cfg.window <= 0 || cfg.delay <= 0,
				"-bound, -window and -delay must be positive"))
	})
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(2*cfg.bound + time.Duration(len(phases))*2*time.Minute)
	defer cancel()
	seen := observe(ctx)
	var reports []*report
	for _, p := range phases {
		fmt.Fprintf(errOut, "%s\n", p.title)
		r, err := measure(ctx, p.config(cfg), errOut)
		if err != nil {
			return err
		}
		reports = append(reports, r)
	}
	seen.end(ctx)
	return writePeers(cfg, seen, reports)
}

func (p phase) config(cfg peersConfig) config {
	c := config{
		Systems: cfg.systems, Callers: p.callers, Rounds: maxRounds, Bound: time.Duration(p.share * float64(cfg.bound)),
		Window: cfg.window, WarmUp: cfg.window / 5, Replicas: p.replicas, Request: 100, Deadline: 10 * time.Second,
	}
	if p.delayed {
		c.Delay = cfg.delay
	}
	return c
}

func writePeers(cfg peersConfig, seen *conditions, reports []*report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "## Beside other systems\n\n%v\n\n", seen)
	fmt.Fprintf(&b, "Windows of %v in rounds: one of each system, between windows of plain gRPC. Each figure is the "+
		"median of its windows; "+
		"× is the median ratio to plain gRPC beside it, in brackets the least and the most, and × hashicorp/raft "+
		"the median of the ratios between two systems' ratios in one round. "+
		"µs of CPU are those of all processes, of the kernel, too.\n\n", cfg.window)
	for i, r := range reports {
		fmt.Fprintf(&b, "### %s\n\n%d replicas, requests of %d bytes; %s%d rounds, %d windows thrown away.\n\n",
			phases[i].title, r.Config.Replicas, r.Config.Request,
			r.Config.delayText(), r.rounds(), r.Disturbed)
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(n, "\n", " "))
		}
		if len(r.Notes) > 0 {
			b.WriteString("\n")
		}
		if i == 0 {
			image(&b, "latency against load", "latency.svg")
			image(&b, "CPU per call against load", "cpu.svg")
		}
		if r.Config.Delay > 0 {
			r.delayLine(&b, reports[0])
		}
		for _, callers := range r.Config.Callers {
			r.peersTable(&b, callers)
		}
	}
	return errors.Join(writeSection(cfg.folder, "peers", b.String()), reports[0].plots(cfg.folder))
}

// delayLine checks that plain gRPC's calls take two delays longer.
func (r *report) delayLine(b *strings.Builder, undelayed *report) {
	m := findMetric("p50")
	for _, callers := range r.Config.Callers {
		fmt.Fprintf(b, "Plain gRPC's p50 at %s is %s µs, and %s µs without the delay: %.0f µs more, where two "+
			"delays are %.0f µs.\n\n", countOf(callers),
			number(r.plain(m, callers)), number(undelayed.plain(m, callers)), r.plain(m, callers)-undelayed.plain(m,
				callers), microseconds(2*r.Config.Delay))
	}
}

// peersMetrics are in the tables, those with compared also beside hashicorp/raft.
var peersMetrics = []struct {
	name     string
	compared bool
}{
	{"cpu", true}, {"cpu_client", false}, {"cpu_primary", false}, {"cpu_backups", false}, {"p50", true}, {"p99", true},
	{callRate.name, true},
	{"allocs_client", false}, {"allocs_primary", false}, {"bytes_primary", false}, {"bytes_backups", false},
	{"bytes_servers", false},
}

func (r *report) peersTable(b *strings.Builder, callers int) {
	const baseline = "hashicorp"
	rows := [][]string{append([]string{countOf(callers), "plain"}, r.Config.Systems...)}
	for _, pm := range peersMetrics {
		m := findMetric(pm.name)
		row := []string{strings.Replace(m.text, "  ", "– ", 1), number(r.plain(m, callers))}
		ratios := []string{"× hashicorp/raft", ""}
		for _, s := range r.Config.Systems {
			f := figureOf(m, r.of(s, callers))
			cell := number(f.Value)
			if f.Ratio > 0 {
				cell += fmt.Sprintf(" × %.2f (%.2f-%.2f)", f.Ratio, f.Least, f.Most)
			}
			row = append(row, cell)
			ratios = append(ratios, number(beside(m, r.of(s, callers), r.of(baseline, callers))))
		}
		rows = append(rows, row)
		if pm.compared && slices.Contains(r.Config.Systems, baseline) {
			rows = append(rows, ratios)
		}
	}
	markdown(b, rows)
}

// countOf is part of a sentence, or a heading.
func countOf(callers int) string {
	if callers == 1 {
		return "1 caller"
	}
	return fmt.Sprintf("%d callers", callers)
}

// plots are of latency and CPU against load.
func (r *report) plots(folder string) error {
	latency := chart{title: "latency against load", x: "calls/s", y: "p50, µs", logY: true}
	cpu := chart{title: "CPU per call against load", x: "callers", y: "CPU of all processes, µs/call", logX: true,
		logY: true}
	for _, name := range append([]string{systems[0].name}, r.Config.Systems...) {
		latencies, cpus := line{name: name}, line{name: name}
		for _, callers := range r.Config.Callers {
			of := func(m metric) float64 {
				if name == systems[0].name {
					return r.plain(m, callers)
				}
				return figureOf(m, r.of(name, callers)).Value
			}
			latencies.points = append(latencies.points, plotter.XY{X: of(callRate), Y: of(findMetric("p50"))})
			cpus.points = append(cpus.points, plotter.XY{X: float64(callers), Y: of(findMetric("cpu"))})
		}
		latency.lines, cpu.lines = append(latency.lines, latencies), append(cpu.lines, cpus)
	}
	return errors.Join(latency.write(folder, "latency.svg"), cpu.write(folder, "cpu.svg"))
}

// systemNames are those of a list on the command line.
func systemNames(list string) (names []string, err error) {
	names = strings.Split(list, ",")
	for _, name := range names {
		err = errors.Join(err,
			complain(!slices.Contains(comparedNames(), name), "there is no system %q: there are %s", name,
				strings.Join(comparedNames(), ", ")))
	}
	return names, err
}
