//go:build linux

package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/replica"
)

// The hosts of the lab. A name of a replica or of an etcd node is that of its host; clients that
// are killed are followed by others on the same host.
var (
	etcdHosts    = []string{"etcd1", "etcd2", "etcd3"}
	replicaHosts = []string{"a", "b", "c"}
	clientHosts  = []string{"x", "y", "z"}
)

func allHosts() []string { return slices.Concat(etcdHosts, replicaHosts, clientHosts) }

const group = "chaos"

// The ports of every replica's host: each process of a name is where the one before it was.
const (
	replicaPort = "7000"
	peerPort    = "7001"
)

// deadline is that of each call. Only a hang exceeds it.
const deadline = 30 * time.Second

// drawLoad draws what a client does in one phase: it leaves two processors time to spare, on
// average.
func drawLoad(rng *rand.Rand) journal.Load {
	l := journal.Load{Callers: 1 + rng.IntN(8), Pause: time.Duration(1+rng.IntN(30)) * time.Millisecond,
		Deadline: deadline}
	switch rng.IntN(6) {
	case 0:
		l.Padding = rng.IntN(20_000)
	case 1: // more than a chunk of a frame
		l.Callers, l.Padding = 1, rng.IntN(600_000)
	}
	return l
}

// A node is a host and the process on it. All but what is said of mu belongs to the goroutine that
// makes the faults.
type node struct {
	w       *world
	host    string
	process *process.Process // nil: it was killed, and not started again
	partner *journal.Process // the same, of a replica or a client
	stopped bool
	off     bool // its clock was stepped
	started int  // processes until now

	squatter *journal.Process // of another group, where this one's was; nil for none

	// Guarded by world.mu:
	status replica.Status  // of a replica
	ledger *cluster.Ledger // of a client, its process of now
}

// A world is one group at one level, its etcd and its clients.
type world struct {
	net   network
	rng   *rand.Rand
	level understudy.Level
	bin   string // where the binaries are
	dir   string // for logs and etcd's data
	etcd  *clientv3.Client
	store election.Election

	etcds, replicas, clients []*node

	inSync  election.State // what whole has seen last
	phases  int            // until now
	savedIn int            // the phase in which etcd's data was copied as earlier; 0 for none
	kept    bool           // etcd runs on other data than the group's, which is kept as newest
	others  int            // groups that were started where one of ours was

	mu      sync.Mutex // guards what follows, and what nodes say is guarded by it
	ledgers []*cluster.Ledger

	verdict  cluster.Verdict // the last one
	unmasked int             // calls that failed as lost (DataLoss) though no two faults explain it
	differ   int             // comparisons in which replicas differed
	history  []journal.Entry // what all replicas had executed at the end of the last phase
	undone   int             // of that, what isn't there any more
	gone     int             // phases after which a replica was gone that nothing had happened to
}

// newWorld starts everything, and returns when the replicas are in-sync. close ends it, also after
// an error.
func newWorld(
	ctx context.Context, net network, rng *rand.Rand, level understudy.Level, bin, dir string,
) (*world, error) {
	w := &world{net: net, rng: rng, level: level, bin: bin, dir: dir}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return w, err
	}
	nodes := func(hosts []string) (nodes []*node) {
		for _, h := range hosts {
			nodes = append(nodes, &node{w: w, host: h})
		}
		return nodes
	}
	w.etcds, w.replicas, w.clients = nodes(etcdHosts), nodes(replicaHosts), nodes(clientHosts)
	for _, n := range w.etcds { // none is ready before there is a quorum
		if err := n.launch(); err != nil {
			return w, err
		}
	}
	for _, n := range w.etcds {
		if err := n.begun(ctx); err != nil {
			return w, err
		}
	}
	var err error
	if w.etcd, err = election.Dial(strings.Split(w.endpoints(), ",")); err != nil {
		return w, err
	}
	w.store = election.NewEtcd(w.etcd, group)
	for i, n := range w.replicas {
		if err := n.start(ctx); err != nil {
			return w, err
		}
		if i == 0 { // it makes the group
			if err := poll(ctx, recovery, func() error { _, err := w.leader(); return err }); err != nil {
				return w, err
			}
		}
	}
	if err := poll(ctx, recovery, func() error { return w.whole(ctx) }); err != nil {
		return w, err
	}
	for _, n := range w.clients {
		if err := n.start(ctx); err != nil {
			return w, err
		}
	}
	return w, nil
}

// quit makes the processes log what their goroutines do: something hangs, or is wrong.
func (w *world) quit() {
	for _, n := range slices.Concat(w.replicas, w.clients) {
		if n.runs() {
			n.process.Quit()
		}
	}
}

// close kills every process, and says what must not be in any log.
func (w *world) close() error {
	for _, n := range slices.Concat(w.clients, w.replicas, w.etcds) {
		if n.process != nil {
			n.process.KillAndWait()
		}
		if n.squatter != nil {
			n.squatter.KillAndWait()
		}
	}
	err := w.searchLogs()
	if w.etcd != nil {
		err = errors.Join(err, w.etcd.Close())
	}
	return err
}

func (w *world) searchLogs() (found error) {
	for _, h := range slices.Concat(replicaHosts, clientHosts) {
		path := filepath.Join(w.dir, h+".log")
		log, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) { // it was never started
			continue
		}
		if err != nil {
			return err
		}
		lines := bufio.NewReader(log)
		for {
			line, err := lines.ReadString('\n')
			for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
				if strings.HasPrefix(line, bad) {
					found = errors.Join(found, fmt.Errorf("%s says %q", path, line))
				}
			}
			if err != nil { // the end
				break
			}
		}
		log.Close()
	}
	return found
}

func (w *world) endpoints() string {
	var e []string
	for _, h := range etcdHosts {
		e = append(e, w.net.addr(h)+":2379")
	}
	return strings.Join(e, ",")
}

func (n *node) isEtcd() bool    { return slices.Contains(etcdHosts, n.host) }
func (n *node) isReplica() bool { return slices.Contains(replicaHosts, n.host) }
func (n *node) isClient() bool  { return slices.Contains(clientHosts, n.host) }

// launch starts a process on the host. Its first word may be to come.
func (n *node) launch() error {
	log, err := os.OpenFile(filepath.Join(n.w.dir, n.host+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	n.started++
	argv := n.w.net.on(n.host)
	binary := func(name string) string { return filepath.Join(n.w.bin, name) }
	switch addr := n.w.net.addr(n.host); {
	case n.isEtcd():
		var nodes []string
		for _, h := range etcdHosts {
			nodes = append(nodes, fmt.Sprintf("%s=http://%s:2380", h, n.w.net.addr(h)))
		}
		argv = append(argv, binary("etcd"), "-dir", filepath.Join(n.w.dir, n.host+".data"), "-name", n.host,
			"-addr", addr+":2379", "-peer", addr+":2380", "-nodes", strings.Join(nodes, ","), "-tick", "30",
			"-election", "300")
		n.process, err = process.Start(spec(n.host, argv, log))
	case n.isReplica():
		n.said(&replica.Status{})
		argv = append(argv, binary("journal"), "replica", "-etcd", n.w.endpoints(), "-via", n.w.net.via(n.host),
			"-group", group, "-name", n.host, "-host", addr, "-port", replicaPort, "-peer-port", peerPort,
			"-level", n.w.level.String())
		return n.talk(spec(n.host, argv, log), func(e journal.Event) { n.said(e.Status) })
	default:
		ledger := &cluster.Ledger{Client: fmt.Sprintf("%s%d", n.host, n.started)}
		n.w.mu.Lock()
		n.ledger = ledger
		n.w.ledgers = append(n.w.ledgers, ledger)
		n.w.mu.Unlock()
		argv = append(argv, binary("journal"), "client", "-etcd", n.w.endpoints(), "-via", n.w.net.via(n.host),
			"-group", group, "-name", ledger.Client)
		return n.talk(spec(ledger.Client, argv, log), func(e journal.Event) {
			if e.Call != nil {
				n.w.mu.Lock()
				ledger.Calls = append(ledger.Calls, *e.Call)
				n.w.mu.Unlock()
			}
		})
	}
	return err
}

// talk starts a process of the journal.
func (n *node) talk(s process.Spec, unasked func(journal.Event)) error {
	p, err := process.Talk[journal.Command](s, unasked)
	if err == nil {
		n.process, n.partner = p.Process, p
	}
	return err
}

func spec(name string, argv []string, log *os.File) process.Spec {
	return process.Spec{Name: name, Program: argv[0], Args: argv[1:], Stderr: log}
}

func (n *node) said(s *replica.Status) {
	if s != nil {
		n.w.mu.Lock()
		n.status = *s
		n.w.mu.Unlock()
	}
}

// begun waits for the first word of the process; an etcd node says it when it serves.
func (n *node) begun(ctx context.Context) error {
	select {
	case <-n.process.Begun:
		return nil
	case <-n.process.Done:
		return fmt.Errorf("%s ended by itself: %w", n.process.Name, n.process.Err)
	case <-time.After(recovery):
		return fmt.Errorf("%s doesn't begin: %s", n.process.Name, n.process.State())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// start starts a process, and a client's callers.
func (n *node) start(ctx context.Context) error {
	if err := n.launch(); err != nil {
		return err
	}
	if err := n.begun(ctx); err != nil {
		return err
	}
	if n.isClient() {
		return n.load(ctx, n.w.rng)
	}
	return nil
}

// kill is kill -9.
func (n *node) kill() {
	n.process.KillAndWait()
	n.process, n.partner, n.stopped, n.off = nil, nil, false, false
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.status = replica.Status{}
	if n.isClient() {
		n.ledger.Killed, n.ledger.Forgiven = true, n.w.level < understudy.Stable
	}
}

func (n *node) stop() error {
	if n.stopped {
		return nil
	}
	n.stopped = true
	return n.process.Stop()
}

func (n *node) proceed() error {
	if !n.stopped {
		return nil
	}
	n.stopped = false
	return n.process.Continue()
}

// stepClock sets by how much the process's clock is off.
func (n *node) stepClock(ctx context.Context, off time.Duration) error {
	return n.ask(ctx, journal.Command{Do: journal.DoClock, Off: off})
}

// runs says whether the node's process lives and isn't stopped.
func (n *node) runs() bool { return n.process != nil && !n.stopped }

// leader is the replica that leads in the highest epoch.
func (w *world) leader() (*node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var leader *node
	for _, r := range w.replicas {
		if r.runs() && r.status.Role == replica.Leading && (leader == nil || r.status.Epoch > leader.status.Epoch) {
			leader = r
		}
	}
	if leader == nil {
		return nil, fmt.Errorf("no replica leads: %s", w.describe())
	}
	return leader, nil
}

// describe says what the replicas last said of themselves. mu is held.
func (w *world) describe() string {
	var b strings.Builder
	for _, r := range w.replicas {
		fmt.Fprintf(&b, "%s %+v; ", r.host, r.status)
	}
	return b.String()
}

// whole says why the replicas aren't all in-sync, their processes of now, with one that leads and
// others that follow it.
func (w *world) whole(ctx context.Context) error {
	leader, err := w.leader()
	if err != nil {
		return err
	}
	for _, r := range w.replicas {
		if r.runs() && r.process.Ended() {
			return fmt.Errorf("%s has ended by itself: %w", r.host, r.process.Err)
		}
	}
	w.mu.Lock()
	epoch := leader.status.Epoch
	for _, r := range w.replicas {
		if r != leader && (!r.runs() || r.status.Role != replica.Following || r.status.Epoch != epoch) {
			err = fmt.Errorf("%s doesn't follow %s: %s", r.host, leader.host, w.describe())
		}
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	s, err := w.read(ctx)
	if err != nil {
		return err
	}
	// A process follows after it has registered, so that this isn't about an earlier one of that
	// name.
	for _, r := range w.replicas {
		if now, ok := s.Replica(r.host); !ok || !s.IsInSync(now.Member) || s.Epoch != epoch {
			return fmt.Errorf("%s isn't in-sync in epoch %d: etcd says %+v", r.host, epoch, s)
		}
	}
	w.inSync = s
	return nil
}

// read asks etcd who is primary and in-sync.
func (w *world) read(ctx context.Context) (election.State, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return w.store.Read(ctx)
}

// now is the machine's monotonic clock, as the ledgers read it.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// poll asks until there is no error, and returns the last one when it has asked for so long.
func poll(ctx context.Context, limit time.Duration, ask func() error) error {
	deadline := time.After(limit)
	for tick := time.Tick(20 * time.Millisecond); ; {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-tick:
		case <-deadline:
			return fmt.Errorf("after %v: %w", limit, err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// load makes a client's callers begin, or go on after a rest.
func (n *node) load(ctx context.Context, rng *rand.Rand) error {
	l := drawLoad(rng)
	return n.ask(ctx, journal.Command{Do: journal.DoLoad, Load: &l})
}

func (n *node) ask(ctx context.Context, c journal.Command) error {
	ctx, cancel := context.WithTimeoutCause(ctx, recovery, errors.New("no answer"))
	defer cancel()
	_, err := n.partner.Ask(ctx, c)
	return err
}
