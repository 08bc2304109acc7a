// Package hang says who keeps a test from going on. In a testing/synctest bubble time stands still
// while anyone waits for a mutex; if its holder waits for time, the test hangs, and go test's own
// report, at its time-out, has hundreds of goroutines.
package hang

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// early is by how much the report comes before go test's own.
const early = 10 * time.Second

// Run runs a package's tests, and returns their exit code. If a bubble hangs shortly before
// -timeout, it reports that to standard error, and ends the process with 2; what is only slow is go
// test's to report.
func Run(m interface{ Run() int }) int {
	flag.Parse()
	if limit := timeout(); limit > early {
		defer time.AfterFunc(limit-early, func() {
			if report(os.Stderr, stacks()) {
				os.Exit(2)
			}
		}).Stop()
	}
	return m.Run()
}

func timeout() time.Duration {
	f := flag.Lookup("test.timeout")
	if f == nil {
		return 0
	}
	d, _ := f.Value.(flag.Getter).Get().(time.Duration)
	return d
}

func stacks() []byte {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return buf[:n]
		}
	}
}

const module = "github.com/understudy-rpc/understudy/"

var (
	header    = regexp.MustCompile(`^goroutine \d+ \[([^,\]]*).*?(?:, synctest bubble (\d+))\]:$`)
	arguments = regexp.MustCompile(`\((0x|\{|\.\.\.|\)).*$`)
)

// place is where goroutines wait alike.
type place struct {
	durably bool
	where   string
}

// report writes, if a bubble hangs, all stacks, and then what those of a bubble that hangs wait
// for, one place a line, with how many wait there, and last who may be the reason. A bubble hangs
// in which someone waits, but not durably.
func report(w io.Writer, dump []byte) bool {
	bubbles := map[string]map[place]int{}
	hangs := map[string]bool{}
	for stack := range bytes.SplitSeq(dump, []byte("\n\n")) {
		first, frames, _ := strings.Cut(string(stack), "\n")
		h := header.FindStringSubmatch(first)
		if h == nil {
			continue
		}
		state, bubble := h[1], h[2]
		p := place{strings.HasSuffix(state, "(durable)"), state + ": " + chain(frames)}
		if bubbles[bubble] == nil {
			bubbles[bubble] = map[place]int{}
		}
		bubbles[bubble][p]++
		if !p.durably && state != "running" && state != "runnable" {
			hangs[bubble] = true
		}
	}
	if len(hangs) == 0 {
		return false
	}
	_, _ = w.Write(dump)
	for bubble := range hangs {
		places := bubbles[bubble]
		_, _ = fmt.Fprintf(w, "\n\nsynctest bubble %s hangs. There wait:\n", bubble)
		for _, p := range slices.SortedFunc(maps.Keys(places), func(a, b place) int {
			switch {
			case a.durably && !b.durably:
				return -1
			case b.durably && !a.durably:
				return 1
			}
			return cmp.Or(cmp.Compare(places[b], places[a]), strings.Compare(a.where, b.where))
		}) {
			_, _ = fmt.Fprintf(w, "%4d  %s\n", places[p], p.where)
		}
	}
	return true
}

// chain is where a goroutine waits: the innermost frame that isn't the runtime's, and those of this
// module, from the inside.
func chain(stack string) string {
	var frames []string
	for line := range strings.Lines(stack) {
		if strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "created by ") {
			continue
		}
		name := arguments.ReplaceAllString(strings.TrimSpace(line), "")
		switch {
		case strings.HasPrefix(name, module):
			frames = append(frames, strings.TrimPrefix(name, module))
		case len(frames) == 0 && !strings.HasPrefix(name, "sync.") && !strings.HasPrefix(name, "internal/sync.") &&
			!strings.HasPrefix(name, "runtime."):
			frames = append(frames, name)
		}
	}
	return strings.Join(frames, " < ")
}
