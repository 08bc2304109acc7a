package electiontest

import (
	"testing"

	"github.com/understudy-rpc/understudy/election"
)

// replacing: a group takes the place of another one, whoever is in sync there; only of the one that
// it names.
func replacing(t *testing.T, h *harness) {
	a, b, c := h.node(t, "a", 1), h.node(t, "b", 2), h.node(t, "c", 3)
	first := a.create()
	if err := a.AddInSync(h.ctx, first, b.me); err != nil {
		t.Fatal(err)
	}
	before := a.read()
	if before.Fence <= int64(first) {
		t.Errorf("after epoch %d and a change of who is in sync, the fence is %d", first, before.Fence)
	}
	other := election.Group{ID: 7, Level: what.Level}
	_, err := c.Create(h.ctx, other.Replacing(6, election.Group{}), c.self)
	wantErr(t, "Create in the place of a group that isn't there", err, election.ErrExists)
	_, err = c.Create(h.ctx, other.Replacing(what.ID, before.Group), c.self)
	wantErr(t, "Create in the place of a group that is alive", err, election.ErrAlive)
	for _, n := range []*node{a, b} {
		if err := n.self.Close(h.ctx); err != nil {
			t.Fatal(err)
		}
	}
	b = h.node(t, "b", 4) // another incarnation of one who was in sync
	epoch, err := b.Create(h.ctx, other.Replacing(what.ID, before.Group), b.self)
	if err != nil {
		t.Fatalf("Create in the place of another: %v", err)
	}
	s := b.read()
	wantPrimary(t, s, b.me, epoch)
	wantInSync(t, s, b.me)
	if s.Group.ID != 7 || !s.Group.HasReplaced(what.ID) || s.Group.HasReplaced(7) || s.Fence != int64(epoch) {
		t.Errorf("the group is %+v, fence %d, epoch %d", s.Group, s.Fence, epoch)
	}
	wantErr(t, "AddInSync in the old group's name", a.AddInSync(h.ctx, first, c.me), election.ErrDeposed)
	_, err = c.Create(h.ctx, other.Replacing(what.ID, election.Group{}), c.self)
	wantErr(t, "Create in the place of a group that was replaced", err, election.ErrExists)
	// Once more: it names both.
	if err := b.self.Close(h.ctx); err != nil {
		t.Fatal(err)
	}
	third := election.Group{ID: 8}.Replacing(7, s.Group)
	if _, err := c.Create(h.ctx, third, c.self); err != nil {
		t.Fatal(err)
	}
	if g := c.read().Group; !g.HasReplaced(7) || !g.HasReplaced(what.ID) {
		t.Errorf("the group is %+v", g)
	}
}
