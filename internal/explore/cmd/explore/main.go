// Command explore visits the states of small groups, and prints for each scope how many there are,
// or a shortest trace to a rule that is broken.
//
//	go run ./internal/explore/cmd/explore [-mem 4096] [-states 1000000] [-walks 5000] [scope ...]
package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/understudy-rpc/understudy/internal/explore"
)

func main() {
	mem := flag.Int("mem", 4096, "how much memory a scope may take, in MiB")
	walks := flag.Int("walks", 5000, "how many random walks to take where not all states can be visited")
	states := flag.Int("states", 0, "how many states to visit in each scope, at most, instead of its bound")
	flag.Parse()
	failed, total := false, 0
	for _, scope := range explore.Scopes {
		if flag.NArg() > 0 && !slices.Contains(flag.Args(), scope.Name) {
			continue
		}
		limits := explore.Within(*mem, cmp.Or(*states, scope.Bound))
		limits.Walks = *walks
		r := explore.Search(scope, limits)
		fmt.Printf("%v  %s\n", r, scope.Why)
		failed, total = failed || r.Broken != nil, total+r.States
	}
	fmt.Printf("%d states in all\n", total)
	if failed {
		os.Exit(1)
	}
}
