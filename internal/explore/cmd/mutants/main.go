//go:build mutants

// Command mutants takes the rules away one at a time, and explores until that shows: the rule,
// where, after how many states, and what.
//
//	go run -tags mutants ./internal/explore/cmd/mutants [-trace] [-mem 4096] [words of a rule]
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/understudy-rpc/understudy/internal/explore"
)

func main() {
	mem := flag.Int("mem", 4096, "how much memory a search may take, in MiB")
	states := flag.Int("states", 1_000_000, "how many states to visit for each, at most")
	trace := flag.Bool("trace", false, "tell how")
	flag.Parse()
	missed := 0
	for _, m := range explore.Mutants {
		if !strings.Contains(m.Rule, strings.Join(flag.Args(), " ")) {
			continue
		}
		c := m.Catch(explore.Within(*mem, *states))
		fmt.Println(c)
		if *trace {
			fmt.Println(c.Trace)
		}
		if !c.AsSaid() {
			missed++
		}
	}
	if missed > 0 {
		fmt.Printf("%d aren't as said\n", missed)
		os.Exit(1)
	}
}
