package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

const (
	macSize = 16
	// digestSize is what an entry carries of its message's digest: forging one takes 2⁴⁷ tries on
	// average, each of them seen and refused by the group.
	digestSize = 6
	// MaxRun bounds the entries of one run.
	MaxRun = 1 << 16
	// minEntry is the least that an entry takes when packed: flags, time, digest.
	minEntry = 2 + digestSize
	// maxEntry is the most: flags, sub-kind, session, seqNum, epoch, time, digest.
	maxEntry = 2 + 4*binary.MaxVarintLen64 + digestSize
)

// MostEntries is how many entries of a run fit at most in some sealed bytes.
func MostEntries(bytes int) int { return (bytes - macSize) / minEntry }

// FewestEntries is how many entries of a run fit at least in some sealed bytes.
func FewestEntries(bytes int) int { return (bytes - macSize) / maxEntry }

// ErrForged says that a run's seal doesn't fit: some source changed it, or it is from another
// group.
var ErrForged = errors.New("wire: a run's seal doesn't fit")

// ErrUnknownNote says that a run has a note of a kind that this version doesn't know.
var ErrUnknownNote = errors.New("wire: a note of an unknown kind: another version has sealed it")

// Seal keys the MACs of one group (docs/concepts.md, "seal"). It may be used concurrently.
type Seal struct {
	macs sync.Pool
}

// NewSeal takes the group's secret.
func NewSeal(secret []byte) *Seal {
	key := append([]byte(nil), secret...)
	return &Seal{macs: sync.Pool{New: func() any { return &mac{h: hmac.New(sha256.New, key)} }}}
}

type mac struct {
	h   hash.Hash
	buf []byte
	sum [sha256.Size]byte
}

// Domains keep a MAC of one kind from serving as another's.
const (
	domainRun     = 'r'
	domainMessage = 'm'
	domainOpening = 'o'
	domainToken   = 't'
	domainMark    = 's'
)

// Digest binds a message to its bytes. method and payload are what will be executed.
func (s *Seal) Digest(id orderstate.MessageID, answeredUpTo orderstate.SeqNum, method string, payload []byte) uint64 {
	m := s.macs.Get().(*mac)
	defer s.macs.Put(m)
	b := append(m.buf[:0], domainMessage)
	b = binary.AppendUvarint(b, uint64(id.Session))
	b = binary.AppendUvarint(b, uint64(id.SeqNum))
	b = binary.AppendUvarint(b, uint64(answeredUpTo))
	b = binary.AppendUvarint(b, uint64(len(method)))
	b = append(b, method...)
	return m.digest(b, payload)
}

// DigestOpening binds the opening of a session to its nonce.
func (s *Seal) DigestOpening(n orderstate.Nonce) uint64 {
	m := s.macs.Get().(*mac)
	defer s.macs.Put(m)
	return m.digest(append(m.buf[:0], domainOpening), n[:])
}

// Token is what a session's requests carry: only its source, which has it with its welcome, and the
// replicas know it. It is never 0.
func (s *Seal) Token(session orderstate.Session, n orderstate.Nonce) uint64 {
	m := s.macs.Get().(*mac)
	defer s.macs.Put(m)
	return max(m.digest(binary.AppendUvarint(append(m.buf[:0], domainToken), uint64(session)), n[:]), 1)
}

func (m *mac) digest(b, payload []byte) uint64 {
	m.h.Reset()
	m.h.Write(b)
	m.h.Write(payload)
	m.buf = b
	sum := m.h.Sum(m.sum[:0])
	return binary.BigEndian.Uint64(sum) >> (64 - 8*digestSize)
}

// tag is the MAC over a run's envelope and packed entries.
func (m *mac) tag(e orderstate.Envelope, packed []byte) []byte {
	b := append(m.buf[:0], domainRun)
	b = binary.AppendUvarint(b, uint64(e.Epoch))
	b = binary.AppendUvarint(b, uint64(e.EpochFirst))
	b = binary.AppendUvarint(b, uint64(e.First))
	b = binary.AppendUvarint(b, uint64(e.Count))
	m.h.Reset()
	m.h.Write(b)
	m.h.Write(packed)
	m.buf = b
	return m.h.Sum(m.sum[:0])[:macSize]
}

// Close seals a run into an announcement.
func (s *Seal) Close(r orderstate.Run) orderstate.Announcement {
	m := s.macs.Get().(*mac)
	defer s.macs.Put(m)
	packed := pack(make([]byte, 0, len(r.Entries)*(minEntry+2)+macSize+16), r)
	return orderstate.Announcement{Envelope: r.Envelope, Sealed: append(packed, m.tag(r.Envelope, packed)...)}
}

// Open checks an announcement's seal and unpacks it. Errors: ErrForged, or what is malformed.
func (s *Seal) Open(a orderstate.Announcement) (orderstate.Run, error) {
	if len(a.Sealed) < macSize {
		return orderstate.Run{}, fmt.Errorf("%w: run %v has %d bytes", ErrForged, a.Envelope, len(a.Sealed))
	}
	packed, tag := a.Sealed[:len(a.Sealed)-macSize], a.Sealed[len(a.Sealed)-macSize:]
	m := s.macs.Get().(*mac)
	ok := hmac.Equal(tag, m.tag(a.Envelope, packed))
	s.macs.Put(m)
	if !ok {
		return orderstate.Run{}, ErrForged
	}
	return unpack(a.Envelope, packed)
}

// The packing of one entry:
//
//	flags     kind (2 bits), known: session is in the run's table,
//	          next: seqNum is one more than the session's last, first: First is the run's epoch
//	sub-kind  of a note: 1 break, 2 mark, 3 outcome, 4 timer
//	session   known: index into the table, else the session, which enters it
//	seqNum    unless next: the seqNum
//	First     unless first: the epoch
//	Time      microseconds since the entry before
//	Digest    6 bytes
//
// All numbers are varints. The table has tableSize places, used in turn.
const (
	flagKind  = 3
	kindNote  = 3 // of flagKind: what the sub-kind says, from 1 to lastNote
	lastNote  = byte(orderstate.Timer-orderstate.Break) + 1
	flagKnown = 1 << 2
	flagNext  = 1 << 3
	flagFirst = 1 << 4
	tableSize = 32
)

type table struct {
	sessions [tableSize]orderstate.Session
	last     [tableSize]orderstate.SeqNum
	n        int
}

func (t *table) find(s orderstate.Session) (int, bool) {
	for i := range min(t.n, tableSize) {
		if t.sessions[i] == s {
			return i, true
		}
	}
	return 0, false
}

func (t *table) enter(s orderstate.Session) int {
	i := t.n % tableSize
	t.n++
	t.sessions[i], t.last[i] = s, 0
	return i
}

func pack(b []byte, r orderstate.Run) []byte {
	var t table
	var time int64
	for _, o := range r.Entries {
		flags := min(byte(o.Kind), kindNote)
		i, known := t.find(o.Session)
		if known {
			flags |= flagKnown
		} else {
			i = t.enter(o.Session)
		}
		if o.SeqNum == t.last[i]+1 {
			flags |= flagNext
		}
		if o.First == r.Epoch {
			flags |= flagFirst
		}
		b = append(b, flags)
		if o.Kind.IsNote() {
			b = append(b, byte(o.Kind-orderstate.Break)+1)
		}
		if known {
			b = binary.AppendUvarint(b, uint64(i))
		} else {
			b = binary.AppendUvarint(b, uint64(o.Session))
		}
		if flags&flagNext == 0 {
			b = binary.AppendUvarint(b, uint64(o.SeqNum))
		}
		if flags&flagFirst == 0 {
			b = binary.AppendUvarint(b, uint64(o.First))
		}
		b = binary.AppendVarint(b, o.Time-time)
		b = append(b, byte(o.Digest>>40), byte(o.Digest>>32), byte(o.Digest>>24), byte(o.Digest>>16), byte(o.Digest>>8),
			byte(o.Digest))
		t.last[i], time = o.SeqNum, o.Time
	}
	return b
}

func unpack(e orderstate.Envelope, b []byte) (orderstate.Run, error) {
	if e.Count < 0 || e.Count > MaxRun || e.Count > len(b)/minEntry {
		return orderstate.Run{}, fmt.Errorf("wire: run %v can't have %d entries in %d bytes", e, e.Count, len(b))
	}
	r := orderstate.Run{Envelope: e, Entries: make([]orderstate.OrderInfo, e.Count)}
	var t table
	var time int64
	rd := reader{b: b}
	for n := range r.Entries {
		flags := rd.byte()
		o := orderstate.OrderInfo{OrderNum: e.First + orderstate.OrderNum(n), Kind: orderstate.Kind(flags & flagKind),
			First: e.Epoch}
		if o.Kind == kindNote {
			sub := rd.byte()
			if !rd.short && (sub == 0 || sub > lastNote) {
				return orderstate.Run{}, fmt.Errorf("%w: %d, entry %d of run %v", ErrUnknownNote, sub, n, e)
			}
			o.Kind = orderstate.Break + orderstate.Kind(sub) - 1
		}
		var i int
		if flags&flagKnown != 0 {
			at := rd.uvarint()
			if at >= uint64(min(t.n, tableSize)) {
				return orderstate.Run{}, fmt.Errorf("wire: run %v refers to session place %d of %d", e, at, t.n)
			}
			i = int(at)
			o.Session = t.sessions[i]
		} else {
			o.Session = orderstate.Session(rd.uvarint())
			i = t.enter(o.Session)
		}
		if flags&flagNext != 0 {
			o.SeqNum = t.last[i] + 1
		} else {
			o.SeqNum = orderstate.SeqNum(rd.uvarint())
		}
		if flags&flagFirst == 0 {
			o.First = orderstate.Epoch(rd.uvarint())
		}
		o.Time = time + rd.varint()
		for range digestSize {
			o.Digest = o.Digest<<8 | uint64(rd.byte())
		}
		if rd.short {
			return orderstate.Run{}, fmt.Errorf("wire: run %v is malformed at entry %d", e, n)
		}
		t.last[i], time = o.SeqNum, o.Time
		r.Entries[n] = o
	}
	if len(rd.b) != 0 {
		return orderstate.Run{}, fmt.Errorf("wire: run %v has %d bytes too many", e, len(rd.b))
	}
	return r, nil
}

// reader reads varints; short is set when the bytes end early, or a varint is too long.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.short = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.short, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.short, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// RunToProto wraps an announcement for sending; with envelope only, its envelope.
func RunToProto(a orderstate.Announcement, envelope bool) *pb.Run {
	r := &pb.Run{Epoch: uint64(a.Epoch), EpochFirst: uint64(a.EpochFirst), First: uint64(a.First),
		Count: uint32(a.Count)}
	if !envelope {
		r.Sealed = a.Sealed
	}
	return r
}

// RunsToProto wraps several.
func RunsToProto(as []orderstate.Announcement, envelope bool) []*pb.Run {
	if len(as) == 0 {
		return nil
	}
	rs := make([]*pb.Run, len(as))
	for i, a := range as {
		rs[i] = RunToProto(a, envelope)
	}
	return rs
}

// RunFromProto checks a run's bounds. The seal isn't looked at.
func RunFromProto(r *pb.Run) (orderstate.Announcement, error) {
	a := orderstate.Announcement{
		Envelope: orderstate.Envelope{
			Epoch: orderstate.Epoch(r.GetEpoch()), EpochFirst: orderstate.OrderNum(r.GetEpochFirst()),
			First: orderstate.OrderNum(r.GetFirst()), Count: int(r.GetCount()),
		},
		Sealed: r.GetSealed(),
	}
	return a, checkRun(a)
}

func checkRun(a orderstate.Announcement) error {
	switch {
	case a.Epoch == 0 || a.EpochFirst == 0 || a.First == 0 || a.Count == 0:
		return fmt.Errorf("wire: run %v has a field of 0", a.Envelope)
	case a.Count > MaxRun:
		return fmt.Errorf("wire: run %v has more than %d entries", a.Envelope, MaxRun)
	case a.Last() < a.First:
		return fmt.Errorf("wire: run from %d of %d entries overflows", a.First, a.Count)
	}
	return nil
}

// RunsFromProto checks several.
func RunsFromProto(rs []*pb.Run) ([]orderstate.Announcement, error) {
	if len(rs) == 0 {
		return nil, nil
	}
	as := make([]orderstate.Announcement, len(rs))
	for i, r := range rs {
		var err error
		if as[i], err = RunFromProto(r); err != nil {
			return nil, err
		}
	}
	return as, nil
}

// Envelopes returns the envelopes of announcements.
func Envelopes(as []orderstate.Announcement) []orderstate.Envelope {
	if len(as) == 0 {
		return nil
	}
	es := make([]orderstate.Envelope, len(as))
	for i, a := range as {
		es[i] = a.Envelope
	}
	return es
}
