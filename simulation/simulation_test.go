package simulation

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/internal/hang"
)

var (
	seeds    = flag.Int("seeds", 0, "TestSimulate: how many")
	first    = flag.Uint64("first", 1, "TestSimulate: the first one")
	seed     = flag.Uint64("seed", 0, "TestSeed: which one")
	save     = flag.String("save", "", "TestSeed: a file for its plan, which stays when Draw changes")
	verbose  = flag.Bool("log", false, "TestSeed: what replicas and clients log, too")
	patience = flag.Duration("patience", 20*time.Second, "how long porcupine may take for one seed")
)

// summary is of all seeds of this process.
var summary struct {
	mu                               sync.Mutex
	seeds, violations, calls, faults int
	failed                           []uint64
	virtual                          time.Duration
	began                            time.Time
	coverage                         map[string]int
}

func TestMain(m *testing.M) {
	summary.began, summary.coverage = time.Now(), map[string]int{}
	code := hang.Run(m)
	report(os.Stdout)
	os.Exit(code)
}

func report(w io.Writer) {
	s := &summary
	if s.seeds == 0 {
		return
	}
	for _, what := range slices.Sorted(maps.Keys(s.coverage)) {
		fmt.Fprintf(w, "%8d  %s\n", s.coverage[what], what)
	}
	took := time.Since(s.began)
	fmt.Fprintf(w, "%v of virtual time in %v: %.0f seeds a minute\n", s.virtual.Round(time.Second),
		took.Round(time.Second), float64(s.seeds)/took.Minutes())
	for _, seed := range s.failed {
		fmt.Fprintf(w, "again: make simulate SEED=%d\n", seed)
	}
	fmt.Fprintf(w, "seeds=%d violations=%d calls=%d faults=%d\n", s.seeds, s.violations, s.calls, s.faults)
}

// live says of what mode a seed is: of three, one is about liveness.
func live(seed uint64) bool { return seed%3 == 0 }

// play runs a plan in a bubble and judges it.
func play(t *testing.T, p Plan, log io.Writer) (rec Record, found []string) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // what happens in one instant repeats more often
	cryptotest.SetGlobalRandom(t, p.Seed)           // nonces, incarnations, the group's secret
	synctest.Test(t, func(t *testing.T) { rec = Play(t, p, log) })
	return rec, Check(&rec, *patience)
}

// simulate plays a seed, and says what it violates.
func simulate(t *testing.T, seed uint64) {
	p := Draw(seed, live(seed))
	rec, found := play(t, p, nil)
	s := &summary
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds++
	s.calls += len(rec.Calls)
	s.faults += rec.Faults
	s.virtual += rec.Virtual
	for what, n := range rec.Coverage.Counts() {
		s.coverage[what] += n
	}
	if len(found) > 0 {
		s.violations++
		s.failed = append(s.failed, seed)
		t.Errorf("seed %d; again: make simulate SEED=%d\n%v%s", seed, seed, p, strings.Join(found, "\n"))
	}
}

// TestSimulate plays -seeds seeds.
func TestSimulate(t *testing.T) {
	if *seeds == 0 {
		t.Skip("make simulate says how many")
	}
	for k := range uint64(*seeds) {
		t.Run(fmt.Sprint(*first+k), func(t *testing.T) {
			simulate(t, *first+k)
		})
	}
	if *seeds < enough {
		return
	}
	for _, what := range Rare {
		if summary.coverage[what] == 0 {
			t.Errorf("in %d seeds it never happened that %s", *seeds, what)
		}
	}
}

// enough seeds have met all that is Rare.
const enough = 1000

// small has the first ten, and one with a hostile client and a store that hangs, and is restored.
var small = []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 25}

// TestSmall plays a fixed set of seeds: what make test does.
func TestSmall(t *testing.T) {
	if *seeds > 0 || *seed > 0 {
		t.Skip("other seeds were asked for")
	}
	for _, seed := range small {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			simulate(t, seed)
		})
	}
}

// TestSeed plays one seed again, and prints all that happened.
func TestSeed(t *testing.T) {
	if *seed == 0 {
		t.Skip("make simulate SEED=n says which")
	}
	var log io.Writer
	if *verbose {
		log = os.Stdout
	}
	p := Draw(*seed, live(*seed))
	if *save != "" {
		b, err := json.MarshalIndent(p, "", "\t")
		if err == nil {
			err = os.WriteFile(*save, append(b, '\n'), 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	fmt.Print(p)
	rec, found := play(t, p, log)
	for _, m := range rec.Trace {
		fmt.Println(m)
	}
	fmt.Printf("seed %d: %d violations\n", *seed, len(found))
	for _, f := range found {
		t.Error(f)
	}
}
