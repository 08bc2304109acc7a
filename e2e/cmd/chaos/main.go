//go:build linux

// Command chaos makes faults among real processes for a while, and says what became of the calls.
//
//	go run ./cmd/chaos -duration 10m
//	go run ./cmd/chaos -seed 17 -levels Stable
//
// Hosts are network namespaces where there is iproute2 and the machine allows them (to root, or in
// user namespaces); else processes dial through TCP relays. It fails if a promise of the README was
// broken; logs stay then.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/chaos"
)

func main() {
	var c chaos.Config
	flag.Uint64Var(&c.Seed, "seed", rand.Uint64()>>32, "of what is drawn")
	flag.DurationVar(&c.Duration, "duration", 2*time.Minute, "of the faults")
	flag.StringVar(&c.Dir, "dir", "", "for logs and data; without it they stay only after a failure")
	flag.BoolVar(&c.Relays, "relays", false, "TCP relays even if the machine allows namespaces")
	flag.BoolVar(&c.Clocks, "clocks", true, "steps the clocks of replicas and clients, each its own")
	flag.StringVar(&c.Bin, "bin", "", "with the processes' binaries; they are built without it")
	without := flag.String("without", "", "a rule, as make mutants names it: see that it is missed")
	levels := flag.String("levels", "Reflected,Direct,Stable", "one after the other")
	faults := flag.String("faults", "",
		"their names, as the table has them, separated by semicolons; what is drawn by itself without it")
	flag.Parse()
	if *faults != "" {
		c.Faults = strings.Split(*faults, ";")
	}
	for _, name := range strings.Split(*levels, ",") {
		level, err := understudy.ParseLevel(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(2)
		}
		c.Levels = append(c.Levels, level)
	}
	c.Out = os.Stdout
	var err error
	if chaos.Inside() {
		err = inside(c)
	} else {
		err = outside(c, *without)
	}
	if err != nil {
		if !errors.Is(err, errSaid) {
			fmt.Fprintln(os.Stderr, "chaos:", err)
		}
		os.Exit(1)
	}
}

// errSaid is what the process inside has said already.
var errSaid = errors.New("it failed inside")

// outside builds the processes, and makes the faults in namespaces if it can.
func outside(c chaos.Config, without string) error {
	if err := chaos.Possible(); err != nil && !c.Relays {
		fmt.Println(err)
		c.Relays = true
	}
	dir, err := os.MkdirTemp("", "understudy-chaos-")
	if err != nil {
		return err
	}
	logs := dir
	if c.Dir != "" {
		logs = c.Dir
	}
	c.Dir = logs
	if c.Bin == "" {
		c.Bin = dir
		if err := chaos.Build(dir, c.Clocks, without); err != nil {
			return err
		}
	}
	if c.Relays {
		err = inside(c)
	} else {
		err = chaos.Enter([]string{
			"-seed", fmt.Sprint(c.Seed), "-duration", c.Duration.String(), "-dir", c.Dir, "-bin", c.Bin,
			"-clocks=" + fmt.Sprint(c.Clocks), "-levels", levelNames(c.Levels),
			"-faults", strings.Join(c.Faults, ";"),
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos: logs are in", logs)
		return errSaid
	}
	return os.RemoveAll(dir)
}

func levelNames(levels []understudy.Level) string {
	var names []string
	for _, l := range levels {
		names = append(names, l.String())
	}
	return strings.Join(names, ",")
}

// inside makes the faults.
func inside(c chaos.Config) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	report, err := chaos.Run(ctx, c)
	if err != nil {
		fmt.Fprintf(os.Stdout, "%v\n(seed %d)\n", err, c.Seed)
		err = errSaid
	}
	report.Write(os.Stdout)
	return err
}
