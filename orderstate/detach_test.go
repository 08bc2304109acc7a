package orderstate

import (
	"slices"
	"testing"
)

// attached is a primary and its backup S2, at which sessions 1 and 2 are attached.
func attached(t *testing.T) (p *Primary, b *Backup) {
	t.Helper()
	p, b = newPrimary(t, []Replica{"S2", "S3"}, 'a', 'b'), newBackup(t)
	b.Message(opening(1, 'a'))
	b.Message(opening(2, 'b'))
	feed(t, b, p, 0)
	for n := range Session(2) {
		if !b.Attach(n+1) || !p.Attach("S2", n+1).Leave {
			t.Fatal("the session isn't known")
		}
		p.Attach("S3", n+1)
	}
	return p, b
}

// detached is the same, and S2 can't hear session 1 any more.
func detached(t *testing.T) (p *Primary, b *Backup, number uint64) {
	t.Helper()
	p, b = attached(t)
	number, ok := b.Detach(1)
	if !ok {
		t.Fatal("the session isn't attached")
	}
	return p, b, number
}

func TestSessionsBeginDetached(t *testing.T) {
	p, b := newPrimary(t, []Replica{"S2"}, 'a'), newBackup(t)
	if b.Attach(1) {
		t.Error("a session that isn't known here is attached")
	}
	b.Message(opening(1, 'a'))
	feed(t, b, p, 0)
	if !b.Detached(1) || p.Attached(1) || len(p.DetachedAt(1)) != 1 {
		t.Error("a session is opened, and not detached")
	}
	if _, ok := b.Detach(1); ok {
		t.Error("a session is detached that isn't attached")
	}
	k := order(t, p, message(1, 1, 0))
	if p.MayLeave(1, k) {
		t.Error("a reply leaves to a session that S2 hasn't heard")
	}
	if !b.Attach(1) || b.Detached(1) {
		t.Error("a takeover doesn't wait for a session that is attached")
	}
	if moved := p.Attach("S2", 1); !moved.Leave || !p.MayLeave(1, k) || !p.Attached(1) {
		t.Error("a reply waits for who hears its session")
	}
	if p.Attach("S2", 1).Leave {
		t.Error("attached twice")
	}
	must(t, b.Valid())
	must(t, p.Valid())
}

func TestJoinerAttachesBeforeItIsCounted(t *testing.T) {
	p, _ := attached(t)
	if p.Attach("S4", 1).Leave {
		t.Error("who isn't counted has changed what may leave")
	}
	k := order(t, p, message(1, 1, 0))
	p.Require("S4")
	if !p.MayLeave(1, k) || p.MayLeave(2, k) {
		t.Error("a reply waits for a joiner that hears its session, or one that doesn't hear it isn't waited for")
	}
	must(t, p.Valid())
}

func TestDetachedOnlyWhenConfirmedAndHeld(t *testing.T) {
	p, b, number := detached(t)
	order(t, p, message(2, 1, 0))
	upTo, ok := p.Detach("S2", 1)
	if !ok || upTo != 3 {
		t.Fatalf("confirmed up to %d, %v", upTo, ok)
	}
	if b.Detached(1) {
		t.Error("detached, and not confirmed")
	}
	if b.Confirmed(1, number+1, upTo); b.Detached(1) {
		t.Error("confirmed by another number")
	}
	if b.Confirmed(1, number, upTo); b.Detached(1) {
		t.Error("detached, and what its replies depend on isn't held")
	}
	if _, ok := b.Detach(1); ok {
		t.Error("what is confirmed is asked again")
	}
	if feed(t, b, p, 0); !b.Detached(1) || b.Detached(2) {
		t.Error("confirmed and held, and not detached")
	}
	must(t, b.Valid())
	must(t, p.Valid())
}

func TestRepliesWaitForTheDeaf(t *testing.T) {
	p, _, _ := detached(t)
	p.Detach("S2", 1)
	k := order(t, p, message(1, 1, 0))
	if _, _, moved := p.Order(message(1, 2, 0), 1); !moved.Push {
		t.Error("what a detached session waits for isn't pushed")
	}
	if _, _, moved := p.Order(message(2, 1, 0), 1); moved.Push {
		t.Error("another session's message is pushed")
	}
	if p.MayLeave(1, k) || !p.MayLeave(2, k) {
		t.Error("a detached session's reply leaves, or another's doesn't")
	}
	for _, r := range []Replica{"S3", "S2"} {
		moved, err := p.Acknowledge(r, 1, k)
		must(t, err)
		if may := p.MayLeave(1, k); may != (r == "S2") || may && !moved.Leave {
			t.Errorf("%s acknowledges: the reply may leave: %v, something has changed: %v", r, may, moved)
		}
	}
	if p.MayLeave(1, k+1) {
		t.Error("a reply leaves that S2 hasn't acknowledged")
	}
	if moved := p.Release("S2"); !moved.Leave || !p.MayLeave(1, k+1) || len(p.DetachedAt(1)) > 0 {
		t.Error("a reply waits for who isn't a member any more")
	}
	must(t, p.Valid())
}

// What was asked before a session was attached again may be confirmed after it.
func TestConfirmationsAreNumbered(t *testing.T) {
	p, b, first := detached(t)
	upTo, _ := p.Detach("S2", 1)
	b.Attach(1)
	if b.Confirmed(1, first, upTo); b.Detached(1) {
		t.Error("detached by a confirmation, and heard again")
	}
	second, _ := b.Detach(1)
	if b.Confirmed(1, first, upTo); b.Detached(1) || first == second {
		t.Error("detached by the confirmation of what isn't asked any more")
	}
	if b.Confirmed(1, second, upTo); !b.Detached(1) {
		t.Error("confirmed, and not detached")
	}
}

func TestNewStreamBeginsWithNoneAttached(t *testing.T) {
	p, b, number := detached(t)
	p.DetachAll("S2")
	if p.Attached(2) || len(p.DetachedAt(2)) != 1 {
		t.Error("a new stream, and a session is attached")
	}
	if again := b.Attached(); !slices.Equal(again, []Session{1, 2}) || b.Detached(1) || b.Detached(2) {
		t.Errorf("tells %v again", again)
	}
	if again, ok := b.Detach(1); !ok || again != number {
		t.Errorf("asks %d again as %d, %v", number, again, ok)
	}
	upTo, _ := p.Detach("S2", 1)
	if b.Confirmed(1, number, upTo); !b.Detached(1) || !slices.Equal(b.Attached(), []Session{2}) {
		t.Error("isn't detached")
	}
	must(t, p.Valid())
}

func TestTakeoverWaitsForDetachedOnlyIfNamed(t *testing.T) {
	p, b, number := detached(t)
	upTo, _ := p.Detach("S2", 1)
	b.Confirmed(1, number, upTo)
	order(t, p, message(1, 1, 0)) // S2 can't hear it; it is session 2 that knows its order
	taken, err := b.Elected(2, nil, true)
	must(t, err)
	waits := func(want ...Session) {
		t.Helper()
		if _, sessions := taken.Waiting(); len(sessions) != len(want) || len(want) > 0 && sessions[0] != want[0] {
			t.Errorf("waits for %v, want %v", sessions, want)
		}
	}
	waits(2)
	must(t, taken.SessionKnows([]Run{p.Multicast(0, 0, 3, nil)}))
	taken.SessionAnswered(2)
	waits(1)
	if _, _, err := taken.Fix(32); err == nil {
		t.Error("N is fixed, and session 1 may have its message")
	}
	taken.Message(message(1, 1, 0)) // a peer had it
	waits()
	np, _, err := taken.Fix(32)
	must(t, err)
	if np.First() != 4 || np.MayLeave(2, 4) != true {
		t.Errorf("the epoch starts at %d", np.First())
	}
	must(t, np.Valid())
}

// The marks of an epoch say nothing in the next. Until that starts they are kept: nobody was told
// anything in it.
func TestEpochStartsWithNoneAttached(t *testing.T) {
	p, b, number := detached(t)
	upTo, _ := p.Detach("S2", 1)
	b.Confirmed(1, number, upTo)
	if _, err := b.Answer(2); err != nil || !b.Detached(1) || b.Detached(2) {
		t.Errorf("no epoch has started since: %v", err)
	}
	if _, ok := b.Detach(2); ok || b.Attach(1) {
		t.Error("tells a primary whose epoch hasn't started")
	}
	moves(t)(b.Start(2, 4, nil)) // 3 isn't held yet
	if b.Detached(1) || b.Detached(2) {
		t.Error("detached, and what is below the epoch isn't held")
	}
	b.Message(message(2, 1, 0))
	moves(t)(b.Receive(Run{Envelope{2, 4, 3, 1},
		[]OrderInfo{{OrderNum: 3, SeqNum: 1, Session: 2, First: 1, Time: 1, Digest: message(2, 1, 0).Digest}}}))
	if b.Last() != 3 || !b.Detached(1) || !b.Detached(2) {
		t.Error("attached in an epoch whose primary wasn't told")
	}
	b.Attach(1)
	if again, ok := b.Detach(1); !ok || again == number {
		t.Errorf("asks the next primary as %d, %v", again, ok)
	}
	must(t, b.Valid())
}

// Who was never told where an epoch starts waits for everyone.
func TestNothingIsDetachedBeforeAnEpochHasStarted(t *testing.T) {
	h, err := NewHistory(1, 0, nil, []SessionState{{Session: 1}})
	must(t, err)
	b, err := NewBackup(h, 1, 0)
	must(t, err)
	if b.Detached(1) || b.Attach(1) {
		t.Error("detached, or attached")
	}
	if moves(t)(b.Start(1, 1, nil)); !b.Detached(1) {
		t.Error("not detached")
	}
}

func TestExpiredIsntAttached(t *testing.T) {
	p, b, _ := detached(t)
	p.Expire(1, 1)
	feed(t, b, p, 0)
	must(t, p.Valid())
	must(t, b.Valid())
	if _, ok := p.Detach("S2", 1); ok || p.Attach("S2", 1).Leave {
		t.Error("a session that isn't open is detached, or attached")
	}
	if _, ok := b.Detach(1); ok || b.Attach(1) {
		t.Error("a session that isn't known is detached, or attached")
	}
}
