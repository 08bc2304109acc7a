package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
)

func greet(t *testing.T, g *greeter, name string) uint64 {
	t.Helper()
	reply, err := g.SayHello(t.Context(), &helloworld.HelloRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	n, err := parseGreeting(name, reply.GetMessage())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSayHelloCountsEachName(t *testing.T) {
	t.Parallel()
	g := newGreeter()
	var got []string
	for _, name := range []string{"ann", "ben", "ann", "ann", "ben"} {
		got = append(got, fmt.Sprint(name, greet(t, g, name)))
	}
	if diff := cmp.Diff([]string{"ann1", "ben1", "ann2", "ann3", "ben2"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := g.SayHello(t.Context(), &helloworld.HelloRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("greeting nobody: %v", err)
	}
	if diff := cmp.Diff(map[string]uint64{"ann": 3, "ben": 2}, g.dump()); diff != "" {
		t.Error(diff)
	}
}

func TestParseGreeting(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, message string
		want          uint64 // 0: refused
	}{
		{"ann", "Hello ann, greeting 1", 1},
		{"ann", "Hello ann, greeting 18446744073709551615", 1<<64 - 1},
		{"ann, greeting 7", "Hello ann, greeting 7, greeting 8", 8},
		{"", "Hello , greeting 3", 3},
		{"ann", "Hello ann, greeting 0", 0},
		{"ann", "Hello ann, greeting 01", 0},
		{"ann", "Hello ann, greeting +1", 0},
		{"ann", "Hello ann, greeting 1 ", 0},
		{"ann", "Hello ann, greeting ", 0},
		{"ann", "Hello ann, greeting 18446744073709551616", 0},
		{"ann", "Hello ben, greeting 1", 0},
		{"ann", "Hello ann", 0},
		{"ann", "", 0},
	} {
		n, err := parseGreeting(c.name, c.message)
		if n != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("parseGreeting(%q, %q) = %d, %v", c.name, c.message, n, err)
		}
	}
}

func TestRestoreReplacesTheState(t *testing.T) {
	t.Parallel()
	from, to := newGreeter(), newGreeter()
	greet(t, from, "ann")
	greet(t, from, "ann")
	greet(t, to, "ben")
	write, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	greet(t, from, "ann") // a later turn, which the snapshot doesn't have
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	if err := to.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]uint64{"ann": 2}, to.dump()); diff != "" {
		t.Error(diff)
	}
	if n := greet(t, to, "ann"); n != 3 {
		t.Errorf("the next greeting is number %d, want 3", n)
	}
}

// A new group's state is empty, and travels too.
func TestRestoreOfNothing(t *testing.T) {
	t.Parallel()
	write, err := newGreeter().Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	g := newGreeter()
	greet(t, g, "ann")
	if err := g.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if n := greet(t, g, "ann"); n != 1 {
		t.Errorf("the first greeting is number %d", n)
	}
}

func TestRestoreRefusesAndKeeps(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "null", "[]", `{"ann":`, `{"ann":-1}`, `{"ann":"1"}`} {
		g := newGreeter()
		greet(t, g, "ann")
		if err := g.Restore(strings.NewReader(bad)); err == nil {
			t.Errorf("Restore(%q) was accepted", bad)
		}
		if diff := cmp.Diff(map[string]uint64{"ann": 1}, g.dump()); diff != "" {
			t.Errorf("Restore(%q) changed the state: %s", bad, diff)
		}
	}
}

// write runs concurrently with later turns, and writes none of them: what the race detector is for.
func TestSnapshotIsOfOneMoment(t *testing.T) {
	t.Parallel()
	g := newGreeter()
	greet(t, g, "ann")
	write, err := g.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	var writing sync.WaitGroup
	writing.Go(func() {
		if err := write(&b); err != nil {
			t.Error(err)
		}
	})
	for i := range 1000 {
		greet(t, g, fmt.Sprint("ann", i%10))
	}
	writing.Wait()
	if got := strings.TrimSpace(b.String()); got != `{"ann":1}` {
		t.Errorf("the snapshot is %s", got)
	}
}
