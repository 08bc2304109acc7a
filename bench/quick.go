package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"time"
)

// quickMain is the subcommand quick: what a change to the library has done to its costs, within two
// minutes, in lines that a script can compare.
//
//	<system>_<figure>_x_plain_<callers>      ratio to plain gRPC
//	<system>_<figure>_x_hashicorp_<callers>  ratio to hashicorp/raft
//	<system>_allocs_<process>_over_plain_64  allocations a call more than plain gRPC's
func quickMain(args []string, out, errOut io.Writer) error {
	cfg := quickConfig()
	err := parse("quick", args, errOut, func(f *flag.FlagSet) {
		f.DurationVar(&cfg.Bound, "bound", cfg.Bound, "how long the windows may take together")
		f.IntVar(&cfg.Rounds, "rounds", cfg.Rounds, "how many windows of each system at each number of callers")
		f.DurationVar(&cfg.Window, "window", cfg.Window, "how long a window is")
	}, func() error {
		return errors.Join(complain(cfg.Rounds < 1, "-rounds must be at least 1"),
			complain(cfg.Bound <= 0 || cfg.Window <= 0, "-bound and -window must be positive"))
	})
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(cfg.limit())
	defer cancel()
	r, err := measure(ctx, cfg, errOut)
	if err != nil {
		return err
	}
	r.writeLines(out)
	return nil
}

func quickConfig() config {
	return config{
		Systems: append(levelNames(), "hashicorp"), Callers: []int{1, 16, 64}, Rounds: 7, Bound: time.Minute,
		Window: 250 * time.Millisecond,
		WarmUp: 50 * time.Millisecond, Replicas: 3, Request: 100, Deadline: 10 * time.Second,
	}
}

// asLines are the metrics that quick gives, and at how many callers.
var asLines = []struct {
	name, metric string
	callers      []int
}{
	{"cpu", "cpu", []int{1, 16, 64}},
	{"p50", "p50", []int{1}},
	{"calls", callRate.name, []int{64}},
}

func (r *report) writeLines(out io.Writer) {
	for _, l := range asLines {
		m := findMetric(l.metric)
		for _, callers := range l.callers {
			fmt.Fprintf(out, "plain_%s_%d=%s\n", l.name, callers, number(r.plain(m, callers)))
			for _, s := range r.Config.Systems {
				rounds := r.of(s, callers)
				fmt.Fprintf(out, "%s_%s_x_plain_%d=%.2f\n", s, l.name, callers, figureOf(m, rounds).Ratio)
				if s != "hashicorp" {
					fmt.Fprintf(out, "%s_%s_x_hashicorp_%d=%.2f\n", s, l.name, callers,
						beside(m, rounds, r.of("hashicorp", callers)))
				}
			}
		}
	}
	const callers = 64
	for _, process := range []string{"client", "primary"} {
		m := findMetric("allocs_" + process)
		for _, s := range r.Config.Systems {
			f := figureOf(m, r.of(s, callers))
			fmt.Fprintf(out, "%s_allocs_%s_over_plain_%d=%.0f\n", s, process, callers, f.Value-f.Plain)
		}
	}
}
