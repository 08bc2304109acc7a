package orderstate

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// encoded is any role.
type encoded interface {
	AppendTo([]byte) []byte
	Valid() error
}

func clone(role encoded) encoded {
	switch r := role.(type) {
	case *Source:
		return r.Clone()
	case *Primary:
		return r.Clone()
	case *Backup:
		return r.Clone()
	case *Takeover:
		return r.Clone()
	}
	panic(fmt.Sprintf("%T", role))
}

// change is a smallest change of one field.
type change[T any] struct {
	field string
	do    func(T)
}

// differ checks that each change shows in the encoding, and in no two ways alike, and that there is
// one for each field of T, but for those that are derived.
func differ[T encoded](t *testing.T, state T, derived []string, changes []change[T]) {
	t.Helper()
	seen := map[string]string{string(state.AppendTo(nil)): "nothing"}
	fields := map[string]bool{}
	for _, f := range derived {
		fields[f] = true
	}
	for _, c := range changes {
		fields[c.field] = true
		changed := clone(state).(T)
		if string(changed.AppendTo(nil)) != string(state.AppendTo(nil)) {
			t.Fatal("a clone is encoded differently")
		}
		c.do(changed)
		b := string(changed.AppendTo([]byte("prefix")))
		if b[:6] != "prefix" {
			t.Errorf("%s: AppendTo writes over what was there", c.field)
		}
		if other, ok := seen[b[6:]]; ok {
			t.Errorf("changing %s is encoded as changing %s", c.field, other)
		}
		seen[b[6:]] = c.field
	}
	s := reflect.TypeFor[T]().Elem()
	for i := range s.NumField() {
		if f := s.Field(i).Name; !fields[f] {
			t.Errorf("nothing is said of %v.%s", s, f)
		}
	}
}

func TestEncodeSource(t *testing.T) {
	s := NewSource()
	s.NewEpoch(3)
	must(t, s.Start(3, 4, 2, []Start{{1, 1}}))
	must(t, s.Receive(Announcement{Envelope{3, 4, 3, 2}, []byte("ab")}))
	must(t, s.Receive(Announcement{Envelope{3, 4, 7, 1}, []byte("c")}))
	s.Accept(Reply{Epoch: 3, OrderNum: 4})
	s.Require(3, 1, []Replica{"S2", "S3"})
	s.Acknowledge("S2", 3, 4)
	run := func(s *Source) *pendingRun { return &s.pendingRemoteOrder.all()[0] }
	differ(t, s, nil, []change[*Source]{
		{"epoch", func(s *Source) { s.epoch++ }},
		{"started", func(s *Source) { s.started = false }},
		{"first", func(s *Source) { s.first++ }},
		{"told", func(s *Source) { s.told = false }},
		{"stable", func(s *Source) { s.stable++ }},
		{"stableIn", func(s *Source) { s.stableIn++ }},
		{"untold", func(s *Source) { s.untold++ }},
		{"held", func(s *Source) { s.held++ }},
		{"epochs", func(s *Source) { s.epochs.starts[0].First++ }},
		{"pendingRemoteOrder", func(s *Source) { s.pendingRemoteOrder.drop(1) }},
		{"pendingRemoteOrder", func(s *Source) { run(s).Epoch++ }},
		{"pendingRemoteOrder", func(s *Source) { run(s).EpochFirst++ }},
		{"pendingRemoteOrder", func(s *Source) { run(s).First++ }},
		{"pendingRemoteOrder", func(s *Source) { run(s).Count++ }},
		{"pendingRemoteOrder", func(s *Source) { run(s).arrival++ }},
		{"pendingRemoteOrder", func(s *Source) { run(s).Sealed = []byte("a") }},
		{"arrivals", func(s *Source) { s.arrivals++ }},
		{"accepted", func(s *Source) { s.accepted[3]++ }},
		{"accepted", func(s *Source) { s.accepted[2]++ }},
		{"number", func(s *Source) { s.number++ }},
		{"required", func(s *Source) { s.required = s.required[:1] }},
		{"acked", func(s *Source) { s.acked["S2"]++ }},
		{"acked", func(s *Source) { s.acked["S3"]++ }},
	})
}

// ofHistory changes what roles have in common.
func ofHistory[T any](h func(T) *History) []change[T] {
	c := func(do func(*History)) change[T] { return change[T]{"h", func(r T) { do(h(r)) }} }
	id := MessageID{1, 1}
	message := func(do func(*Message)) change[T] {
		return c(func(h *History) { m := h.messages.held[id]; do(&m); h.messages.held[id] = m })
	}
	entry := func(do func(*Ordered)) change[T] { return c(func(h *History) { do(&h.order.all()[1]) }) }
	return []change[T]{
		c(func(h *History) { h.epochs.starts[0].Epoch++ }),
		c(func(h *History) { delete(h.messages.held, id) }),
		message(func(m *Message) { m.AnsweredUpTo++ }),
		message(func(m *Message) { m.Digest++ }),
		message(func(m *Message) { m.Nonce[3]++ }),
		message(func(m *Message) { m.Size++ }),
		c(func(h *History) { h.cut++ }),
		c(func(h *History) { h.cutTime++ }),
		c(func(h *History) { h.lastTime++ }),
		c(func(h *History) { h.order.drop(1) }),
		entry(func(o *Ordered) { o.OrderNum++ }),
		entry(func(o *Ordered) { o.SeqNum++ }),
		entry(func(o *Ordered) { o.Session++ }),
		entry(func(o *Ordered) { o.Kind = Expire }),
		entry(func(o *Ordered) { o.First++ }),
		entry(func(o *Ordered) { o.Time++ }),
		entry(func(o *Ordered) { o.Digest++ }),
		entry(func(o *Ordered) { o.Epoch++ }),
		c(func(h *History) { h.sessions.known[1].nonce[0]++ }),
		c(func(h *History) { h.sessions.known[1].answered++ }),
		c(func(h *History) { h.sessions.known[1].atCut++ }),
		c(func(h *History) { h.sessions.known[1].expired++ }),
		c(func(h *History) { h.sessions.known[1].calls[7]++ }),
		c(func(h *History) { h.sessions.known[7] = &session{} }),
		c(func(h *History) { h.sessions.byNonce[Nonce{9}] = 1 }),
	}
}

func TestEncodePrimary(t *testing.T) {
	p := newPrimary(t, []Replica{"S2", "S3"}, 'a')
	order(t, p, message(1, 1, 0))
	p.Receive(1, 1, []Envelope{{1, 1, 1, 1}})
	p.Judge(MessageID{1, 1}, 1)
	p.Attach("S2", 1)
	differ(t, p, nil, append(ofHistory(func(p *Primary) *History { return p.h }), []change[*Primary]{
		{"epoch", func(p *Primary) { p.epoch++ }},
		{"first", func(p *Primary) { p.first++ }},
		{"members", func(p *Primary) { p.members["S2"] = acknowledgement{upTo: 1} }},
		{"members", func(p *Primary) { p.members["S2"] = acknowledgement{any: true} }},
		{"members", func(p *Primary) { p.members["S2"] = acknowledgement{joined: true} }},
		{"members", func(p *Primary) { delete(p.members, "S3") }},
		{"number", func(p *Primary) { p.number++ }},
		{"stable", func(p *Primary) { p.stable++ }},
		{"pushed", func(p *Primary) { p.pushed++ }},
		{"max", func(p *Primary) { p.max++ }},
		{"reflected", func(p *Primary) { p.reflected[1]++ }},
		{"held", func(p *Primary) { p.held[1]++ }},
		{"declared", func(p *Primary) { p.declared[1]++ }},
		{"attached", func(p *Primary) { p.attached["S2"][2] = true }},
		{"attached", func(p *Primary) { p.attached["S3"] = p.attached["S2"] }},
		{"attached", func(p *Primary) { delete(p.attached, "S2") }},
	}...))
}

// ofBackup is a backup with something in each field.
func ofBackup(t *testing.T) *Backup {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	order(t, p, message(1, 1, 0))
	feed(t, b, p, 0)
	order(t, p, message(1, 2, 0)) // 3: not held
	p.Open(Nonce{'b'}, 0, nil, 1) // 4
	order(t, p, message(4, 1, 0)) // 5: early
	moves(t)(b.Receive(p.Push(2)))
	b.Message(message(4, 1, 0))
	b.Next()
	b.Attach(1)
	b.Detach(1)
	return b
}

func backupChanges[T encoded](of func(T) *Backup) []change[T] {
	changes := ofHistory(func(r T) *History { return of(r).h })
	for _, c := range []change[*Backup]{
		{"acknowledged", func(b *Backup) { b.acknowledged++ }},
		{"started", func(b *Backup) { b.started = !b.started }},
		{"stable", func(b *Backup) { b.stable++ }},
		{"stableIn", func(b *Backup) { b.stableIn++ }},
		{"pendingDestOrder", func(b *Backup) { delete(b.pendingDestOrder, 3) }},
		{"pendingDestOrder", func(b *Backup) { b.pendingDestOrder[9] = b.pendingDestOrder[3] }},
		{"early", func(b *Backup) { b.early[4][0]++ }},
		{"early", func(b *Backup) { b.early[5] = []SeqNum{1} }},
		{"executed", func(b *Backup) { b.executed++ }},
		{"validIn", func(b *Backup) { b.validIn++ }},
		{"diverged", func(b *Backup) { b.diverged++ }},
		{"detachings", func(b *Backup) { b.detachings++ }},
		{"base", func(b *Backup) { b.base++ }},
		{"attached", func(b *Backup) { b.attached[1] = attachment{} }},
		{"attached", func(b *Backup) { b.attached[1] = attachment{number: 1, confirmed: true} }},
		{"attached", func(b *Backup) { b.attached[1] = attachment{number: 1, upTo: 1} }},
		{"attached", func(b *Backup) { delete(b.attached, 1) }},
	} {
		changes = append(changes, change[T]{c.field, func(r T) { c.do(of(r)) }})
	}
	return changes
}

func TestEncodeBackup(t *testing.T) {
	differ(t, ofBackup(t), []string{"named"}, backupChanges(func(b *Backup) *Backup { return b }))
}

func TestEncodeTakeover(t *testing.T) {
	taken, err := ofBackup(t).Elected(2, []Replica{"S3", "S4"}, true)
	must(t, err)
	taken.PeerAnswered("S4")
	changes := backupChanges(func(t *Takeover) *Backup { return t.b })
	differ(t, taken, []string{"b"}, append(changes, []change[*Takeover]{
		{"epoch", func(t *Takeover) { t.epoch++ }},
		{"peers", func(t *Takeover) { delete(t.peers, "S3") }},
		{"inSync", func(t *Takeover) { delete(t.inSync, "S4") }},
		{"sessions", func(t *Takeover) { delete(t.sessions, 1) }},
	}...))
}

// Each role says which it is; and how a state came about doesn't show.
func TestEncodingIsOfTheState(t *testing.T) {
	a, b := newBackup(t), newBackup(t)
	p := newPrimary(t, []Replica{"S2"}, 'a')
	order(t, p, message(1, 1, 0))
	order(t, p, message(1, 2, 0))
	for _, q := range []SeqNum{1, 2, 1} {
		a.Message(message(1, q, 0)) // nothing yet: its session isn't known
	}
	feed(t, a, p, 0)
	for k := OrderNum(3); k > 0; k-- {
		moves(t)(b.Receive(p.Multicast(0, k-1, k, nil)))
	}
	b.Message(opening(1, 'a'))
	b.Message(message(1, 2, 0))
	b.Message(message(1, 1, 0))
	am, bm := a.h.messages.held[MessageID{1, 0}], b.h.messages.held[MessageID{1, 0}]
	if am.Digest != bm.Digest || string(a.AppendTo(nil)) != string(b.AppendTo(nil)) {
		t.Errorf("%q\n%q", a.AppendTo(nil), b.AppendTo(nil))
	}
	roles := map[byte]bool{}
	for _, r := range []encoded{NewSource(), p, a, &Takeover{b: b}} {
		roles[r.AppendTo(nil)[0]] = true
	}
	if len(roles) != 4 {
		t.Errorf("%v", roles)
	}
}

// A field that is added to what roles are made of must be encoded, or be derived from others, or be
// the caller's.
func TestEncodingKnowsEveryField(t *testing.T) {
	for typ, known := range map[reflect.Type][]string{
		reflect.TypeFor[History]():      {"epochs", "messages", "cut", "cutTime", "order", "sessions", "lastTime"},
		reflect.TypeFor[messageLog]():   {"held", "waiting: derived", "logged: derived"},
		reflect.TypeFor[sessionTable](): {"known", "byNonce"},
		reflect.TypeFor[session](): {"number: the table's key", "nonce", "answered", "atCut", "expired", "calls",
			"waiting: derived", "ordered: derived", "logged: derived"},
		reflect.TypeFor[Message]():    {"MessageID", "AnsweredUpTo", "Digest", "Nonce", "Body: the caller's", "Size"},
		reflect.TypeFor[OrderInfo]():  {"OrderNum", "SeqNum", "Session", "Kind", "First", "Time", "Digest"},
		reflect.TypeFor[Ordered]():    {"OrderInfo", "Epoch"},
		reflect.TypeFor[pendingRun](): {"Announcement", "arrival", "newest: a bound, for speed"},
		reflect.TypeFor[attachment](): {"number", "confirmed", "upTo"},
		reflect.TypeFor[Envelope]():   {"Epoch", "EpochFirst", "First", "Count"},
		reflect.TypeFor[epochTable](): {"starts"},
		reflect.TypeFor[Start]():      {"Epoch", "First"},
	} {
		fields := make([]string, typ.NumField())
		for i := range fields {
			fields[i] = typ.Field(i).Name
		}
		for i, k := range known {
			known[i], _, _ = strings.Cut(k, ":")
		}
		if !slices.Equal(fields, known) {
			t.Errorf("%v has the fields %v; the encoding knows %v", typ, fields, known)
		}
	}
}
