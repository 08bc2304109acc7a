package orderstate

import "testing"

// detached is a primary and its backup S2, at which session 1 is detached as number.
func detached(t *testing.T) (p *Primary, b *Backup, number uint64) {
	t.Helper()
	p, b = newPrimary(t, []Replica{"S2", "S3"}, 'a', 'b'), newBackup(t)
	b.Message(opening(1, 'a'))
	b.Message(opening(2, 'b'))
	feed(t, b, p, 0)
	number, ok := b.Detach(1)
	if !ok {
		t.Fatal("the session isn't known")
	}
	return p, b, number
}

func TestDetachedOnlyWhenConfirmedAndHeld(t *testing.T) {
	p, b, number := detached(t)
	order(t, p, message(2, 1, 0))
	upTo, ok := p.Detach("S2", 1, number)
	if !ok || upTo != 3 {
		t.Fatalf("confirmed up to %d, %v", upTo, ok)
	}
	if b.Detached(1) {
		t.Error("detached, and not confirmed")
	}
	if b.Confirmed(2, 1, number, upTo); b.Detached(1) {
		t.Error("confirmed in another epoch")
	}
	if b.Confirmed(1, 1, number, upTo); b.Detached(1) {
		t.Error("detached, and what its replies depend on isn't held")
	}
	if feed(t, b, p, 0); !b.Detached(1) {
		t.Error("confirmed and held, and not detached")
	}
	must(t, b.Valid())
	must(t, p.Valid())
}

func TestRepliesWaitForTheDeaf(t *testing.T) {
	p, _, number := detached(t)
	p.Detach("S2", 1, number)
	k := order(t, p, message(1, 1, 0))
	if _, _, push := p.Order(message(1, 2, 0), 1); !push {
		t.Error("what a detached session waits for isn't pushed")
	}
	if _, _, push := p.Order(message(2, 1, 0), 1); push {
		t.Error("another session's message is pushed")
	}
	if p.MayLeave(1, k) || !p.MayLeave(2, k) {
		t.Error("a detached session's reply leaves, or another's doesn't")
	}
	for _, r := range []Replica{"S3", "S2"} {
		moved, err := p.Acknowledge(r, 1, k)
		must(t, err)
		if may := p.MayLeave(1, k); may != (r == "S2") || may && !moved {
			t.Errorf("%s acknowledges: the reply may leave: %v, something has changed: %v", r, may, moved)
		}
	}
	if p.MayLeave(1, k+1) {
		t.Error("a reply leaves that S2 hasn't acknowledged")
	}
	if changed := p.Release("S2"); !changed || !p.MayLeave(1, k+1) || len(p.DetachedAt(1)) > 0 {
		t.Error("a reply waits for who isn't a member any more")
	}
	must(t, p.Valid())
}

// What was asked before a session was attached again may arrive after it, and the other way round.
func TestDetachingIsNumbered(t *testing.T) {
	p, b, first := detached(t)
	upTo, _ := p.Detach("S2", 1, first)
	attached, _ := b.Attach(1)
	second, _ := b.Detach(1)
	if b.Confirmed(1, 1, first, upTo); b.Detached(1) {
		t.Error("detached by the confirmation of what isn't asked any more")
	}
	p.Detach("S2", 1, second)
	if p.Attach("S2", 1, attached); p.MayLeave(1, p.Last()+1) {
		t.Error("attached by what was said before it was detached")
	}
	if last, ok := b.Attach(1); !ok || !p.Attach("S2", 1, last) || !p.MayLeave(1, p.Last()+1) {
		t.Error("isn't attached")
	}
	if _, ok := b.Attach(1); ok {
		t.Error("attached twice")
	}
}

func TestTakeoverWaitsForDetachedOnlyIfNamed(t *testing.T) {
	p, b, number := detached(t)
	upTo, _ := p.Detach("S2", 1, number)
	b.Confirmed(1, 1, number, upTo)
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
	if _, err := taken.Fix(32); err == nil {
		t.Error("N is fixed, and session 1 may have its message")
	}
	taken.Message(message(1, 1, 0)) // a peer had it
	waits()
	np, err := taken.Fix(32)
	must(t, err)
	if np.First() != 4 || taken.Detached(1) {
		t.Errorf("the epoch starts at %d; detached: %v", np.First(), taken.Detached(1))
	}
	must(t, taken.Valid())
}

func TestEpochStartsWithNoneDetached(t *testing.T) {
	p, b, number := detached(t)
	upTo, _ := p.Detach("S2", 1, number)
	b.Confirmed(1, 1, number, upTo)
	if _, err := b.Answer(2); err != nil || !b.Detached(1) {
		t.Errorf("no epoch has started since: %v", err)
	}
	must(t, b.Start(2, 3, nil))
	if b.Detached(1) {
		t.Error("detached in an epoch whose primary hasn't confirmed it")
	}
	if again, ok := b.Detach(1); !ok || again == number {
		t.Errorf("asks the next primary as %d, %v", again, ok)
	}
}

func TestExpiredIsntDetached(t *testing.T) {
	p, b, number := detached(t)
	p.Detach("S2", 1, number)
	p.Expire(1, 1)
	feed(t, b, p, 0)
	must(t, p.Valid())
	must(t, b.Valid())
	if _, ok := p.Detach("S2", 1, number); ok || len(p.DetachedAt(1)) > 0 {
		t.Error("a session that isn't open is detached")
	}
	if _, ok := b.Detach(1); ok {
		t.Error("a session that isn't known is detached")
	}
}
