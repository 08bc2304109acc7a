package simnet

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// ends are those of a connection from a to b.
func ends(t *testing.T, n *Network) (near, far io.ReadWriteCloser) {
	t.Helper()
	lis, err := n.Listen("b")
	if err != nil {
		t.Fatal(err)
	}
	near, err = n.Dialer("a")(context.Background(), lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = lis.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _, _ = near.Close(), far.Close(), lis.Close()
	})
	return near, far
}

// arrives reads one byte, and says how long that took.
func arrives(t *testing.T, from io.Reader, want byte) time.Duration {
	t.Helper()
	began := time.Now()
	var b [1]byte
	if _, err := io.ReadFull(from, b[:]); err != nil || b[0] != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
	return time.Since(began)
}

func write(t *testing.T, to io.Writer, b byte) {
	t.Helper()
	if _, err := to.Write([]byte{b}); err != nil {
		t.Fatal(err)
	}
}

var there = Link{"a", "b"}

// TestPause: what is on its way to a host that stands still, or from it, arrives when it goes on,
// and in order.
func TestPause(t *testing.T) {
	for _, host := range []string{"a", "b"} {
		synctest.Test(t, func(t *testing.T) {
			n := New()
			near, far := ends(t, n)
			write(t, near, '1')
			n.Pause(host)
			write(t, near, '2')
			time.AfterFunc(time.Second, func() { n.Resume(host) })
			if took, want := arrives(t, far, '1'), time.Second+latency(there); took != want {
				t.Errorf("after %v; want %v", took, want)
			}
			if took := arrives(t, far, '2'); took != 0 {
				t.Errorf("%v later", took)
			}
		})
	}
}

// TestSlow: a slow link delays; what was written when it was slow isn't overtaken.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		near, far := ends(t, n)
		n.Slow(there, time.Second)
		write(t, near, '1')
		n.Slow(there, 0)
		write(t, near, '2')
		if took, want := arrives(t, far, '1'), time.Second+latency(there); took != want {
			t.Errorf("after %v; want %v", took, want)
		}
		if took := arrives(t, far, '2'); took != 0 {
			t.Errorf("%v later", took)
		}
	})
}

// TestReset: both ends are closed, and what was on its way is lost.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		near, far := ends(t, n)
		write(t, near, '1')
		n.Reset("b", "a")
		for _, end := range []io.Reader{near, far} {
			if k, err := end.Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes", k)
			}
		}
	})
}

// TestStrand: what is sent on a half-open connection never arrives, nor does its end; a new
// connection is as ever.
func TestStrand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		near, far := ends(t, n)
		write(t, near, '1')
		arrives(t, far, '1')
		n.Strand("b", "a")
		write(t, near, '2')
		_ = near.Close()
		heard := make(chan struct{})
		go func() {
			_, _ = far.Read(make([]byte, 1))
			close(heard)
		}()
		select {
		case <-heard:
			t.Error("the other end has heard something")
		case <-time.After(time.Hour):
		}
		_ = far.Close()
		<-heard
		near, far = ends(t, n)
		write(t, near, '3')
		arrives(t, far, '3')
	})
}
