package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/plot/plotter"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

// failoverConfig is what the subcommand failover can be told.
type failoverConfig struct {
	folder          string
	runs, peerRuns  int
	levels, systems []string
}

const (
	fewSessions  = 4
	manySessions = 1000
	// How long a peer's client waits for a server before it asks another one: as long as this
	// library's replicas wait for a heartbeat, and with tight timings as long as the peers do.
	attempt      = 500 * time.Millisecond
	tightAttempt = tightElection

	maxFailedTrials = 3 // of one case
)

var (
	killed   = kind{name: "kill -9", sessions: fewSessions}
	stopped  = kind{name: "SIGSTOP", stop: true, sessions: fewSessions}
	many     = kind{name: fmt.Sprintf("kill -9, %d sessions", manySessions), sessions: manySessions}
	vanished = kind{name: "kill -9, with a client", vanish: true, sessions: fewSessions}
)

// goals of this library, for how long the slowest call is held up.
var goals = map[string]string{
	killed.name:   "p50 30 ms, p99 100 ms",
	many.name:     "p50 30 ms, p99 100 ms",
	stopped.name:  "700 ms: a heartbeat's 500 ms and 200 ms",
	vanished.name: "1.2 s: 1.1 s of authority and its margin, and 100 ms",
}

// A failoverCase is a kind of failover of one system, again and again.
type failoverCase struct {
	kind
	system string
	tight  bool
	runs   int

	trials []trial
	notes  []string
}

func (c *failoverCase) label() string {
	if c.tight {
		return c.system + ", tight"
	}
	return c.system
}

// cases are in the order of the table.
func (cfg failoverConfig) cases() (all []*failoverCase) {
	for _, k := range []kind{killed, stopped, many, vanished} {
		for _, level := range cfg.levels {
			all = append(all, &failoverCase{kind: k, system: level, runs: cfg.runs})
		}
		if k != killed && k != stopped {
			continue
		}
		for _, s := range cfg.systems {
			for _, tight := range []bool{false, true} {
				all = append(all, &failoverCase{kind: k, system: s, tight: tight, runs: cfg.peerRuns})
			}
		}
	}
	return all
}

// failoverMain is the subcommand failover: it measures all cases, and writes their section of the
// results and its plots.
func failoverMain(args []string, errOut io.Writer) error {
	cfg := failoverConfig{}
	levels, peers := "reflected,stable", "hashicorp,etcdraft,dragonboat,etcd"
	err := parse("failover", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.folder, "folder", ".", "the `folder` of "+resultsFile+" and "+plotsFolder)
		f.IntVar(&cfg.runs, "runs", 30, "how often each kind happens to this library")
		f.IntVar(&cfg.peerRuns, "peer-runs", 30, "how often to each peer, at each timing; 0: not at all")
		f.StringVar(&levels, "levels", levels, "which levels of this library")
		f.StringVar(&peers, "peers", peers, "which peers")
	}, func() error {
		var noLevels, noPeers error
		cfg.levels, noLevels = systemNames(levels)
		cfg.systems, noPeers = systemNames(peers)
		return errors.Join(noLevels, noPeers,
			complain(cfg.runs < 0 || cfg.peerRuns < 0, "-runs and -peer-runs can't be negative"))
	})
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(3 * time.Hour)
	defer cancel()
	seen := observe(ctx)
	cases := cfg.cases()
	for _, c := range cases {
		if err := c.run(ctx, errOut); err != nil {
			return err
		}
	}
	seen.end(ctx)
	return writeFailovers(cfg.folder, seen, cases)
}

func (c *failoverCase) config() config {
	cfg := config{Replicas: 3, Request: 100, Deadline: gapBound, Sessions: c.sessions, Think: gapThink,
		Attempt: attempt, Tight: c.tight}
	if c.tight {
		cfg.Attempt = tightAttempt
	}
	return cfg
}

// run makes the trials. One that fails is told of, and costs the fleet.
func (c *failoverCase) run(ctx context.Context, progress io.Writer) (err error) {
	etcd, err := etcdnode.Start(ctx, etcdnode.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.Stop()) }()
	s, _ := findSystem(c.system)
	var f *fleet
	end := func() {
		if f != nil {
			f.stop()
			f = nil
		}
	}
	defer func() { end() }()
	for run := range c.runs {
		var t trial
		var err error
		if f == nil {
			f, err = startFleet(ctx, s, c.config(), etcd.Addr)
		}
		if err == nil {
			t, err = f.trial(ctx, c.kind)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			c.notes = append(c.notes, fmt.Sprintf("%s, %s, run %d: %.400v", c.name, c.label(), run+1, err))
			fmt.Fprintln(progress, c.notes[len(c.notes)-1])
		default:
			c.trials = append(c.trials, t)
			fmt.Fprintf(progress,
				"%s, %s, run %d: held up %v; first reply after %v, of these detection %v, election %v, takeover %v, "+
					"reply %v; failed %d, twice %d\n", c.name, c.label(), run+1,
				t.Gap.Held, t.Gap.First, t.Detection, t.Election, t.Takeover, t.Reply, t.Gap.Failed, t.Twice)
		}
		if err != nil || s.joins && !c.stop {
			end()
		}
		if len(c.notes) >= maxFailedTrials {
			break
		}
	}
	return nil
}

func writeFailovers(folder string, seen *conditions, cases []*failoverCase) error {
	var b strings.Builder
	fmt.Fprintf(&b, "## Failover\n\n%v\n\n", seen)
	fmt.Fprintf(&b, "%d callers, each with a pause of %v after a call, and 3 servers, at default timings or (tight) "+
		"with elections after about %v. \"Held up\" is the slowest call of one failover, "+
		"\"first reply\" the time from the event until somebody had a reply again. After a kill or a stop each "+
		"system's servers are compared. "+
		"The client of a peer knows all its servers, and asks another one when the last one can't be reached, says "+
		"that it doesn't lead, or hasn't answered for %v (tight: %v); "+
		"\"twice\" counts calls that were executed beyond those that the callers have replies of.\n\n", gapCallers,
		gapThink, tightElection, attempt, tightAttempt)
	for _, k := range []kind{killed, stopped, many, vanished} {
		if of := casesOf(cases, k); len(of) > 0 {
			fmt.Fprintf(&b, "### %s\n\nGoal of this library, for how long a call is held up: %s.\n\n", k.name,
				goals[k.name])
			failoverTable(&b, of)
			whereTable(&b, of)
		}
	}
	image(&b, "how long calls are held up by kill -9", "failover-kill.svg")
	image(&b, "how long calls are held up by SIGSTOP", "failover-stop.svg")
	image(&b, "how long calls are held up, of this library", "failover-ours.svg")
	for _, c := range cases {
		for _, n := range c.notes {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(n, "\n", " "))
		}
	}
	var ours []*failoverCase
	for _, k := range []kind{killed, many, vanished, stopped} {
		for _, c := range casesOf(cases, k) {
			if s, _ := findSystem(c.system); !s.joins {
				ours = append(ours, c)
			}
		}
	}
	return errors.Join(
		writeSection(folder, "failover", b.String()),
		distribution(killed.name, casesOf(cases, killed), (*failoverCase).label).write(folder, "failover-kill.svg"),
		distribution(stopped.name, casesOf(cases, stopped), (*failoverCase).label).write(folder, "failover-stop.svg"),
		distribution("this library", ours, func(c *failoverCase) string {
			return c.label() + ": " + c.name
		}).write(folder, "failover-ours.svg"))
}

func casesOf(cases []*failoverCase, k kind) (of []*failoverCase) {
	for _, c := range cases {
		if c.kind == k && len(c.trials)+len(c.notes) > 0 {
			of = append(of, c)
		}
	}
	return of
}

// sorted are one duration of each trial.
func (c *failoverCase) sorted(of func(trial) time.Duration) (all []time.Duration) {
	for _, t := range c.trials {
		all = append(all, of(t))
	}
	slices.Sort(all)
	return all
}

func held(t trial) time.Duration { return t.Gap.Held }

func failoverTable(b *strings.Builder, cases []*failoverCase) {
	rows := [][]string{{"ms", "runs", "held up: p50", "p90", "p99", "most", "first reply: p50", "most", "failed calls",
		"twice"}}
	for _, c := range cases {
		slowest, first := c.sorted(held), c.sorted(func(t trial) time.Duration { return t.Gap.First })
		failed, twice := 0, int64(0)
		for _, t := range c.trials {
			failed += t.Gap.Failed
			twice += t.Twice
		}
		again := fmt.Sprint(twice)
		if c.vanish {
			again = "" // the client that vanished had replies, too
		}
		rows = append(rows, []string{c.label(), fmt.Sprint(len(c.trials)), milliseconds(quantile(slowest, 0.5)),
			milliseconds(quantile(slowest, 0.9)), milliseconds(quantile(slowest, 0.99)),
			milliseconds(quantile(slowest, 1)), milliseconds(quantile(first, 0.5)), milliseconds(quantile(first,
				1)), fmt.Sprint(failed), again})
	}
	markdown(b, rows)
}

// whereTable says where the time goes, of the systems that know.
func whereTable(b *strings.Builder, cases []*failoverCase) {
	rows := [][]string{{"ms: p50 (most)", "detection", "election", "takeover", "until the first reply"}}
	for _, c := range cases {
		row := []string{c.label()}
		for _, part := range []func(trial) time.Duration{
			func(t trial) time.Duration { return t.Detection }, func(t trial) time.Duration { return t.Election },
			func(t trial) time.Duration { return t.Takeover }, func(t trial) time.Duration { return t.Reply },
		} {
			all := c.sorted(part)
			row = append(row, fmt.Sprintf("%s (%s)", milliseconds(quantile(all, 0.5)), milliseconds(quantile(all, 1))))
		}
		if slices.ContainsFunc(c.trials, func(t trial) bool { return t.Takeover > 0 }) {
			rows = append(rows, row)
		}
	}
	if len(rows) > 1 {
		markdown(b, rows)
	}
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond))
}

// distribution has a line for each case: which share of its failovers held no call up for longer.
func distribution(what string, cases []*failoverCase, name func(*failoverCase) string) chart {
	ch := chart{title: "how long the slowest call is held up: " + what, x: "ms", y: "share of failovers", logX: true,
		steps: true}
	for _, c := range cases {
		l := line{name: name(c)}
		all := c.sorted(held)
		for i, d := range all {
			ms := max(float64(d)/float64(time.Millisecond), 0.1) // the axis has no 0
			if i == 0 {
				l.points = append(l.points, plotter.XY{X: ms})
			}
			l.points = append(l.points, plotter.XY{X: ms, Y: float64(i+1) / float64(len(all))})
		}
		ch.lines = append(ch.lines, l)
	}
	return ch
}
