//go:build linux

package chaos

import (
	"errors"
	"flag"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/understudy-rpc/understudy"
)

var dir = flag.String("chaos.dir", "", "of what the test outside has prepared for the one inside")

// inside runs the test again in namespaces of its own, and reports whether this is there.
func inside(t *testing.T, args ...string) bool {
	t.Helper()
	if Inside() {
		return true
	}
	if err := Possible(); err != nil {
		t.Skip(err)
	}
	if err := Enter(append([]string{"-test.run=^" + t.Name() + "$", "-test.v"}, args...)); err != nil {
		t.Error(err)
	}
	return false
}

// A share of what make chaos does, in namespaces if there are any; and over relays, shorter then.
func TestShare(t *testing.T) {
	c := Config{
		Seed: 4, Duration: 6 * time.Second, Bin: *dir, Dir: *dir, Out: t.Output(),
		Levels: []understudy.Level{understudy.Reflected, understudy.Direct, understudy.Stable},
	}
	if !Inside() {
		c.Bin = t.TempDir()
		if err := Build(c.Bin, false, ""); err != nil {
			t.Fatal(err)
		}
		if err := Possible(); err == nil {
			inside(t, "-chaos.dir="+c.Bin)
			c.Duration, c.Levels = 2*time.Second, c.Levels[1:2]
		} else {
			t.Log(err)
		}
		c.Relays, c.Dir = true, t.TempDir()
	}
	report, err := Run(t.Context(), c)
	report.Write(t.Output())
	if err != nil {
		t.Error(err)
	}
}

// A direction that is dropped is silent, on connections that there are too, and the other one
// isn't; what was sent arrives when it heals. A reset is seen at both ends.
func TestLab(t *testing.T) {
	if !inside(t) {
		return
	}
	l, err := newLab("p", "q")
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	on(t, "p", func() { listener, err = net.Listen("tcp", l.addr("p")+":1") })
	if err != nil {
		t.Fatal(err)
	}
	dial := func() (conn net.Conn, err error) {
		on(t, "q", func() { conn, err = net.DialTimeout("tcp", listener.Addr().String(), dialLimit) })
		return conn, err
	}
	near, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	arrives := func(from, to net.Conn, within time.Duration) bool {
		t.Helper()
		if _, err := from.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		return read(t, to, within)
	}
	if !arrives(near, far, time.Second) || !arrives(far, near, time.Second) {
		t.Fatal("nothing arrives, and nothing is dropped")
	}
	if err := l.drop([]pair{{"p", "q"}}); err != nil {
		t.Fatal(err)
	}
	if !arrives(near, far, time.Second) {
		t.Error("what q sends is dropped too")
	}
	if arrives(far, near, 300*time.Millisecond) {
		t.Error("what p sends arrives")
	}
	if conn, err := dial(); err == nil {
		t.Error("a new connection is made")
		conn.Close()
	} else if nerr := net.Error(nil); !errors.As(err, &nerr) || !nerr.Timeout() {
		t.Errorf("a new connection doesn't fail in silence: %v", err)
	}
	if err := l.heal(); err != nil {
		t.Fatal(err)
	}
	if !read(t, near, 10*time.Second) {
		t.Error("what was sent doesn't arrive after healing")
	}
	if err := l.reset("p", "q"); err != nil {
		t.Fatal(err)
	}
	for _, end := range []net.Conn{near, far} {
		_ = end.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := end.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) &&
			!errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("an end sees %v", err)
		}
	}
}

// dialLimit is longer than it takes to send a lost SYN again.
const dialLimit = 3 * time.Second

// read says whether a byte arrives in time.
func read(t *testing.T, conn net.Conn, within time.Duration) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// on runs f on a host: the sockets that it makes are there.
func on(t *testing.T, host string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open("/run/netns/" + host)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
