package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/google/pprof/profile"
)

// profiled says what the profiles of one burst are of. It lies beside them.
type profiled struct {
	System  string   `json:"system"`
	Callers int      `json:"callers"`
	Calls   int      `json:"calls"`
	Parts   []string `json:"parts"` // the processes: the files' names are base-part.….pprof
}

func (p profiled) base() string { return fmt.Sprintf("%s-%d", p.System, p.Callers) }

func writeProfiled(folder string, p profiled) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, p.base()+".json"), b, 0o644)
}

// A share is a part of what a process does, which a call stack belongs to when one of its
// functions' names has one of in. The first share that fits has it.
type share struct {
	name string
	in   []string
}

const library = "github.com/understudy-rpc/understudy/"

// shares go from what is the same wherever it happens to what is told apart by where it happens.
var shares = []share{
	{"garbage collection",
		[]string{"runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.bgscavenge",
			"runtime.gcStart", "runtime.deductSweepCredit"}},
	{"socket reads and writes", []string{"internal/poll.(*FD).Read", "internal/poll.(*FD).Write"}},
	{"growing stacks", []string{"runtime.newstack"}},
	{"goroutines: starting, waking, waiting", []string{
		"runtime.mcall", "runtime.goready", "runtime.ready", "runtime.newproc", "runtime.selectgo", "runtime.schedule",
		"runtime.mstart", "runtime.sysmon",
		"runtime.gopreempt_m", "runtime.chansend", "runtime.chanrecv", "runtime.closechan", "sync.(*Cond)",
		"runtime.semrelease", "runtime.semacquire",
		"internal/sync.(*Mutex).lockSlow", "internal/sync.(*Mutex).unlockSlow",
	}},
	{"digests and MACs", []string{library + "internal/wire.(*Seal)", library + "internal/wire.(*mac)"}},
	{"order: orderstate", []string{library + "orderstate."}},
	{"our header: protobuf", []string{library + "internal/wire."}},
	{"HTTP/2 headers: HPACK, base64, lists", []string{
		"golang.org/x/net/http2/hpack.", "golang.org/x/net/http2.(*Framer).readMetaFrame",
		"transport.(*http2Client).createHeaderFields", "encodeMetadataHeader",
		"transport.(*loopyWriter).writeHeader", "operateHeaders", "transport.appendHeaderFieldsFromMD",
		"google.golang.org/grpc/metadata.",
		"transport.(*http2Server).writeStatus", "transport.(*http2Server).writeHeader",
	}},
	{"frames to backups", []string{library + "transport.(*link)", library + "replica.(*attachment)"}},
	{"null messages, heartbeats, acks",
		[]string{library + "replica.(*incarnation).sendTo", library + "replica.(*incarnation).pusher", library +
			"replica.(*incarnation).followOnce", library + "replica.(*incarnation).acknowledged", library +
			"replica.(*incarnation).startAcks", library + "replica.(*peerServer)"}},
	{"the handler, and its turn",
		[]string{library + "replica.(*incarnation).execute", library + "bench.(*adder)", "main.(*adder)"}},
}

// owners tell apart what no share fits: by the innermost function that one of them has.
var owners = []share{
	{"the rest of the library",
		[]string{library + "replica.", library + "transport.", library + "interceptor.", library + "internal/",
			library + "election."}},
	{"protobuf of the application's messages",
		[]string{"google.golang.org/protobuf/", "google.golang.org/grpc/encoding/proto"}},
	{"the rest of gRPC", []string{"google.golang.org/grpc", "golang.org/x/net/"}},
	{"the bench's caller", []string{"main.", library + "bench"}},
}

// ofs are what a breakdown can be of: a value of a kind of profile.
var ofs = map[string]struct {
	text, file string
	value      int
	unit       float64
}{
	"cpu":    {"CPU µs", "cpu", 1, 1000},
	"allocs": {"allocations", "allocs", 0, 1},
	"bytes":  {"bytes allocated", "allocs", 1, 1},
}

const (
	allocating = "allocation" // added up besides, whoever allocates
	elsewhere  = "elsewhere"
)

// breakdownMain is the subcommand breakdown: what the profiles of a folder say, per call.
func breakdownMain(cfg breakdownConfig, out io.Writer) error {
	files, err := filepath.Glob(filepath.Join(cfg.folder, "*.json"))
	if err != nil {
		return err
	}
	var all []profiled
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var p profiled
		if err := json.Unmarshal(b, &p); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		return fmt.Errorf("%s has no profiles", cfg.folder)
	}
	slices.SortFunc(all, func(a, b profiled) int {
		return cmp.Or(cmp.Compare(a.Callers, b.Callers), cmp.Compare(place(a.System), place(b.System)))
	})
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Callers == all[0].Callers {
			n++
		}
		if err := breakdown(cfg, all[:n], out); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

func place(name string) int {
	return slices.IndexFunc(systems, func(s system) bool { return s.name == name })
}

// breakdown writes one table: shares as rows, processes as columns.
func breakdown(cfg breakdownConfig, all []profiled, out io.Writer) error {
	type column struct {
		heading string
		of      map[string]float64
	}
	var columns []column
	for _, p := range all {
		var backups map[string]float64
		for _, part := range slices.Sorted(slices.Values(p.Parts)) {
			of, err := perCallOf(cfg, p, part)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(part, "backup") {
				columns = append(columns, column{p.System + " " + part, of})
				continue
			}
			if backups == nil {
				backups = map[string]float64{}
				columns = append(columns, column{p.System + " backups", backups})
			}
			for name, v := range of {
				backups[name] += v
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s per call, %d callers", ofs[cfg.of].text, all[0].Callers)
	for _, c := range columns {
		fmt.Fprintf(w, "\t%s", c.heading)
	}
	row := func(name string, value func(map[string]float64) float64) {
		fmt.Fprintf(w, "\n%s", name)
		for _, c := range columns {
			fmt.Fprintf(w, "\t%s", number(value(c.of)))
		}
	}
	row("all", func(of map[string]float64) (sum float64) {
		for name, v := range of {
			if name != allocating {
				sum += v
			}
		}
		return sum
	})
	for _, s := range slices.Concat(shares, owners, []share{{name: elsewhere}}) {
		row("  "+s.name, func(of map[string]float64) float64 { return of[s.name] })
	}
	if cfg.of == "cpu" {
		row("of all: "+allocating, func(of map[string]float64) float64 { return of[allocating] })
	}
	fmt.Fprint(w, "\n\n")
	return w.Flush()
}

// perCallOf reads one process's profile.
func perCallOf(cfg breakdownConfig, p profiled, part string) (map[string]float64, error) {
	path := filepath.Join(cfg.folder, p.base()+"-"+part)
	of := ofs[cfg.of]
	prof, err := readProfile(path + "." + of.file + ".pprof")
	if err != nil {
		return nil, err
	}
	if of.file == "allocs" {
		before, err := readProfile(path + ".before.pprof")
		if err != nil {
			return nil, err
		}
		before.Scale(-1)
		if prof, err = profile.Merge([]*profile.Profile{prof, before}); err != nil {
			return nil, err
		}
	}
	parts := map[string]float64{}
	for _, s := range prof.Sample {
		v := float64(s.Value[of.value]) / of.unit / float64(p.Calls)
		stack := functions(s)
		parts[shareOf(stack)] += v
		if slices.ContainsFunc(stack, func(f string) bool { return strings.HasPrefix(f, "runtime.mallocgc") }) {
			parts[allocating] += v
		}
	}
	return parts, nil
}

func readProfile(path string) (*profile.Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return profile.Parse(f)
}

// functions are the names on a sample's stack, innermost first.
func functions(s *profile.Sample) (names []string) {
	for _, l := range s.Location {
		for _, line := range l.Line {
			names = append(names, line.Function.Name)
		}
	}
	return names
}

// shareOf says whose a stack is.
func shareOf(stack []string) string {
	for _, s := range shares {
		for _, f := range stack {
			if s.fits(f) {
				return s.name
			}
		}
	}
	for _, f := range stack {
		for _, s := range owners {
			if s.fits(f) {
				return s.name
			}
		}
	}
	return elsewhere
}

func (s share) fits(function string) bool {
	return slices.ContainsFunc(s.in, func(part string) bool { return strings.Contains(function, part) })
}
