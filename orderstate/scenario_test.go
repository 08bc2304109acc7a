package orderstate

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScenarios runs the scripts in testdata: one claim each, to be read beside the patent.
// -rewrite writes what happens into them.
//
//	group level=reflected replicas=(S1,S2) sources=(C1) max=32     a new group; each source's
//	                                                               session is opened, as order 1,
//	                                                               2, …, and attached at all
//	                                                               backups, in each epoch; but
//	                                                               with detached
//	do                                                            commands of the world, one a
//	                                                              line
func TestScenarios(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	must(t, err)
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txt"), func(t *testing.T) {
			var w *world
			datadriven.RunTest(t, script, func(t *testing.T, d *datadriven.TestData) string {
				var out strings.Builder
				if d.Cmd == "group" {
					w = newGroup(d)
				}
				for command := range strings.Lines(d.Input) {
					said, err := w.do(command)
					if out.WriteString(said); err != nil {
						d.Fatalf(t, "%s: %v", command, err)
					}
				}
				return out.String()
			})
		})
	}
}

func newGroup(d *datadriven.TestData) *world {
	args := map[string][]string{}
	for _, a := range d.CmdArgs {
		args[a.Key] = a.Vals
	}
	level := args["level"][0]
	replicas := make([]Replica, len(args["replicas"]))
	for i, r := range args["replicas"] {
		replicas[i] = Replica(r)
	}
	most := 32 // pendingSourceOrderMax
	if level != "reflected" {
		most = 0 // the primary multicasts to its own backups
	}
	if len(args["max"]) > 0 {
		most = must1(strconv.Atoi(args["max"][0]))
	}
	_, detached := args["detached"]
	return newWorld(level, most, replicas, args["sources"], detached)
}
