package wire

import (
	"bytes"
	"encoding/base64"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// asProto is the same header as the protobuf library has it.
func asProto(h *Header) *pb.Header {
	return &pb.Header{
		Session: uint64(h.Session), SeqNum: uint64(h.SeqNum), SourceEpoch: uint64(h.SourceEpoch),
		DestEpoch: uint64(h.DestEpoch), HeldUpTo: uint64(h.HeldUpTo), Outstanding: uint64(h.Outstanding),
		DestOrderInfo: RunsToProto(h.DestOrderInfo, false), SourceOrderInfo: RunsToProto(h.SourceOrderInfo, false),
		OrderNum: uint64(h.OrderNum), FirstOrderNum: uint64(h.FirstOrderNum), Stable: uint64(h.Stable),
		RequiredSet: h.RequiredSet, AuthorityUs: h.AuthorityUs, Level: h.Level, Refusal: h.Refusal,
		Code: uint32(h.Code), Token: h.Token,
	}
}

func marshal(t testing.TB, h *pb.Header) string {
	t.Helper()
	b, err := proto.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// same compares what two headers say.
func same(a, b *Header) bool { return proto.Equal(asProto(a), asProto(b)) }

// request and reply are what the headers of most calls look like.
var (
	request = &Header{Session: 1000, SeqNum: 1 << 20, DestEpoch: 1 << 20, HeldUpTo: 1 << 27, Outstanding: 64,
		Token: 1<<48 - 1}
	reply = &Header{
		SourceEpoch: 1 << 20, OrderNum: 1 << 27, FirstOrderNum: 1 << 26, Stable: 1<<27 - 100, RequiredSet: 3,
		AuthorityUs:     900_000,
		SourceOrderInfo: []orderstate.Announcement{testSeal().Close(run(7, 1000, ordinary(16, 4)...))},
	}
)

// full has every field.
func full() *Header {
	envelope := orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 2, Count: 3}
	return &Header{
		Session: 1, SeqNum: 2, SourceEpoch: 3, DestEpoch: 4, HeldUpTo: 5, Outstanding: 1, OrderNum: 6, FirstOrderNum: 7,
		Stable: 8, RequiredSet: 9, AuthorityUs: 10,
		Level: pb.Level_LEVEL_STABLE, Refusal: pb.Refusal_REFUSAL_ANSWERED, Code: codes.DataLoss, Token: 11,
		DestOrderInfo: []orderstate.Announcement{{Envelope: envelope},
			{Envelope: orderstate.Envelope{Epoch: 9, EpochFirst: 9, First: math.MaxUint64, Count: 1}}},
		SourceOrderInfo: []orderstate.Announcement{{Envelope: envelope, Sealed: []byte("sealed")}},
	}
}

// TestHeaderIsProtobuf: every field is where header.proto has it, in both directions; Size is what
// AppendTo adds.
func TestHeaderIsProtobuf(t *testing.T) {
	t.Parallel()
	v := reflect.ValueOf(full()).Elem()
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() && v.Field(i).IsZero() {
			t.Errorf("the full header has no %s", v.Type().Field(i).Name)
		}
	}
	const most = math.MaxUint64
	for _, h := range []*Header{
		{}, request, reply, full(),
		{Session: most, SeqNum: most, SourceEpoch: most, DestEpoch: most, HeldUpTo: most, Outstanding: most,
			OrderNum: most, FirstOrderNum: most, Stable: most, RequiredSet: most, AuthorityUs: most, Token: most},
		{Level: -1, Refusal: math.MaxInt32, Code: math.MaxUint32},
	} {
		b := h.AppendTo([]byte("before"))[len("before"):]
		if len(b) != h.Size() {
			t.Errorf("%+v has %d bytes, and says %d", h, len(b), h.Size())
		}
		p := new(pb.Header)
		if err := proto.Unmarshal(b, p); err != nil || !proto.Equal(p, asProto(h)) {
			t.Errorf("the protobuf library reads %+v as %v, %v", h, p, err)
		}
		again := new(Header)
		if err := again.Parse([]byte(marshal(t, asProto(h)))); err != nil || !same(again, h) {
			t.Errorf("%+v is read as %+v, %v", h, again, err)
		}
	}
}

// TestRequestHeaderSize: what a request always carries is at most 57 bytes, before base64, for
// values below 2^49: thousands of years at a million messages a second.
func TestRequestHeaderSize(t *testing.T) {
	t.Parallel()
	const most = 1<<49 - 1
	if n := (&Header{Session: most, SeqNum: most, SourceEpoch: most, DestEpoch: most, HeldUpTo: most, Outstanding: most,
		Token: most}).Size(); n > 57 {
		t.Errorf("%d bytes", n)
	}
	if n := base64.RawStdEncoding.EncodedLen(request.Size()); n > 40 {
		t.Errorf("an ordinary one has %d bytes in base64", n)
	}
}

// TestHeadersThatAreReadAndThatArent: what is read, and what isn't.
func TestHeadersThatAreReadAndThatArent(t *testing.T) {
	t.Parallel()
	value := full().MetadataValue()
	padding := func(n int) string { // a header of exactly n bytes
		h := full()
		for size := n - 100; ; size++ {
			h.SourceOrderInfo[0].Sealed = make([]byte, size)
			if h.Size() == n {
				return h.MetadataValue()
			}
		}
	}
	h := new(Header)
	if err := h.FromMetadata([]string{padding(maxHeaderRead)}); err != nil || h.Session != 1 {
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
		"no number":      {[]string{"\x08"}, "the header is malformed"},
		"a long number":  {[]string{"\x08" + strings.Repeat("\xff", 11)}, "the header is malformed"},
		"field 0":        {[]string{"\x00\x00"}, "the header is malformed"},
		"a group":        {[]string{strings.Repeat("\x0b", 8000)}, "the header is malformed"},
		"a run's length": {[]string{marshal(t, &pb.Header{}) + "\x3a\x02\x2a\x09"}, "the header is malformed"},
		"an empty run":   {[]string{"\x3a\x00"}, "has a field of 0"},
		"a wrong type":   {[]string{"\x0a\x01\x00"}, ""},
		"a fixed one":    {[]string{"\x09\x01\x00\x00\x00\x00\x00\x00\x00"}, ""},
		"an unknown one": {[]string{"\xf8\x07\x01"}, ""},
	} {
		err := h.FromMetadata(tt.values)
		if tt.words == "" {
			if err != nil || h.Session != 0 {
				t.Errorf("%s: got %v, %v; unknown fields are no error", name, h, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: got %v, want %q", name, err, tt.words)
		}
	}
}

// TestHeaderComesOffAMessageAgain: a header goes in front of a message and comes off again,
// whatever the message is; one without stays as it is.
func TestHeaderComesOffAMessageAgain(t *testing.T) {
	t.Parallel()
	for _, message := range []string{"", "x", headerTag, string(full().AppendFront(nil)) + "again"} {
		h := new(Header)
		rest, carried, err := h.FromMessage(append(full().AppendFront(nil), message...))
		if err != nil || !carried || !same(h, full()) || string(rest) != message {
			t.Errorf("got %+v, %q, %v", h, rest, err)
		}
	}
	for _, message := range []string{"", "x", headerTag[1:], headerTag[:4]} {
		if rest, carried, err := new(Header).FromMessage([]byte(message)); carried || string(rest) != message ||
			err != nil {
			t.Errorf("got %q, %v of %q", rest, err, message)
		}
	}
	if rest, carried, err := new(Header).FromMessage([]byte(headerTag + "\x00rest")); err != nil || !carried ||
		string(rest) != "rest" {
		t.Errorf("got %q, %v of an empty header", rest, err)
	}
	for _, message := range []string{headerTag, headerTag + "\x01", headerTag +
		"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"} {
		if rest, carried, err := new(Header).FromMessage([]byte(message)); err == nil || carried || rest != nil {
			t.Errorf("got %q of %q", rest, message)
		}
	}
	// To whoever doesn't know the field it is an unknown one.
	p := new(pb.MessageID)
	if err := proto.Unmarshal(append(full().AppendFront(nil), "\x08\x07"...), p); err != nil || p.Session != 7 {
		t.Errorf("got %v, %v", p, err)
	}
}

// TestRequestsSayWhoTheyAre: a request must say who it is.
func TestRequestsSayWhoTheyAre(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		h     *Header
		words string
	}{
		"good": {&Header{Session: 1, SeqNum: 1, Outstanding: 1}, ""},
		"the largest": {&Header{Session: math.MaxUint64, SeqNum: math.MaxUint64, Outstanding: math.MaxUint64,
			Level: pb.Level_LEVEL_STABLE}, ""},
		"read-only":         {&Header{Session: 1}, ""},
		"nothing":           {&Header{}, "needs a session"},
		"no session":        {&Header{SeqNum: 1, Outstanding: 1}, "needs a session"},
		"no seqNum":         {&Header{Session: 1, Outstanding: 1}, "seqNum 0 can't have 1 outstanding"},
		"none outstanding":  {&Header{Session: 1, SeqNum: 1}, "seqNum 1 can't have 0 outstanding"},
		"a mark below 0":    {&Header{Session: 1, SeqNum: 1, Outstanding: 2}, "seqNum 1 can't have 2 outstanding"},
		"an unknown level":  {&Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: 4}, "unknown level 4"},
		"a level below 0":   {&Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: -1}, "unknown level -1"},
		"the lowest level":  {&Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: math.MinInt32}, "unknown level"},
		"the highest level": {&Header{Session: 1, SeqNum: 1, Outstanding: 1, Level: math.MaxInt32}, "unknown level"},
	} {
		err := CheckRequest(tt.h)
		if (err == nil) != (tt.words == "") || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: got %v, want %q", name, err, tt.words)
		}
	}
	id, mark := (&Header{Session: 3, SeqNum: 10, Outstanding: 4}).Request()
	if id != (orderstate.MessageID{Session: 3, SeqNum: 10}) || mark != 6 {
		t.Errorf("got %v, answered up to %d", id, mark)
	}
}

// TestStartsAreReadAsWritten: a table of epochs goes there and back.
func TestStartsAreReadAsWritten(t *testing.T) {
	t.Parallel()
	for _, want := range [][]orderstate.Start{{}, {{Epoch: 1, First: 1}},
		{{Epoch: 3, First: 1}, {Epoch: math.MaxUint64, First: math.MaxUint64}, {}}} {
		if got := StartsFromProto(StartsToProto(want)); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// FuzzParseHeader: whatever carries a header has one, or an error; it is what the protobuf library
// reads, and its own bytes are read as that header; one that passes CheckRequest names a message
// above its mark.
func FuzzParseHeader(f *testing.F) {
	for _, h := range []*Header{{}, request, reply, full(), {SourceEpoch: 3, OrderNum: 9, Refusal: 1, Level: -5}} {
		f.Add(h.MetadataValue(), false)
		f.Add(marshal(f, asProto(h)), true)
	}
	f.Add("\x3a\xff\xff\xff\xff\x0f", false)
	f.Fuzz(func(t *testing.T, value string, inMessage bool) {
		h := &Header{Session: 77, SourceOrderInfo: make([]orderstate.Announcement, 3)} // what is read replaces it
		var err error
		if inMessage {
			message := protowire.AppendString(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType),
				value)
			var rest []byte
			if rest, _, err = h.FromMessage(append(message, "rest"...)); err == nil && string(rest) != "rest" {
				t.Fatalf("%q is left", rest)
			}
		} else {
			err = h.FromMetadata([]string{value})
		}
		if err == nil && len(value) > maxHeaderRead {
			t.Fatalf("%d bytes are read", len(value))
		}
		p := new(pb.Header)
		known := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(value), p)
		if err != nil {
			_, dest := RunsFromProto(p.DestOrderInfo)
			_, source := RunsFromProto(p.SourceOrderInfo)
			if known == nil && dest == nil && source == nil && len(value) <= maxHeaderRead {
				t.Fatalf("%v, and the protobuf library reads %v", err, p)
			}
			return
		}
		if known != nil || !proto.Equal(p, asProto(h)) {
			t.Fatalf("%+v; the protobuf library reads %v, %v", h, p, known)
		}
		b := h.AppendTo(nil)
		again := new(Header)
		if err := again.Parse(b); len(b) != h.Size() || err != nil || !bytes.Equal(again.AppendTo(nil), b) {
			t.Fatalf("%+v is read again as %+v, %v", h, again, err)
		}
		if CheckRequest(h) == nil {
			// 0 and 0: read-only
			if id, mark := h.Request(); id.Session == 0 || id.SeqNum <= mark && (id.SeqNum != 0 || mark != 0) {
				t.Fatalf("message %v is answered up to %d", id, mark)
			}
		}
	})
}

func BenchmarkHeader(b *testing.B) {
	for name, h := range map[string]*Header{"request": request, "reply": reply} {
		b.Run(name+"/write", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.AppendFront(make([]byte, 0, h.SizeFront()))
			}
		})
		b.Run(name+"/read", func(b *testing.B) {
			message := h.AppendFront(nil)
			b.ReportAllocs()
			h := new(Header)
			for b.Loop() {
				if _, _, err := h.FromMessage(message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
