package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

// revisionsConfig is what can be set of the subcommand revisions.
type revisionsConfig struct {
	config
	base        string  // a commit
	limit       float64 // of CPU
	limitAllocs float64
}

// renewEvery is after how many rounds all processes are started anew. Processes of one program
// differ from each other for as long as they live (where their memory lies, say), which more
// windows of the same ones would never average out.
const renewEvery = 4

// The places of the two revisions.
const (
	atBase = iota
	atTree
)

// revisionsMain is the subcommand revisions: what a call costs as the working tree is, beside
// another commit, in neighbouring windows of one run. An error is returned when it costs more.
//
// The other commit's servers and clients are its own bench, and understand what this one tells
// them: of the subcommands server and client, and of what control.go and package process say,
// nothing may change its meaning. Flags that it may lack are given only where they aren't their
// default (with).
func revisionsMain(args []string, out, errOut io.Writer) error {
	cfg, err := parseRevisions(args, errOut)
	if err != nil {
		return err
	}
	ctx, cancel := interruptible(cfg.config.limit() + 10*time.Minute) // to build
	defer cancel()
	folder, err := os.MkdirTemp("", "bench-revisions-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	programs, err := buildBoth(ctx, folder, cfg.base)
	if err != nil {
		return err
	}
	r, err := compareRevisions(ctx, cfg.config, programs, errOut)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%v, compared with %s\n", thisMachine(), cfg.base)
	return r.judge(out, cfg.limit, cfg.limitAllocs)
}

func parseRevisions(args []string, errOut io.Writer) (revisionsConfig, error) {
	cfg := revisionsConfig{config: config{
		WarmUp: 100 * time.Millisecond, Replicas: 3, Request: 100, Deadline: 10 * time.Second,
	}}
	systems, callers := "reflected,stable", "1,16,64"
	err := parse("revisions", args, errOut, func(f *flag.FlagSet) {
		f.StringVar(&cfg.base, "base", "", "the `commit` that the working tree is compared with")
		f.StringVar(&systems, "systems", systems, "`names` of the systems, which both revisions have")
		f.StringVar(&callers, "callers", callers, callersUsage)
		f.IntVar(&cfg.Rounds, "rounds", 20,
			"how many rounds: each has a window of both, for each system and number of callers")
		f.DurationVar(&cfg.Window, "window", 400*time.Millisecond, "how long the callers call in one window")
		f.Float64Var(&cfg.limit, "limit", 1.03,
			"it fails if the whole interval of a median ratio of CPU lies above this")
		f.Float64Var(&cfg.limitAllocs, "limit-allocs", 1.01, "the same for allocations, and the bytes allocated")
	}, func() (err error) {
		cfg.Systems, err = systemNames(systems)
		return errors.Join(err, parseCallers(&cfg.config, callers),
			complain(cfg.base == "", "-base is missing: which commit?"),
			complain(cfg.Rounds < leastRounds, "-rounds must be at least %d: fewer have no interval", leastRounds),
			complain(cfg.Window <= 0, "-window must be positive"),
			complain(cfg.limit <= 0 || cfg.limitAllocs <= 0, "-limit and -limit-allocs must be positive"))
	})
	return cfg, err
}

// buildBoth builds this module's program of the commit and of the working tree into folder, alike.
func buildBoth(ctx context.Context, folder, commit string) (programs [2]string, err error) {
	top, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return programs, err
	}
	tree := filepath.Join(folder, "worktree")
	if _, err := output(ctx, top, "git", "worktree", "add", "--quiet", "--detach", tree, commit); err != nil {
		return programs, err
	}
	defer func() {
		_, removing := output(context.WithoutCancel(ctx), top, "git", "worktree", "remove", "--force", tree)
		err = errors.Join(err, removing)
	}()
	for i, from := range [2]string{atBase: tree, atTree: top} {
		programs[i] = filepath.Join(folder, [2]string{atBase: "base", atTree: "tree"}[i])
		_, err := output(ctx, filepath.Join(from, "bench"), "go", "build", "-buildvcs=false", "-o", programs[i], ".")
		if err != nil {
			return programs, err
		}
	}
	return programs, nil
}

// output runs a command in a folder, and returns what it printed. An error has what it complained
// of.
func output(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = folder
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		var ended *exec.ExitError
		if errors.As(err, &ended) {
			err = fmt.Errorf("%w\n%s", err, ended.Stderr)
		}
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// A comparison has both revisions' processes of all systems up at once.
type comparison struct {
	cfg      config
	programs [2]string
	etcd     string
	progress io.Writer
	fleets   [2][]*fleet // by revision, and place of the system in cfg.Systems
	ratios   ratios
}

// compareRevisions measures.
func compareRevisions(ctx context.Context, cfg config, programs [2]string, progress io.Writer) (r ratios, err error) {
	etcd, err := etcdnode.Start(ctx, etcdnode.Config{})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, etcd.Stop()) }()
	c := &comparison{cfg: cfg, programs: programs, etcd: etcd.Addr, progress: progress, ratios: ratios{cfg: cfg}}
	defer c.stop()
	for number := range cfg.Rounds {
		if number%renewEvery == 0 {
			if err := errors.Join(c.check(ctx), c.renew(ctx)); err != nil {
				return r, err
			}
		}
		for _, callers := range cfg.Callers {
			for i := range cfg.Systems {
				if err := c.round(ctx, number, i, callers); err != nil {
					return r, err
				}
			}
		}
	}
	return c.ratios, c.check(ctx)
}

// renew starts all processes anew.
func (c *comparison) renew(ctx context.Context) error {
	c.stop()
	for i, program := range c.programs {
		cfg := c.cfg
		cfg.Program = program
		var err error
		if c.fleets[i], err = startFleets(ctx, cfg.Systems, cfg, c.etcd); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) check(ctx context.Context) (err error) {
	for _, fleets := range c.fleets {
		for _, f := range fleets {
			err = errors.Join(err, f.check(ctx))
		}
	}
	return err
}

func (c *comparison) stop() {
	for i := range c.fleets {
		stopFleets(c.fleets[i])
		c.fleets[i] = nil
	}
}

// round measures both revisions of one system, one after the other; who is first changes each time:
// A B, B A, A B, …
func (c *comparison) round(ctx context.Context, number, system, callers int) error {
	what := fmt.Sprintf("round %d: %s, %s", number+1, c.cfg.Systems[system], countOf(callers))
	for range 1 + maxRepeats {
		p, err := c.measure(ctx, number, system, callers)
		switch {
		case err == nil:
			c.ratios.pairs = append(c.ratios.pairs, p)
			fmt.Fprintf(c.progress, "%s: CPU × %.3f\n", what, p.ratio(revisionCPU))
			return nil
		case ctx.Err() != nil:
			return errors.Join(context.Cause(ctx), err)
		case !errors.Is(err, errDisturbed):
			fmt.Fprintf(c.progress, "all processes are started again: %.500v\n", err)
			if err := c.renew(ctx); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(c.progress, "%s: no window: the machine is too busy\n", what)
	return nil
}

func (c *comparison) measure(ctx context.Context, number, system, callers int) (p neighbours, err error) {
	p.number = number
	for _, i := range [2][2]int{{atBase, atTree}, {atTree, atBase}}[number%2] {
		if p.windows[i], err = c.fleets[i][system].window(ctx, callers, c.cfg.WarmUp, c.cfg.Window); err != nil {
			return p, err
		}
	}
	return p, nil
}
