//go:build linux

package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Build builds the processes' binaries into dir. With clocks, those of replicas and clients have
// clocks of their own, which can be stepped. Without a rule, as make mutants names it, the protocol
// must break promises, and a run must notice.
func Build(dir string, clocks bool, without string) error {
	var args, tags []string
	if without != "" {
		tags = append(tags, "mutants")
		args = append(args, "-ldflags",
			fmt.Sprintf("-X 'github.com/understudy-rpc/understudy/orderstate.Without=%s'", without))
	}
	if race {
		args = append(args, "-race")
	}
	if clocks {
		overlay, err := stepClocks(dir)
		if err != nil {
			return err
		}
		tags = append(tags, "steppedclock")
		args = append(args, "-overlay", overlay)
	}
	args = append(args, "-tags", strings.Join(tags, ","))
	if err := build(dir, "journal", args...); err != nil {
		return err
	}
	return build(dir, "etcd")
}

func build(dir, name string, args ...string) error {
	args = append(append([]string{"build", "-o", dir + string(filepath.Separator)}, args...),
		"github.com/understudy-rpc/understudy/e2e/cmd/"+name)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("chaos: build %s: %w\n%s", name, err, out)
	}
	return nil
}

// stepClocks returns an overlay in which time.Now is off by what time.Step has said: the wall clock
// of one process, as stepping the machine's does it to all of them. The kernel has no namespace for
// that clock, and the machine is others', too.
func stepClocks(dir string) (overlay string, err error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("chaos: go env: %w", err)
	}
	folder := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(folder, "time.go"))
	if err != nil {
		return "", err
	}
	const reads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), reads) != 1 {
		return "", fmt.Errorf(
			"chaos: time.Now of %s is another than the one that clocks are stepped in; try without -clocks",
			runtime.Version(),
		)
	}
	changed := strings.Replace(string(source), reads, reads+"\tsec, nsec = stepped(sec, nsec)\n", 1)
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": changed, "step.go": stepSource} {
		file := filepath.Join(dir, "overlay-"+name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(folder, name)] = file
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o644)
}

const stepSource = `package time

import "sync/atomic"

var step atomic.Int64

// Step sets by how much the wall clock is off. The monotonic clock and timers stay as they are.
func Step(d Duration) { step.Store(int64(d)) }

func stepped(sec int64, nsec int32) (int64, int32) {
	d := step.Load()
	sec, d = sec+d/1e9, d%1e9+int64(nsec)
	switch {
	case d < 0:
		sec, d = sec-1, d+1e9
	case d >= 1e9:
		sec, d = sec+1, d-1e9
	}
	return sec, int32(d)
}
`
