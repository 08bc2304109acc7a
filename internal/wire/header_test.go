package wire

import (
	"encoding/base64"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

func marshal(t testing.TB, h *pb.Header) string {
	t.Helper()
	v, err := MarshalHeader(h)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestRequestHeaderSize: what a request always carries is at most 48 bytes, before base64, for values below 2^49: thousands of years at a million messages a second.
func TestRequestHeaderSize(t *testing.T) {
	t.Parallel()
	const most = 1<<49 - 1
	h := &pb.Header{Session: most, SeqNum: most, SourceEpoch: most, DestEpoch: most, HeldUpTo: most, Outstanding: most}
	if n := len(marshal(t, h)); n > 48 {
		t.Errorf("%d bytes", n)
	}
	ordinary := &pb.Header{Session: 1000, SeqNum: 1 << 20, DestEpoch: 1 << 20, HeldUpTo: 1 << 27, Outstanding: 64}
	if n := base64.RawStdEncoding.EncodedLen(len(marshal(t, ordinary))); n > 28 {
		t.Errorf("an ordinary one has %d bytes in base64", n)
	}
}

// TestParseHeader: what is read, and what isn't.
func TestParseHeader(t *testing.T) {
	t.Parallel()
	full := &pb.Header{
		Session: 1, SeqNum: 2, SourceEpoch: 3, DestEpoch: 4, HeldUpTo: 5, Outstanding: 1, OrderNum: 6, FirstOrderNum: 7, Stable: 8, RequiredSet: 9, AuthorityUs: 10,
		Level: pb.Level_LEVEL_STABLE, Refusal: pb.Refusal_REFUSAL_ANSWERED,
		DestOrderInfo:   []*pb.Run{{Epoch: 1, EpochFirst: 1, First: 2, Count: 3}},
		SourceOrderInfo: []*pb.Run{{Epoch: 1, EpochFirst: 1, First: 2, Count: 3, Sealed: []byte("sealed")}},
	}
	value := marshal(t, full)
	if h, err := ParseHeader([]string{value}); err != nil || !proto.Equal(h, full) {
		t.Errorf("got %v, %v, want %v", h, err, full)
	}
	padding := func(n int) string { // a header of exactly n bytes
		h := &pb.Header{SourceOrderInfo: []*pb.Run{{}}}
		for size := n - 20; ; size++ {
			h.SourceOrderInfo[0].Sealed = make([]byte, size)
			if v := marshal(t, h); len(v) == n {
				return v
			}
		}
	}
	if _, err := ParseHeader([]string{padding(maxHeaderRead)}); err != nil {
		t.Errorf("at the bound: %v", err)
	}
	for name, tt := range map[string]struct {
		values []string
		words  string
	}{
		"none":           {nil, "0 headers under understudy-bin, there must be one"},
		"two":            {[]string{value, value}, "2 headers under understudy-bin, there must be one"},
		"beyond":         {[]string{padding(maxHeaderRead + 1)}, "a header of 8193 bytes; at most 8192 are read"},
		"garbage":        {[]string{"\xff"}, "the header is malformed"},
		"a length":       {[]string{"\x3a\xff\xff\xff\xff\x0f"}, "the header is malformed"},
		"a group":        {[]string{strings.Repeat("\x0b", 8000)}, "the header is malformed"},
		"a wrong type":   {[]string{"\x0a\x01\x00"}, ""},
		"an unknown one": {[]string{"\xf8\x07\x01"}, ""},
	} {
		h, err := ParseHeader(tt.values)
		if tt.words == "" {
			if err != nil || h.GetSession() != 0 {
				t.Errorf("%s: got %v, %v; unknown fields are no error", name, h, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.words) || h != nil {
			t.Errorf("%s: got %v, %v, want %q", name, h, err, tt.words)
		}
	}
}

// TestCheckRequest: a request must say who it is.
func TestCheckRequest(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		h     *pb.Header
		words string
	}{
		"good":              {&pb.Header{Session: 1, SeqNum: 1, Outstanding: 1}, ""},
		"the largest":       {&pb.Header{Session: math.MaxUint64, SeqNum: math.MaxUint64, Outstanding: math.MaxUint64, Level: pb.Level_LEVEL_STABLE}, ""},
		"read-only":         {&pb.Header{Session: 1}, ""},
		"nothing":           {&pb.Header{}, "needs a session"},
		"nil":               {nil, "needs a session"},
		"no session":        {&pb.Header{SeqNum: 1, Outstanding: 1}, "needs a session"},
		"no seqNum":         {&pb.Header{Session: 1, Outstanding: 1}, "seqNum 0 can't have 1 outstanding"},
		"none outstanding":  {&pb.Header{Session: 1, SeqNum: 1}, "seqNum 1 can't have 0 outstanding"},
		"a mark below 0":    {&pb.Header{Session: 1, SeqNum: 1, Outstanding: 2}, "seqNum 1 can't have 2 outstanding"},
		"an unknown level":  {&pb.Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: 4}, "unknown level 4"},
		"a level below 0":   {&pb.Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: -1}, "unknown level -1"},
		"the lowest level":  {&pb.Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: math.MinInt32}, "unknown level"},
		"the highest level": {&pb.Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: math.MaxInt32}, "unknown level"},
	} {
		err := CheckRequest(tt.h)
		if (err == nil) != (tt.words == "") || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: got %v, want %q", name, err, tt.words)
		}
	}
	id, mark := Request(&pb.Header{Session: 3, SeqNum: 10, Outstanding: 4})
	if id != (orderstate.MessageID{Session: 3, SeqNum: 10}) || mark != 6 {
		t.Errorf("got %v, answered up to %d", id, mark)
	}
}

// TestStarts: a table of epochs goes there and back.
func TestStarts(t *testing.T) {
	t.Parallel()
	for _, want := range [][]orderstate.Start{{}, {{Epoch: 1, First: 1}}, {{Epoch: 3, First: 1}, {Epoch: math.MaxUint64, First: math.MaxUint64}, {}}} {
		if got := StartsFromProto(StartsToProto(want)); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// FuzzParseHeader: whatever the metadata has is a header, or an error; a header's own bytes are read as that header, and one that passes CheckRequest names a message above its mark.
func FuzzParseHeader(f *testing.F) {
	f.Add("", false)
	f.Add(marshal(f, &pb.Header{Session: 1, SeqNum: 2, Outstanding: 1, DestEpoch: 3, HeldUpTo: 4, DestOrderInfo: []*pb.Run{{Epoch: 3, EpochFirst: 1, First: 5, Count: 2}}}), false)
	f.Add(marshal(f, &pb.Header{SourceEpoch: 3, OrderNum: 9, SourceOrderInfo: []*pb.Run{{Epoch: 3, EpochFirst: 1, First: 5, Count: 2, Sealed: []byte("x")}}, Refusal: 1}), true)
	f.Add("\x3a\xff\xff\xff\xff\x0f", false)
	f.Fuzz(func(t *testing.T, value string, twice bool) {
		values := []string{value}
		if twice {
			values = append(values, value)
		}
		h, err := ParseHeader(values)
		if (h == nil) != (err != nil) || err == nil && (twice || len(value) > maxHeaderRead) {
			t.Fatalf("got %v, %v", h, err)
		}
		if err != nil {
			return
		}
		again, err := ParseHeader([]string{marshal(t, h)})
		if err == nil && !proto.Equal(h, again) {
			t.Fatalf("%v is read again as %v", h, again)
		}
		if CheckRequest(h) == nil {
			if id, mark := Request(h); id.Session == 0 || id.SeqNum <= mark && (id.SeqNum != 0 || mark != 0) { // 0 and 0: read-only
				t.Fatalf("message %v is answered up to %d", id, mark)
			}
		}
		for _, rs := range [][]*pb.Run{h.GetDestOrderInfo(), h.GetSourceOrderInfo()} {
			if as, err := RunsFromProto(rs); err == nil && len(as) != len(rs) {
				t.Fatalf("%d runs of %d", len(as), len(rs))
			}
		}
	})
}

func BenchmarkMarshalHeader(b *testing.B) {
	h := &pb.Header{Session: 1000, SeqNum: 1 << 20, DestEpoch: 1 << 20, HeldUpTo: 1 << 27, Outstanding: 64}
	b.ReportAllocs()
	for b.Loop() {
		marshal(b, h)
	}
}

func BenchmarkParseHeader(b *testing.B) {
	for name, h := range map[string]*pb.Header{
		"request": {Session: 1000, SeqNum: 1 << 20, DestEpoch: 1 << 20, HeldUpTo: 1 << 27, Outstanding: 64},
		"reply": {SourceEpoch: 1 << 20, OrderNum: 1 << 27, FirstOrderNum: 1 << 26, Stable: 1<<27 - 100, RequiredSet: 3, AuthorityUs: 900_000,
			SourceOrderInfo: []*pb.Run{RunToProto(testSeal().Close(run(7, 1000, ordinary(16, 4)...)), false)}},
	} {
		b.Run(name, func(b *testing.B) {
			values := []string{marshal(b, h)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseHeader(values); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
