package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/understudy-rpc/understudy/bench/counter"
)

func add(t *testing.T, a *adder, key string, delta int64) {
	t.Helper()
	if _, err := a.Add(t.Context(), &counter.AddRequest{Key: key, Delta: delta}); err != nil {
		t.Fatal(err)
	}
}

func TestAdder(t *testing.T) {
	t.Parallel()
	a, b, other := newAdder(), newAdder(), newAdder()
	add(t, a, "x", 1)
	add(t, a, "y", 2)
	add(t, other, "y", 2)
	add(t, other, "x", 1)
	if a.state().Sum != other.state().Sum || a.state() == other.state() {
		t.Errorf("in another order: %+v, %+v", a.state(), other.state())
	}
	write, err := a.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	was := a.state()
	add(t, a, "x", 1) // isn't in the snapshot
	var snapshot bytes.Buffer
	if err := write(&snapshot); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(&snapshot); err != nil || b.state() != was {
		t.Errorf("restored %+v, want %+v; %v", b.state(), was, err)
	}
	add(t, b, "x", 1)
	if a.state() != b.state() {
		t.Errorf("%+v after a restore, %+v without", b.state(), a.state())
	}
}

func TestFill(t *testing.T) {
	t.Parallel()
	a := newAdder()
	was := a.state()
	a.fill(3)
	if len(a.values) != 3 || a.state() != was {
		t.Errorf("%d keys, %+v", len(a.values), a.state())
	}
}

// A process counts its own side of each connection.
func TestMeter(t *testing.T) {
	t.Parallel()
	servers, clients := newMeter(0), newMeter(0)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metered := servers.listen(lis)
	defer metered.Close()
	go func() {
		conn, err := metered.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var b [5]byte
		_, _ = io.ReadFull(conn, b[:])
		fmt.Fprint(conn, "welcome")
	}()
	conn, err := clients.dial(t.Context(), lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	if b, err := io.ReadAll(conn); string(b) != "welcome" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	got := clients.flows().Dialled[lis.Addr().String()]
	if got.In != 7 || got.Out != 5 || got.Writes != 1 || got.Reads == 0 {
		t.Errorf("the client counts %+v", got)
	}
	if s := servers.flows().Accepted; s.In != 5 || s.Out != 7 || s.Writes != 1 {
		t.Errorf("the server counts %+v", s)
	}
	if s := servers.flows().Peers; s != (traffic{}) {
		t.Errorf("nobody dialled a server: %+v", s)
	}
}

func TestShares(t *testing.T) {
	t.Parallel()
	const grpc, http2 = "google.golang.org/grpc", "golang.org/x/net/http2"
	for _, c := range []struct {
		want  string
		stack []string // innermost first
	}{
		{"garbage collection",
			[]string{"runtime.scanobject", "runtime.gcAssistAlloc", "runtime.mallocgc", library +
				"transport.(*link).send"}},
		{"growing stacks", []string{"runtime.copystack", "runtime.newstack", library + "replica.(*Replica).Handle"}},
		{"digests and MACs",
			[]string{"crypto/sha256.block", library + "internal/wire.(*Seal).Digest", library +
				"replica.(*attachment).take"}},
		{"order: orderstate",
			[]string{"runtime.mapassign", library + "orderstate.(*Primary).Order", library + "replica.(*call).turn"}},
		{"our header: protobuf",
			[]string{"google.golang.org/protobuf/proto.Marshal", library + "internal/wire.MarshalHeader", library +
				"transport.(*call).next"}},
		{"HTTP/2 headers: HPACK, base64, lists",
			[]string{http2 + "/hpack.(*Encoder).WriteField", grpc + "/internal/transport.(*loopyWriter).writeHeader"}},
		{"frames to backups",
			[]string{"google.golang.org/protobuf/proto.Marshal", grpc + ".(*clientStream).SendMsg", library +
				"transport.(*link).send"}},
		{"the handler, and its turn",
			[]string{"main.(*adder).Add", library + "replica.(*incarnation).execute", grpc + ".(*Server).processRPC"}},
		{"the rest of the library",
			[]string{"context.WithCancel", library + "transport.(*call).next", grpc + ".(*ClientConn).Invoke"}},
		{"the rest of gRPC",
			[]string{"runtime.memmove", grpc + ".(*clientStream).SendMsg", library + "transport.(*call).run", grpc +
				".(*ClientConn).Invoke"}},
		{"the bench's caller", []string{"time.now", "main.(*load).call"}},
		{elsewhere, []string{"runtime.main"}},
	} {
		if got := shareOf(c.stack); got != c.want {
			t.Errorf("%v is %q, want %q", c.stack, got, c.want)
		}
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	led := func(epoch uint64, members int) serverReport {
		return serverReport{Standing: standing{Leads: true, Epoch: epoch, Members: members}}
	}
	follows := serverReport{Standing: standing{Epoch: 7}}
	v := view{follows, led(7, 3), follows}
	if err := v.whole(); err != nil || v.leader() != 1 {
		t.Errorf("leader %d, %v", v.leader(), err)
	}
	for _, other := range []view{{follows, follows, follows}, {follows, led(7, 2), follows},
		{follows, led(7, 3), led(8, 2)}} {
		if other.whole() == nil {
			t.Errorf("%+v is whole", other)
		}
	}
	if disturbed(v, v) {
		t.Error("a quiet group is disturbed")
	}
	logged := follows
	logged.Standing.Events++
	for _, after := range []view{{follows, follows, led(7, 3)}, {follows, led(8, 3), follows},
		{follows, led(7, 3), logged}} {
		if !disturbed(v, after) {
			t.Errorf("%+v isn't disturbed", after)
		}
	}
}
