//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/understudy-rpc/understudy/e2e/journal"
	"github.com/understudy-rpc/understudy/internal/process"
	"github.com/understudy-rpc/understudy/replica"
)

// Here processes are started that shouldn't be, or where another one was, and replicas are asked to
// end.

// startReplica starts a replica of a group beside what the world knows: its name is that of the
// host that it is on.
func (w *world) startReplica(
	host, group, log string, said func(journal.Event), args ...string,
) (*journal.Process, error) {
	file, err := os.OpenFile(filepath.Join(w.dir, log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	argv := append(w.net.on(host), filepath.Join(w.bin, "journal"), "replica", "-etcd", w.endpoints(), "-via",
		w.net.via(host),
		"-group", group, "-name", host, "-host", w.net.addr(host), "-level", w.level.String())
	return process.Talk[journal.Command](spec(host, append(argv, args...), file), said)
}

// twin starts a second process of a name that lives, for a while: with the group's credentials, or
// with others. Nobody else is hurt yet: who can't be reached may be replaced.
func twin(ctx context.Context, p *phase) (string, error) {
	n := p.pick(p.w.replicas, (*node).runs)
	if n == nil || len(p.faults) > 0 {
		return "", nil
	}
	what, args := "a second "+n.host, []string{}
	if p.rng.IntN(2) == 0 {
		folder := filepath.Join(p.w.dir, "others-tls")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return "", err
		}
		if err := journal.WriteTLS(folder); err != nil {
			return "", err
		}
		what, args = what+", with other credentials", []string{"-peer-tls", folder}
	}
	began := make(chan replica.Status, 1)
	second, err := p.w.startReplica(n.host, group, n.host+"-twin.log", func(e journal.Event) {
		if e.Status != nil && e.Status.Role != replica.Joining && e.Status.Role != replica.Ended {
			select {
			case began <- *e.Status:
			default:
			}
		}
	}, args...)
	if err != nil {
		return "", err
	}
	defer second.KillAndWait()
	select {
	case s := <-began:
		return "", fmt.Errorf("%s has the name: it is %s", what, s.Role)
	case <-second.Done:
	case <-time.After(time.Duration(500+p.rng.IntN(4000)) * time.Millisecond):
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	return what, nil
}

// stopGrace is how long a replica may take that is asked to end while there is nothing else wrong:
// the 5 s for which gRPC's GracefulStop waits for a connection whose other end doesn't answer, as
// one that is half-open since an earlier phase; 1 s; and what a busy machine adds.
const stopGrace = 10 * time.Second

// terminate asks a replica to end, as a supervisor does, unless it is the last one in-sync.
func terminate(ctx context.Context, p *phase) (string, error) {
	r := p.primary()
	if p.rng.IntN(2) == 0 {
		r = p.backup()
	}
	if r == nil || !p.survive(ctx, r) {
		return "", nil
	}
	asked := now()
	if err := r.process.Terminate(); err != nil {
		return "", err
	}
	limit := stopGrace
	if len(p.faults) > 0 { // its last calls may be held up
		limit = recovery
	}
	select {
	case <-r.process.Done:
	case <-time.After(limit):
		r.process.Quit()
		return "", fmt.Errorf("%s is terminated, and doesn't end within %v", r.host, limit)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	p.replicaHurt = true
	took := now() - asked
	r.kill()
	return fmt.Sprintf("%s ends within %v", r.host, took.Round(time.Millisecond)), nil
}

// reuseAddress kills a replica, and starts one of another group where it was, of the same name.
func reuseAddress(ctx context.Context, p *phase) (string, error) {
	r := p.pick(p.w.replicas, (*node).runs)
	if p.rng.IntN(2) == 0 {
		r = p.primary()
	}
	what, err := p.killReplica(ctx, r, nil)
	if err != nil || what == "" {
		return "", err
	}
	p.w.others++
	other := fmt.Sprintf("other%d", p.w.others)
	r.squatter, err = p.w.startReplica(r.host, other, r.host+"-other.log", func(journal.Event) {},
		"-port", replicaPort, "-peer-port", peerPort)
	p.hold = max(p.hold, time.Duration(500+p.rng.IntN(3000))*time.Millisecond)
	return fmt.Sprintf("%s, and group %s is there", what, other), err
}

// evict ends the process of another group on this host, which must not have executed anything.
func (n *node) evict(ctx context.Context) error {
	s := n.squatter
	if s == nil {
		return nil
	}
	n.squatter = nil
	defer s.KillAndWait()
	ctx, cancel := context.WithTimeoutCause(ctx, recovery, errors.New("no answer"))
	defer cancel()
	e, err := s.Ask(ctx, journal.Command{Do: journal.DoDump})
	switch {
	case err != nil:
		return fmt.Errorf("another group's replica on %s: %w", n.host, err)
	case len(e.Dump.Entries) > 0:
		return fmt.Errorf("%d calls were executed by another group, at the address that was %s's", len(e.Dump.Entries),
			n.host)
	}
	return nil
}

// strand leaves the connections half-open that a process has dialled to replicas: they never heal.
func strand(ctx context.Context, p *phase) (string, error) {
	n := p.client()
	if p.rng.IntN(2) == 0 {
		n = p.pick(p.w.replicas, (*node).runs)
	}
	if n == nil {
		return "", nil
	}
	p.hurt(n.host)
	return "those that " + n.host + " has dialled", n.ask(ctx, journal.Command{Do: journal.DoStrand})
}
