package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine says where and of what a report was made.
type machine struct {
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	OS       string            `json:"os"`
	Kernel   string            `json:"kernel,omitempty"`
	Go       string            `json:"go"`
	Modules  map[string]string `json:"modules"`
	Revision string            `json:"revision,omitempty"` // of this repository
}

// named are the modules whose versions a report gives.
var named = []string{"google.golang.org/grpc", "google.golang.org/protobuf", "go.etcd.io/etcd/server/v3",
	"github.com/hashicorp/raft", "go.etcd.io/raft/v3", "github.com/lni/dragonboat/v4"}

// thisMachine tells what can be found out; nothing of it is needed.
func thisMachine() machine {
	m := machine{
		CPU: firstLine("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
		OS: runtime.GOOS + "/" + runtime.GOARCH, Kernel: firstLine("/proc/sys/kernel/osrelease", ""),
		Go: runtime.Version(), Modules: map[string]string{},
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			for _, name := range named {
				if dep.Path == name {
					m.Modules[name] = dep.Version
				}
			}
		}
	}
	if out, err := exec.Command("git", "describe", "--always").Output(); err == nil {
		m.Revision = strings.TrimSpace(string(out))
		// What is written about the code, these results among it, doesn't change it.
		if out, err := exec.Command("git", "status", "--porcelain", "--", ":/", ":(exclude,top)*.md",
			":(exclude,top)*.svg").Output(); err != nil || len(out) > 0 {
			m.Revision += "-dirty"
		}
	}
	return m
}

// String is a line for people.
func (m machine) String() string {
	s := fmt.Sprintf("%s, %d CPUs, %s %s, %s", cmp.Or(m.CPU, "unknown CPU"), m.CPUs, m.OS, m.Kernel, m.Go)
	for _, name := range slices.Sorted(maps.Keys(m.Modules)) {
		s += fmt.Sprintf(", %s %s", strings.TrimPrefix(name, "github.com/"), m.Modules[name])
	}
	return s + "; revision " + cmp.Or(m.Revision, "unknown")
}

// loadAverage is how many processes want to run, on average over 1, 5 and 15 minutes: this bench's
// among them.
func loadAverage() string {
	fields := strings.Fields(firstLine("/proc/loadavg", ""))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// cpuTime is what all processes of this machine have used so far, and this one with the children
// that it has waited for.
type cpuTime struct {
	at        time.Time
	all, ours time.Duration
}

// userHZ is the unit of /proc/stat: it is 100 on all of Linux's architectures that Go has.
const userHZ = 100

// readCPUTime has zeros where there is no /proc.
func readCPUTime() cpuTime {
	t := cpuTime{at: time.Now()}
	// user, nice, system, idle, iowait, irq, softirq, steal
	for i, field := range strings.Fields(firstLine("/proc/stat", "cpu ")) {
		if n, err := strconv.ParseInt(field, 10, 64); err == nil && i < 8 && i != 3 && i != 4 {
			t.all += time.Duration(n) * time.Second / userHZ
		}
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var ru syscall.Rusage
		if syscall.Getrusage(who, &ru) == nil {
			t.ours += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
		}
	}
	return t
}

// others is how many cores others have used since before.
func (t cpuTime) others(before cpuTime) float64 {
	return max(0, (t.all-before.all-(t.ours-before.ours)).Seconds()/t.at.Sub(before.at).Seconds())
}

// conditions say where, of what and beside what a section of the results was measured.
type conditions struct {
	machine    machine
	begun      cpuTime
	loadBefore string
	before     float64 // cores that others used, before and after
	after      float64
	loadAfter  string
	during     float64
	took       time.Duration
}

// look is how long others are looked at before and after.
const look = 2 * time.Second

func observe(ctx context.Context) *conditions {
	c := &conditions{machine: thisMachine(), loadBefore: loadAverage()}
	c.before = othersFor(ctx, look)
	c.begun = readCPUTime()
	return c
}

// end is called when all that was started has ended, so that it counts as ours.
func (c *conditions) end(ctx context.Context) {
	now := readCPUTime()
	c.during, c.took = now.others(c.begun), now.at.Sub(c.begun.at)
	c.loadAfter, c.after = loadAverage(), othersFor(ctx, look)
}

func othersFor(ctx context.Context, d time.Duration) float64 {
	before := readCPUTime()
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	return readCPUTime().others(before)
}

// String is a paragraph.
func (c *conditions) String() string {
	return fmt.Sprintf("%v. %s, %v long. Load average %s before and %s after; cores that others used: %.2f before, "+
		"%.2f meanwhile, %.2f after.",
		c.machine, c.begun.at.UTC().Format("2006-01-02 15:04 MST"), c.took.Round(time.Second),
		c.loadBefore, c.loadAfter, c.before, c.during, c.after)
}

// firstLine returns the first line of a file that begins with prefix, and of "prefix: value" the
// value.
func firstLine(path, prefix string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if line, ok := strings.CutPrefix(lines.Text(), prefix); ok {
			return strings.TrimLeft(line, " \t:")
		}
	}
	return ""
}
