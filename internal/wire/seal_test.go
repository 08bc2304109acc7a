package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/understudy-rpc/understudy/orderstate"
)

// testSeal is keyed with what no group has.
func testSeal() *Seal { return NewSeal([]byte("a secret of thirty-two bytes....")) }

// run makes a run of epoch e from first on; its entries get their orderNums.
func run(e orderstate.Epoch, first orderstate.OrderNum, entries ...orderstate.OrderInfo) orderstate.Run {
	for i := range entries {
		entries[i].OrderNum = first + orderstate.OrderNum(i)
	}
	return orderstate.Run{Envelope: orderstate.Envelope{Epoch: e, EpochFirst: 1, First: first, Count: len(entries)},
		Entries: entries}
}

func equal(a, b orderstate.Run) bool {
	return a.Envelope == b.Envelope && slices.Equal(a.Entries, b.Entries)
}

// ordinary makes n entries of so many sessions, as a primary does: seqNums in order, times a few
// microseconds apart.
func ordinary(n, sessions int) []orderstate.OrderInfo {
	rng := rand.New(rand.NewPCG(1, 2))
	next := make([]orderstate.SeqNum, sessions)
	time := int64(1_700_000_000_000_000)
	entries := make([]orderstate.OrderInfo, n)
	for i := range entries {
		s := rng.IntN(sessions)
		next[s]++
		time += int64(rng.IntN(100))
		entries[i] = orderstate.OrderInfo{Session: orderstate.Session(1 + s), SeqNum: 1000 + next[s], First: 7,
			Time: time, Digest: rng.Uint64() >> 16}
	}
	return entries
}

const digestMax = 1<<48 - 1

// TestWhatIsSealedOpensAsItWas: what is closed is what is opened.
func TestWhatIsSealedOpensAsItWas(t *testing.T) {
	t.Parallel()
	open := func(s orderstate.Session) orderstate.OrderInfo {
		return orderstate.OrderInfo{Kind: orderstate.Open, Session: s, First: 7, Time: 5, Digest: 1}
	}
	most := orderstate.OrderInfo{Kind: orderstate.Timer, Session: math.MaxUint64, SeqNum: math.MaxUint64,
		First: math.MaxUint64, Time: math.MaxInt64, Digest: digestMax}
	least := orderstate.OrderInfo{Time: math.MinInt64}
	for name, r := range map[string]orderstate.Run{
		"nothing":              run(7, 1),
		"one":                  run(7, 1, ordinary(1, 1)...),
		"one session":          run(7, 100, ordinary(100, 1)...),
		"as many as the table": run(7, 100, ordinary(1000, tableSize)...),
		"one more":             run(7, 100, ordinary(1000, tableSize+1)...),
		"twice the table":      run(7, 100, ordinary(1000, 2*tableSize)...),
		"a session each":       run(7, 100, ordinary(3000, 2000)...),
		"openings and requests": run(7, 3, open(3), open(4),
			orderstate.OrderInfo{Session: 3, SeqNum: 1, First: 7, Time: 6, Digest: 2}, open(6),
			orderstate.OrderInfo{Session: 6, SeqNum: 1, First: 7, Time: 6, Digest: 2}),
		"expiry": run(7, 3, open(3),
			orderstate.OrderInfo{Kind: orderstate.Expire, Session: 3, First: 7, Time: 6},
			orderstate.OrderInfo{Kind: orderstate.Expire, Session: 2, First: 7, Time: 6}),
		"notes": run(7, 3, open(3),
			orderstate.OrderInfo{Kind: orderstate.Break, Session: 3, SeqNum: 1, First: 7, Time: 6},
			orderstate.OrderInfo{Kind: orderstate.Mark, Session: 3, SeqNum: 2, First: 7, Time: 6},
			orderstate.OrderInfo{Kind: orderstate.Outcome, SeqNum: 1, First: 7, Time: 6, Digest: 2},
			orderstate.OrderInfo{Kind: orderstate.Timer, SeqNum: 2, First: 6, Time: 7}),
		"first ordered before": run(7, 3,
			orderstate.OrderInfo{Session: 1, SeqNum: 9, First: 6, Time: 6, Digest: 2},
			orderstate.OrderInfo{Session: 1, SeqNum: 10, First: 7, Time: 6, Digest: 2},
			orderstate.OrderInfo{Session: 1, SeqNum: 11, First: 3, Time: 6}),
		"the largest of all":     run(math.MaxUint64, math.MaxUint64, most),
		"the largest, and after": run(math.MaxUint64, 1, most, least, most, least),
		"seqNums that go back": run(7, 1, orderstate.OrderInfo{Session: 1, SeqNum: 5},
			orderstate.OrderInfo{Session: 1, SeqNum: 4}, orderstate.OrderInfo{Session: 1, SeqNum: 4}),
		"seqNum 1 of sessions that have left the table": run(7, 1,
			slices.Repeat([]orderstate.OrderInfo{{Session: 1, SeqNum: 1}, {Session: 2, SeqNum: 1}}, 2)...),
		"as long as can be": run(7, 1, ordinary(MaxRun, 5)...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := testSeal().Close(r)
			if a.Envelope != r.Envelope {
				t.Errorf("the announcement's envelope is %v, want %v", a.Envelope, r.Envelope)
			}
			got, err := testSeal().Open(a)
			if err != nil || !equal(got, r) {
				t.Errorf("got %v, want %v; %v", got, r, err)
			}
		})
	}
}

// TestPackedBytes: a kind's bytes are what they were, whatever is added.
func TestPackedBytes(t *testing.T) {
	t.Parallel()
	r := run(7, 3)
	for k := orderstate.Request; k <= orderstate.Timer; k++ {
		r.Entries = append(r.Entries, orderstate.OrderInfo{Kind: k, Session: 3, SeqNum: 1 + orderstate.SeqNum(k)/2,
			First: 7 - orderstate.Epoch(k)%2, Time: 10, Digest: 1})
	}
	want := "18" + "03" + "14" + "000000000001" + // request, the first of a session
		"05" + "00" + "01" + "06" + "00" + "000000000001" + // open, from the epoch before
		"1e" + "00" + "00" + "000000000001" + // expire
		"07" + "01" + "00" + "02" + "06" + "00" + "000000000001" + // break
		"1f" + "02" + "00" + "00" + "000000000001" + // mark
		"07" + "03" + "00" + "03" + "06" + "00" + "000000000001" + // outcome
		"1f" + "04" + "00" + "00" + "000000000001" // timer
	if got := hex.EncodeToString(pack(nil, r)); got != want {
		t.Errorf("packed\n%s, want\n%s", got, want)
	}
}

// TestBusySessionsEntriesTakeADozenBytes: an entry of a busy session takes about a dozen bytes.
func TestBusySessionsEntriesTakeADozenBytes(t *testing.T) {
	t.Parallel()
	for _, sessions := range []int{1, 10, tableSize} {
		const n = 64
		if got := len(testSeal().Close(run(7, 1000, ordinary(n, sessions)...)).Sealed); got > 13*n+10*sessions+macSize {
			t.Errorf("%d entries of %d sessions take %d bytes", n, sessions, got)
		}
	}
}

// TestForgeries: nothing can be changed in a sealed run, nor can it be opened with another key.
func TestForgeries(t *testing.T) {
	t.Parallel()
	s := testSeal()
	a := s.Close(run(7, 100, ordinary(20, 3)...))
	forged := func(what string, a orderstate.Announcement) {
		t.Helper()
		if r, err := s.Open(a); !errors.Is(err, ErrForged) || len(r.Entries) > 0 {
			t.Errorf("%s: got %v, %v", what, r, err)
		}
	}
	for i := range a.Sealed {
		for bit := range 8 {
			b := orderstate.Announcement{Envelope: a.Envelope, Sealed: slices.Clone(a.Sealed)}
			b.Sealed[i] ^= 1 << bit
			forged(fmt.Sprintf("bit %d of byte %d", bit, i), b)
		}
		forged(fmt.Sprintf("cut at %d", i), orderstate.Announcement{Envelope: a.Envelope, Sealed: a.Sealed[:i]})
	}
	for what, change := range map[string]func(*orderstate.Envelope){
		"epoch": func(e *orderstate.Envelope) {
			e.Epoch++
		}, "its start": func(e *orderstate.Envelope) { e.EpochFirst++ },
		"first": func(e *orderstate.Envelope) { e.First-- }, "count": func(e *orderstate.Envelope) { e.Count-- },
		"count and first": func(e *orderstate.Envelope) {
			e.First++
			e.Count--
		}, "no envelope": func(e *orderstate.Envelope) { *e = orderstate.Envelope{} },
		"a count below 0": func(e *orderstate.Envelope) { e.Count = -1 },
	} {
		b := a
		change(&b.Envelope)
		forged(what, b)
	}
	forged("nothing", orderstate.Announcement{Envelope: a.Envelope})
	forged("a zero more", orderstate.Announcement{Envelope: a.Envelope, Sealed: append(slices.Clone(a.Sealed), 0)})
	if _, err := NewSeal([]byte("another")).Open(a); !errors.Is(err, ErrForged) {
		t.Errorf("another group's: %v", err)
	}
	secret := []byte("a secret of thirty-two bytes....")
	keyed := NewSeal(secret)
	secret[0]++
	if _, err := keyed.Open(a); err != nil {
		t.Errorf("a seal's key changed with its caller's slice: %v", err)
	}
}

// sealed seals bytes that no primary packs.
func sealed(s *Seal, e orderstate.Envelope, packed []byte) orderstate.Announcement {
	m := s.macs.Get().(*mac)
	defer s.macs.Put(m)
	return orderstate.Announcement{Envelope: e, Sealed: append(slices.Clone(packed), m.tag(e, packed)...)}
}

// TestMalformedRunsAreRefused: what a key's holder has packed wrongly is an error, and nothing is
// allocated for what it declares.
func TestMalformedRunsAreRefused(t *testing.T) {
	t.Parallel()
	s := testSeal()
	digest := []byte{1, 2, 3, 4, 5, 6}
	entry := func(b ...byte) []byte { return append(b, digest...) }
	good := entry(flagNext|flagFirst, 9, 0)
	for name, tt := range map[string]struct {
		count  int
		packed []byte
		words  string
	}{
		"more entries than bytes":  {2, good, "can't have 2 entries in 9 bytes"},
		"a count below 0":          {-1, good, "can't have"},
		"a count beyond the bound": {MaxRun + 1, make([]byte, 10*(MaxRun+1)), "can't have"},
		"the largest count":        {math.MaxInt, good, "can't have"},
		"bytes too many":           {1, append(slices.Clone(good), 0), "1 bytes too many"},
		"no entries, and bytes":    {0, good, "9 bytes too many"},
		"a place that isn't there": {1, entry(flagKnown|flagNext|flagFirst, 0, 0), "refers to session place 0 of 0"},
		"a place far away": {1,
			entry(flagKnown|flagNext|flagFirst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0),
			"refers to session place"},
		"a note before the first": {1, entry(kindNote|flagNext|flagFirst, 0, 9, 0), "note of an unknown kind"},
		"a note after the last": {1, entry(kindNote|flagNext|flagFirst, 5, 9, 0),
			"unknown kind: another version has sealed it: 5, entry 0"},
		"the highest note": {1, entry(kindNote|flagNext|flagFirst, 255, 9, 0), "note of an unknown kind"},
		"a note without its kind": {2, append(entry(flagNext|flagFirst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
			0xff, 0x01, 0), flagNext|flagFirst|kindNote), "malformed at entry 1"},
		"a varint that doesn't end": {1,
			entry(flagNext|flagFirst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
			"malformed at entry 0"},
		"a varint over 64 bits": {1,
			entry(flagNext|flagFirst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0),
			"malformed at entry 0"},
		"cut in a varint": {1, append([]byte{flagNext | flagFirst}, bytes.Repeat([]byte{0xff}, 9)...),
			"malformed at entry 0"},
		"cut in the digest": {2, append(slices.Clone(good), flagNext|flagFirst, 9, 0, 1, 2, 3, 4),
			"malformed at entry 1"},
	} {
		e := orderstate.Envelope{Epoch: 7, EpochFirst: 1, First: 1, Count: tt.count}
		r, err := s.Open(sealed(s, e, tt.packed))
		if err == nil || !strings.Contains(err.Error(), tt.words) || errors.Is(err, ErrForged) || len(r.Entries) > 0 {
			t.Errorf("%s: got %v, %v, want %q", name, r, err, tt.words)
		}
	}
	if r, err := s.Open(sealed(s, orderstate.Envelope{Epoch: 7, EpochFirst: 1, First: 5, Count: 1},
		good)); err != nil ||
		!slices.Equal(r.Entries,
			[]orderstate.OrderInfo{{OrderNum: 5, Session: 9, SeqNum: 1, First: 7, Digest: 0x010203040506}}) {
		t.Errorf("the good one: %v, %v", r, err)
	}
}

// TestDigestDependsOnAllThatIsExecuted: it depends on all that is executed, on the key, and on what
// it is a digest of.
func TestDigestDependsOnAllThatIsExecuted(t *testing.T) {
	t.Parallel()
	s := testSeal()
	id := orderstate.MessageID{Session: 1, SeqNum: 2}
	nonce := orderstate.Nonce([]byte("sixteen bytes..."))
	seen := map[uint64]string{}
	for what, d := range map[string]uint64{
		"a message":         s.Digest(id, 1, "/a/b", []byte("payload")),
		"another session":   s.Digest(orderstate.MessageID{Session: 2, SeqNum: 2}, 1, "/a/b", []byte("payload")),
		"another seqNum":    s.Digest(orderstate.MessageID{Session: 1, SeqNum: 3}, 1, "/a/b", []byte("payload")),
		"another mark":      s.Digest(id, 0, "/a/b", []byte("payload")),
		"another method":    s.Digest(id, 1, "/a/c", []byte("payload")),
		"another payload":   s.Digest(id, 1, "/a/b", []byte("payloae")),
		"another boundary":  s.Digest(id, 1, "/a/bp", []byte("ayload")),
		"no payload":        s.Digest(id, 1, "/a/b", nil),
		"another key":       NewSeal([]byte("another")).Digest(id, 1, "/a/b", []byte("payload")),
		"an opening":        s.DigestOpening(nonce),
		"its nonce as text": s.Digest(orderstate.MessageID{}, 0, "", nonce[:]),
		"another opening":   s.DigestOpening(orderstate.Nonce{}),
	} {
		if other, ok := seen[d]; ok || d > digestMax || d == 0 {
			t.Errorf("%s and %s have digest %x", what, other, d)
		}
		seen[d] = what
	}
	if a, b := s.Digest(id, 1, "/a/b", []byte("payload")), testSeal().Digest(id, 1, "/a/b", []byte("payload")); a != b {
		t.Errorf("one message has the digests %x and %x", a, b)
	}
}

// TestTokenIsOfSessionNonceAndKey: it depends on the session, its nonce and the key, is no digest,
// and never 0.
func TestTokenIsOfSessionNonceAndKey(t *testing.T) {
	t.Parallel()
	s := testSeal()
	nonce := orderstate.Nonce([]byte("sixteen bytes..."))
	seen := map[uint64]string{}
	for what, token := range map[string]uint64{
		"a session":       s.Token(1, nonce),
		"another session": s.Token(2, nonce),
		"the last one":    s.Token(math.MaxUint64, nonce),
		"another nonce":   s.Token(1, orderstate.Nonce{}),
		"another key":     NewSeal([]byte("another")).Token(1, nonce),
		"the opening":     s.DigestOpening(nonce),
		"a message":       s.Digest(orderstate.MessageID{Session: 1}, 0, "", nonce[:]),
	} {
		if other, ok := seen[token]; ok || token > digestMax || token == 0 {
			t.Errorf("%s and %s have token %x", what, other, token)
		}
		seen[token] = what
	}
	if a, b := s.Token(1, nonce), testSeal().Token(1, nonce); a != b {
		t.Errorf("one session has the tokens %x and %x", a, b)
	}
}

// TestSealConcurrently uses one seal from everywhere.
func TestSealConcurrently(t *testing.T) {
	t.Parallel()
	s := testSeal()
	want := s.Digest(orderstate.MessageID{Session: 1, SeqNum: 1}, 0, "/m", []byte("x"))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for k := range 50 {
				r := run(7, orderstate.OrderNum(1+k), ordinary(1+i*k, 1+i)...)
				if got, err := s.Open(s.Close(r)); err != nil || !equal(got, r) {
					t.Errorf("got %v, %v, want %v", got, err, r)
				}
				if got := s.Digest(orderstate.MessageID{Session: 1, SeqNum: 1}, 0, "/m", []byte("x")); got != want {
					t.Errorf("digest %x, want %x", got, want)
				}
			}
		})
	}
	all.Wait()
}

// FuzzSealOpen: whatever run is closed opens as it was, and not if a bit of it has changed.
func FuzzSealOpen(f *testing.F) {
	f.Add(uint64(7), uint64(1), []byte{}, uint(0))
	f.Add(uint64(7), uint64(100), []byte("some entries of a run, a few sessions among them"), uint(77))
	f.Add(uint64(math.MaxUint64), uint64(math.MaxUint64-3), bytes.Repeat([]byte{0xff, 0, 1}, 50), uint(1<<20))
	f.Fuzz(func(t *testing.T, epoch, first uint64, data []byte, bit uint) {
		r := run(orderstate.Epoch(epoch), orderstate.OrderNum(first), entriesOf(data)...)
		s := testSeal()
		a := s.Close(r)
		if got, err := s.Open(a); err != nil || !equal(got, r) {
			t.Fatalf("got %v, %v, want %v", got, err, r)
		}
		a.Sealed[bit/8%uint(len(a.Sealed))] ^= 1 << (bit % 8)
		if r, err := s.Open(a); !errors.Is(err, ErrForged) || len(r.Entries) > 0 {
			t.Fatalf("bit %d: got %v, %v", bit, r, err)
		}
	})
}

// entriesOf makes entries of arbitrary bytes: sessions that come back, seqNums in order and not,
// all kinds.
func entriesOf(data []byte) []orderstate.OrderInfo {
	var entries []orderstate.OrderInfo
	var last orderstate.OrderInfo
	for len(data) >= 4 && len(entries) < MaxRun {
		what, a, b, c := data[0], data[1], data[2], data[3]
		data = data[4:]
		o := orderstate.OrderInfo{
			Kind: orderstate.Kind(what % 7), Session: orderstate.Session(a), SeqNum: orderstate.SeqNum(b),
			First: orderstate.Epoch(c % 4), Time: last.Time + int64(c), Digest: uint64(a)<<40 | uint64(b),
		}
		if what&0x10 != 0 {
			o.Session, o.SeqNum = last.Session, last.SeqNum+1
		}
		if what&0x20 != 0 {
			o.Session |= 0xffffffffffffff00
		}
		if what&0x40 != 0 {
			o.SeqNum, o.Time = o.SeqNum<<56, -last.Time
		}
		if what&0x80 != 0 {
			o.First, o.Time, o.Digest = math.MaxUint64, math.MinInt64, digestMax
		}
		entries = append(entries, o)
		last = o
	}
	return entries
}

// FuzzUnpack: whatever the holder of the key has packed is a run, or an error; its entries are no
// more than its bytes can hold, and what is a run packs to the same run again.
func FuzzUnpack(f *testing.F) {
	s := testSeal()
	for _, r := range []orderstate.Run{run(7, 1), run(7, 100, ordinary(5, 2)...), run(7, 1, ordinary(100, 40)...)} {
		a := s.Close(r)
		f.Add(uint32(r.Count), a.Sealed[:len(a.Sealed)-macSize])
	}
	f.Add(uint32(math.MaxUint32), []byte{flagKnown, 0})
	f.Fuzz(func(t *testing.T, count uint32, packed []byte) {
		e := orderstate.Envelope{Epoch: 7, EpochFirst: 1, First: 5, Count: int(count)}
		r, err := s.Open(sealed(s, e, packed))
		if errors.Is(err, ErrForged) {
			t.Fatalf("a run's own seal doesn't fit: %v", err)
		}
		if err != nil {
			if len(r.Entries) > 0 {
				t.Fatalf("an error, and %d entries", len(r.Entries))
			}
			return
		}
		if r.Envelope != e || len(r.Entries) != e.Count || cap(r.Entries)*minEntry > len(packed)+minEntry {
			t.Fatalf("%d bytes are a run of %d entries, %d allocated", len(packed), len(r.Entries), cap(r.Entries))
		}
		again, err := s.Open(s.Close(r))
		if err != nil || !equal(again, r) {
			t.Fatalf("packed again: %v, %v, want %v", again, err, r)
		}
	})
}

func BenchmarkSealClose(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, r := testSeal(), run(7, 1000, ordinary(n, 4)...)
			b.ReportAllocs()
			for b.Loop() {
				s.Close(r)
			}
		})
	}
}

func BenchmarkSealOpen(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := testSeal()
			a := s.Close(run(7, 1000, ordinary(n, 4)...))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Open(a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDigest(b *testing.B) {
	for _, n := range []int{100, 64 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, payload := testSeal(), make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				s.Digest(orderstate.MessageID{Session: 1 << 20, SeqNum: 1 << 30}, 1<<30-1,
					"/helloworld.Greeter/SayHello", payload)
			}
		})
	}
}

// TestEntriesFit: so many entries fit however large they are, and one more doesn't if they are as
// small as can be.
func TestEntriesFit(t *testing.T) {
	t.Parallel()
	const room = 1000
	size := func(n int, entry func(i int) orderstate.OrderInfo) int {
		r := orderstate.Run{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 1, Count: n}}
		for i := range n {
			r.Entries = append(r.Entries, entry(i))
		}
		return len(testSeal().Close(r).Sealed)
	}
	largest := func(i int) orderstate.OrderInfo { // each of another session, and the times as far apart as can be
		return orderstate.OrderInfo{Session: math.MaxUint64 - orderstate.Session(i), SeqNum: math.MaxUint64,
			First: math.MaxUint64, Time: math.MaxInt64 * int64(i%2*2-1)}
	}
	if n := FewestEntries(room); n < room/60 || size(n, largest) > room {
		t.Errorf("%d of the largest entries have %d bytes", n, size(n, largest))
	}
	smallest := func(i int) orderstate.OrderInfo {
		return orderstate.OrderInfo{SeqNum: orderstate.SeqNum(i + 1), First: 1}
	}
	if n := MostEntries(room); size(n+1, smallest) <= room {
		t.Errorf("%d of the smallest entries have %d bytes", n+1, size(n+1, smallest))
	}
}
