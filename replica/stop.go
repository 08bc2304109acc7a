package replica

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// This file has how a replica ends: by Stop, by the end of Serve's context, or by its server's own
// GracefulStop or Stop.

// ErrLastInSync is Stop's error when the replica was the last one in-sync: the group's state, which
// is in memory, is gone with it, and the group is down.
var ErrLastInSync = errors.New("replica: the last in-sync replica has stopped, and with it goes the group's state")

// Stop ends Serve: the replica withdraws, its streams are cut, replies on their way leave, and
// Serve returns. If it led, it orders nothing more, and waits until its backups hold all that it
// has ordered, for half a second at most; then another in-sync replica takes over, and nothing that
// anyone has seen is lost. Stop waits for the end of Serve within ctx; calling it again is
// harmless. Before Serve, it releases what Join has made, and Serve then returns nil at once.
//
// The last in-sync replica of a group has nobody who takes over. As long as another one is joining,
// Stop waits for that, within ctx; then it stops all the same, and its error is ErrLastInSync.
func (r *Replica) Stop(ctx context.Context) error {
	r.mu.Lock()
	stop, serving, over := r.stop, r.serving, r.over
	r.over = r.over || !serving
	r.mu.Unlock()
	if !serving {
		if !over {
			r.release()
			close(r.stopped)
		}
		return nil
	}
	last := r.awaitHeir(ctx)
	stop(errStopped)
	select {
	case <-r.stopped:
		return last
	case <-ctx.Done():
		if last != nil {
			return fmt.Errorf("%w (%w)", last, ctx.Err())
		}
		return ctx.Err()
	}
}

// awaitHeir waits for a joiner that is there, if nobody else is in-sync.
func (r *Replica) awaitHeir(ctx context.Context) error {
	in := r.current()
	if in == nil {
		return nil
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	l := in.m.leading()
	if l == nil {
		return nil
	}
	for l.roster.isLast() {
		if !l.roster.hasJoiner() || ctx.Err() != nil {
			return ErrLastInSync
		}
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		_ = in.m.await(wait, func() bool { return !l.roster.isLast() })
		cancel()
	}
	return nil
}

// noted is the listener of Serve's, which notes when the server closes it: first of all that
// GracefulStop and Stop do.
type noted struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func newNoted(lis net.Listener) *noted { return &noted{Listener: lis, closed: make(chan struct{})} }

func (n *noted) isClosed() bool {
	select {
	case <-n.closed:
		return true
	default:
		return false
	}
}

// Close implements net.Listener.
func (n *noted) Close() error {
	n.once.Do(func() { close(n.closed) })
	return n.Listener.Close()
}

// drainServer lets replies that are being sent leave; streams of ours have ended with the
// incarnation. It says false of a server that doesn't end, because a handler hangs.
func drainServer(s *grpc.Server) bool {
	done := make(chan struct{})
	go func() {
		s.GracefulStop()
		close(done)
	}()
	if endsWithin(silence, done) {
		return true
	}
	go s.Stop() // may wait for handlers, too
	return endsWithin(silence, done)
}

func endsWithin(d time.Duration, done <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// awaitGoroutines waits for those of an incarnation that has ended: a handler of the user's, or
// Restore, may hang. The next one can't begin before, since there is one state; but Serve ends when
// its context has.
func (in *incarnation) awaitGoroutines() {
	done := make(chan struct{})
	go func() {
		in.wg.Wait()
		close(done)
	}()
	for said := false; !endsWithin(silence, done); said = true {
		if in.life.Err() != nil {
			return
		}
		if !said {
			in.log.Warn("can't begin again while user code doesn't return", "method", in.r.app.Executes())
		}
	}
}

// errHangs is Serve's error when it has ended without user code that doesn't return.
func (r *Replica) errHangs(drained bool) error {
	switch m := r.app.Executes(); {
	case m != "":
		return fmt.Errorf("replica: Serve has ended while %s didn't return", m)
	case !drained:
		return errors.New("replica: Serve has ended while a handler of the server's didn't return")
	}
	return nil
}
