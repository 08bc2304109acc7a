package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// scaleConfig is what the subcommand scale can be told.
type scaleConfig struct {
	folder  string
	bound   time.Duration
	window  time.Duration
	systems []string
}

// A series changes one thing, and leaves all else alone.
type series struct {
	title, of, text string
	values          []int
	apart           bool // clients don't only talk to one primary: what it and they send isn't known
	set             func(*config, int)
}

const (
	scaleCallers = 16
	scaleThink   = 10 * time.Millisecond
)

// scales make up the subcommand scale.
var scales = []series{
	{
		title: "Sessions", of: "sessions", values: []int{1, 10, 100, 1000},
		text: fmt.Sprintf(
			"Connections of one client process, which the %d callers take in turn, each waiting for %v after a "+
				"call: so few calls that what idle sessions cost would show.", scaleCallers, scaleThink,
		),
		set: func(c *config, n int) {
			c.Sessions, c.Think = n, scaleThink
		},
	},
	{
		title: "Groups", of: "groups", values: []int{1, 2, 4, 8}, apart: true,
		text: "In each server process, each with a state, a gRPC server and a port of its own. The callers take the " +
			"groups in turn. A group's primary may be any of the processes.",
		set: func(c *config, n int) { c.Groups = n },
	},
	{
		title: "State", of: "keys", values: []int{0, 10_000, 100_000, 1_000_000},
		text: "Keys in the state before the first call; the callers use 1024 others.",
		set:  func(c *config, n int) { c.Filled = n },
	},
	{
		title: "Messages", of: "bytes", values: []int{16, 128, 1 << 10, 16 << 10, 128 << 10, 1 << 20},
		text: "Bytes of a request's message; replies are short.",
		set:  func(c *config, n int) { c.Request = n },
	},
}

// scaleMain is the subcommand scale: it measures all series, and writes their section of the
// results.
func scaleMain(args []string, errOut io.Writer) error {
	cfg := scaleConfig{}
	systems := "reflected,stable,hashicorp"
	err := parse("scale", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.folder, "folder", ".", "the `folder` of "+resultsFile)
		f.DurationVar(&cfg.bound, "bound", 15*time.Second, "how long the windows of one row may take together")
		f.DurationVar(&cfg.window, "window", 400*time.Millisecond, "how long a window is")
		f.StringVar(&systems, "systems", systems, "which systems")
	}, func() error {
		var err error
		cfg.systems, err = systemNames(systems)
		return errors.Join(err, complain(cfg.bound <= 0 || cfg.window <= 0, "-bound and -window must be positive"))
	})
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(time.Hour)
	defer cancel()
	seen := observe(ctx)
	var tables strings.Builder
	for _, s := range scales {
		var reports []*report
		for _, n := range s.values {
			fmt.Fprintf(errOut, "%d %s\n", n, s.of)
			r, err := measure(ctx, cfg.config(s, n), errOut)
			if err != nil {
				return err
			}
			reports = append(reports, r)
		}
		s.table(&tables, reports)
	}
	seen.end(ctx)
	return writeSection(cfg.folder, "scale", fmt.Sprintf("## Sessions, groups, and sizes\n\n%v\n\n"+
		"%d callers and 3 replicas. × is the ratio of CPU per call, of all processes, to plain gRPC's beside it at "+
		"the same setting: the median, in brackets the least and the most. "+
		"\"Headers\" are the bytes a call that client and primary send each other beyond plain gRPC's.\n\n%s", seen,
		scaleCallers, tables.String()))
}

func (cfg scaleConfig) config(s series, n int) config {
	c := config{
		Systems: cfg.systems, Callers: []int{scaleCallers}, Rounds: maxRounds, Bound: cfg.bound, Window: cfg.window,
		WarmUp:   cfg.window / 4,
		Replicas: 3, Request: 100, Deadline: 10 * time.Second,
	}
	s.set(&c, n)
	return c
}

// table has a row for each value of what is changed.
func (s series) table(b *strings.Builder, reports []*report) {
	fmt.Fprintf(b, "### %s\n\n%s\n\n", s.title, s.text)
	heading := []string{s.of, "plain: CPU, µs/call"}
	for _, system := range reports[0].Config.Systems {
		heading = append(heading, system+": CPU, µs/call", "headers", "to backups", "between servers")
	}
	rows := [][]string{heading}
	for i, r := range reports {
		row := []string{fmt.Sprint(s.values[i]), number(r.plain(findMetric("cpu"), scaleCallers))}
		for _, system := range r.Config.Systems {
			rounds := r.of(system, scaleCallers)
			cpu, primary := figureOf(findMetric("cpu"), rounds), figureOf(findMetric("bytes_primary"), rounds)
			headers, backups := fmt.Sprintf("%.0f", primary.Value-primary.Plain),
				number(figureOf(findMetric("bytes_backups"), rounds).Value)
			if s.apart {
				headers, backups = "", ""
			}
			row = append(row, fmt.Sprintf("%s × %.2f (%.2f-%.2f)", number(cpu.Value), cpu.Ratio, cpu.Least, cpu.Most),
				headers, backups, number(figureOf(findMetric("bytes_servers"), rounds).Value))
		}
		rows = append(rows, row)
	}
	markdown(b, rows)
	for i, r := range reports {
		for _, n := range r.Notes {
			fmt.Fprintf(b, "- %d %s: %s\n", s.values[i], s.of, strings.ReplaceAll(n, "\n", " "))
		}
	}
	b.WriteString("\n")
}
