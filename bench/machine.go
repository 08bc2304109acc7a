package main

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
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
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		m.Revision = strings.TrimSpace(string(out))
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

// loadAverage is how many processes want to run, on average over 1, 5 and 15 minutes: this bench's among them.
func loadAverage() string {
	fields := strings.Fields(firstLine("/proc/loadavg", ""))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// firstLine returns the first line of a file that begins with prefix, and of "prefix: value" the value.
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
