//go:build unix

package cluster

import (
	"os"
	"path/filepath"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/internal/process"
)

// beginLimit is how long a process may take to its first word. Busy machines were seen that let a
// new process wait for a minute without a single tick of a processor: then another one is started.
const beginLimit = 15 * time.Second

// launch starts a process, and waits for its first word, which comes before it does anything.
func (c *Cluster) launch(name string, args []string, unasked func(journal.Event)) *journal.Process {
	c.t.Helper()
	for {
		log, err := os.OpenFile(c.logPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			c.t.Fatal(err)
		}
		p, err := process.Talk[journal.Command](
			process.Spec{Name: name, Program: c.binary, Args: args, Stderr: log}, unasked)
		if err != nil {
			c.t.Fatal(err)
		}
		select {
		case <-p.Begun:
			return p
		case <-p.Done:
			return p
		case <-time.After(beginLimit):
			c.t.Logf("%s is started again: it hasn't begun, and is %s", name, p.State())
			p.KillAndWait()
		case <-c.ctx.Done():
			p.KillAndWait()
			c.vain(name + " begins")
		}
	}
}

// logPath is where processes of this name log to.
func (c *Cluster) logPath(name string) string { return filepath.Join(c.logs, name+".log") }
