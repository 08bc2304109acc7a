package replica

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

func TestRawIsItsBytes(t *testing.T) {
	t.Parallel()
	want, err := proto.Marshal(wrapperspb.String("hello"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(raw)
	r.set(nil)
	if err := proto.Unmarshal(want, r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.b, want) {
		t.Errorf("unmarshalled %x, want %x", r.b, want)
	}
	got, err := proto.MarshalOptions{}.MarshalAppend([]byte("x"), r)
	if err != nil || !bytes.Equal(got, append([]byte("x"), want...)) {
		t.Errorf("marshalled %x, %v, want x and %x", got, err, want)
	}
	if n := proto.Size(r); n != len(want) {
		t.Errorf("size %d, want %d", n, len(want))
	}
}

// TestRequestKeepsNothingOfItsHeader: the log pins a request's bytes, and counts its message's
// only; and gRPC takes back the buffer that both came in.
func TestRequestKeepsNothingOfItsHeader(t *testing.T) {
	t.Parallel()
	sealed := bytes.Repeat([]byte("s"), 4<<10)
	h := wire.Header{Session: 7, SeqNum: 9, Outstanding: 1}
	h.Announce(orderstate.Announcement{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 1, Count: 1},
		Sealed: bytes.Clone(sealed)})
	front := h.AppendFront(nil)
	for _, message := range []string{"", "hello"} {
		buf := append(bytes.Clone(front), message...)
		var got wire.Header
		r := received(t, buf, &got)
		clear(buf)
		switch {
		case r.malformed != nil || !r.carried || string(r.b) != message:
			t.Errorf("%q was received as %q, with a header: %v, %v", message, r.b, r.carried, r.malformed)
		case cap(r.b) > 32:
			t.Errorf("a message of %d bytes keeps %d", len(message), cap(r.b))
		case got.SeqNum != 9 || len(got.SourceOrderInfo) != 1 || !bytes.Equal(got.SourceOrderInfo[0].Sealed, sealed):
			t.Errorf("the header was received as %+v", &got)
		}

		var none wire.Header
		if r := received(t, []byte(message), &none); r.malformed != nil || r.carried || string(r.b) != message {
			t.Errorf("%q was received as %q, with a header: %v, %v", message, r.b, r.carried, r.malformed)
		}
	}
	for _, cut := range []int{len(front) - 1, 10} {
		if r := received(t, front[:cut], new(wire.Header)); r.malformed == nil || r.b != nil {
			t.Errorf("%d bytes of a header of %d: %v, and %d bytes", cut, len(front), r.malformed, len(r.b))
		}
	}
}

// received is a request as gRPC's codec reads it.
func received(t *testing.T, b []byte, h *wire.Header) *raw {
	t.Helper()
	r := new(raw)
	r.set(nil)
	r.header = h
	if err := proto.Unmarshal(b, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// BenchmarkReceive is what it costs to read a request, whose header it carries.
func BenchmarkReceive(b *testing.B) {
	h := wire.Header{Session: 7, SeqNum: 9, Outstanding: 1, SourceEpoch: 1, DestEpoch: 1, HeldUpTo: 100}
	buf := append(h.AppendFront(nil), make([]byte, 100)...)
	b.ReportAllocs()
	for range b.N {
		c := new(call)
		c.request.set(nil)
		c.request.header = &c.header
		if err := proto.Unmarshal(buf, &c.request); err != nil || !c.request.carried {
			b.Fatal(err)
		}
	}
}
