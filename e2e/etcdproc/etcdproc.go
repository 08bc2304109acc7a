//go:build unix

// Package etcdproc runs a real etcd process that a test can kill, stop, continue and restart on its
// data directory.
//
//	etcd := etcdproc.Start(t)
//	client, err := election.Dial([]string{etcd.Addr()})
//	etcd.Kill()      // SIGKILL
//	etcd.Restart()   // same data, same port
//	etcd.Stop()      // SIGSTOP: connections stay open and nothing is answered
//	etcd.Continue()  // SIGCONT: what was sent meanwhile is answered now
//
// It is for tests in packages of the e2e module: the process is its cmd/etcd, built by the go
// command when the first test needs it. A Link puts a relay that stalls or breaks before any TCP
// server.
package etcdproc

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/internal/process"
)

// startLimit bounds one start of the process; typically it takes a tenth of a second.
const startLimit = 30 * time.Second

// A Server is one etcd node with a data directory and a port of its own. Its timings are short: a
// tick of 10 ms, an election timeout of 100 ms, and so leases from 1 s. It doesn't fsync, which
// SIGKILL doesn't notice. Its methods may not run concurrently; each fails the test at once if it
// can't do what it says.
type Server struct {
	t    testing.TB
	dir  string
	addr string           // "" until the first start has chosen a port
	more []string         // further arguments
	now  *process.Process // nil while there is none
}

// Start starts an etcd with an empty data directory, and returns when it serves. It ends with the
// test, and so does whatever state it is in.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, dir: t.TempDir()}
	t.Cleanup(s.end)
	s.Restart()
	return s
}

// StartMembers starts an etcd of n nodes, and returns them when each serves. Their timings are
// three times those of a node alone.
func StartMembers(t testing.TB, n int) []*Server {
	t.Helper()
	var members []*Server
	var nodes []string
	for i := range n {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("etcdproc: %v", err)
		}
		name, peer := fmt.Sprintf("etcd%d", i+1), lis.Addr().String()
		lis.Close()
		nodes = append(nodes, name+"=http://"+peer)
		members = append(members, &Server{t: t, dir: t.TempDir(), more: []string{
			"-name", name, "-peer", peer, "-tick", "30", "-election", "300",
		}})
	}
	started := make(chan error, n)
	for _, s := range members {
		t.Cleanup(s.end)
		s.more = append(s.more, "-nodes", strings.Join(nodes, ","))
		go func() { started <- s.start() }() // none is ready before most are there
	}
	for range members {
		if err := <-started; err != nil {
			t.Errorf("etcdproc: %v", err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return members
}

// Addr returns the host:port of clients; it stays the same after a restart.
func (s *Server) Addr() string { return s.addr }

// Running reports whether there is a process, stopped or not.
func (s *Server) Running() bool { return s.now != nil }

// Kill kills the process (SIGKILL) and returns when it is gone.
func (s *Server) Kill() {
	s.t.Helper()
	if !s.Running() {
		s.t.Fatal("etcdproc: Kill: there is no process")
	}
	s.end()
}

// Restart starts the process again on its data directory and port, after Kill, and returns when it
// serves.
func (s *Server) Restart() {
	s.t.Helper()
	if s.Running() {
		s.t.Fatal("etcdproc: Restart: there is a process; Kill it first")
	}
	if err := s.start(); err != nil {
		s.end()
		s.t.Fatalf("etcdproc: %v", err)
	}
}

// Wipe removes the data, after Kill: Restart then starts an empty etcd, as one that was replaced.
func (s *Server) Wipe() {
	s.t.Helper()
	if s.Running() {
		s.t.Fatal("etcdproc: Wipe: there is a process; Kill it first")
	}
	if err := os.RemoveAll(s.data()); err != nil {
		s.t.Fatalf("etcdproc: Wipe: %v", err)
	}
}

// Save copies the data to a directory that ends with the test, after Kill.
func (s *Server) Save() (backup string) {
	s.t.Helper()
	if s.Running() {
		s.t.Fatal("etcdproc: Save: there is a process; Kill it first")
	}
	backup = filepath.Join(s.t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(s.data())); err != nil {
		s.t.Fatalf("etcdproc: Save: %v", err)
	}
	return backup
}

// Load puts what Save has copied in place of the data, after Kill: Restart then starts an etcd of
// the past, as one restored from a backup.
func (s *Server) Load(backup string) {
	s.t.Helper()
	s.Wipe()
	if err := os.CopyFS(s.data(), os.DirFS(backup)); err != nil {
		s.t.Fatalf("etcdproc: Load: %v", err)
	}
}

// Stop stops the process (SIGSTOP) and returns when it stands still.
func (s *Server) Stop() {
	s.t.Helper()
	s.must("Stop", (*process.Process).Stop)
}

// Continue lets a stopped process go on (SIGCONT).
func (s *Server) Continue() {
	s.t.Helper()
	s.must("Continue", (*process.Process).Continue)
}

func (s *Server) must(what string, do func(*process.Process) error) {
	s.t.Helper()
	if !s.Running() {
		s.t.Fatalf("etcdproc: %s: there is no process", what)
	}
	if err := do(s.now); err != nil {
		s.t.Fatalf("etcdproc: %s: %v", what, err)
	}
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) start() error {
	binary, err := build()
	if err != nil {
		return err
	}
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	args := append([]string{"-dir", s.data(), "-addr", addr}, s.more...)
	p, err := process.Start(process.Spec{Name: "etcd", Program: binary, Args: args})
	if err != nil {
		return err
	}
	s.now = p
	select {
	case <-p.Begun:
	case <-p.Done:
		s.now = nil
		return p.Why()
	case <-time.After(startLimit):
		return fmt.Errorf("not ready after %v", startLimit)
	}
	var ok bool
	if s.addr, ok = strings.CutPrefix(p.FirstLine(), "ready "); !ok {
		s.end()
		return fmt.Errorf("the process said %q, and logged %s", p.FirstLine(), p.Log())
	}
	return nil
}

// end kills the process, if there is one, in whatever state it is.
func (s *Server) end() {
	if s.now != nil {
		s.now.KillAndWait()
		s.now = nil
	}
}

// build returns the path of cmd/etcd's binary, built once per test process. It stays in the user's
// cache, where the go command finds it up to date the next time.
var build = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "understudy-e2e")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Tests of several packages may come here at once.
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "etcd")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "build", "-o", binary,
		"github.com/understudy-rpc/understudy/e2e/cmd/etcd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build cmd/etcd: %w\n%s", err, out)
	}
	return binary, nil
})
