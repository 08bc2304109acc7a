package electiontest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/understudy-rpc/understudy/election"
)

// RunMalformed runs the part of the contract that is about keys which somebody else has written;
// the Factory needs Put.
func RunMalformed(t *testing.T, open func(t *testing.T) Factory) {
	run(t, malformedKeys, func(t *testing.T, f func(*testing.T)) { f(t) }, open)
}

var malformedKeys = []testCase{
	{"malformed replica is left out", malformedReplica},
	{"malformed primary", malformedPrimary},
	{"malformed in sync", malformedInSync},
	{"malformed id", malformedID},
	{"unknown keys", unknownKeys},
	{"too many keys", tooManyKeys},
	{"id is gone", idIsGone},
	{"only somebody in sync", onlyInSync},
	{"only id", onlyID},
}

const prefix = "/understudy/" + group + "/"

// long is more than any value may have.
var long = strings.Repeat("x", 100_000)

func (h *harness) put(t *testing.T, key, value string) {
	t.Helper()
	h.Put(t, map[string]string{key: value})
}

func wantMalformed(t *testing.T, call string, err error, key string) {
	t.Helper()
	var bad *election.MalformedError
	if !errors.As(err, &bad) || bad.Key != key {
		t.Errorf("%s = %v, want %q named as malformed", call, err, key)
	}
	if election.IsUnknown(err) {
		t.Errorf("%s = %v, want a known outcome", call, err)
	}
}

func malformedReplica(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	for name, value := range map[string]string{
		"c": "", "d": "{", "e": long, "f": `{"Op":0,"Addr":"h:1","Metadata":null}`, "g/h": `{}`, "": "{}", "\x00": "{}",
		"k" + long[:1000]: "{}",
	} {
		h.put(t, prefix+"replicas/"+name, value)
	}
	if s := a.read(); len(s.Replicas) != 2 {
		t.Errorf("replicas are %v", s.Replicas)
	}
	if err := a.AddInSync(h.ctx, epoch, member("c", 1)); !errors.Is(err, election.ErrNotRegistered) {
		t.Errorf("AddInSync of a malformed replica = %v", err)
	}
	_, err := b.Register(h.ctx, replica(member("d", 1)), election.Member{})
	wantMalformed(t, "Register over a malformed key", err, prefix+"replicas/d")
	await(t, h.ctx, b, "a and b", func(s election.State) bool { return len(s.Replicas) == 2 })
	b.elect(epoch)
}

func malformedPrimary(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	for _, value := range []string{"", "[]", long, `{"name":"a/b","incarnation":"1"}`} {
		h.put(t, prefix+"primary", value)
		_, err := a.Read(h.ctx)
		wantMalformed(t, "Read", err, prefix+"primary")
		_, epoch, err := a.Primary(h.ctx)
		wantMalformed(t, "Primary", err, prefix+"primary")
		if epoch != 0 {
			t.Errorf("Primary has epoch %d", epoch)
		}
		_, err = b.Elect(h.ctx, b.self, 1)
		wantMalformed(t, "Elect", err, prefix+"primary")
	}
	wantErr(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me), election.ErrDeposed)
	// A watch that is up is silent, and goes on when the key is whole again.
	states := b.Watch(h.ctx)
	h.put(t, prefix+"primary", `{"name":"b","incarnation":"a1"}`)
	if s := <-states; s.Primary != b.me {
		t.Errorf("Watch has %+v", s)
	}
}

func malformedInSync(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	for _, value := range []string{"", "0", "A1", "00a1", long} { // a1 is b's, spelt wrongly
		h.put(t, prefix+"insync/b", value)
		_, err := a.Read(h.ctx)
		wantMalformed(t, "Read", err, prefix+"insync/b")
		_, err = b.Elect(h.ctx, b.self, epoch)
		wantErr(t, "Elect", err, election.ErrNotInSync)
		// The primary can't remove what isn't that incarnation, but can replace it.
		a.remove(epoch, b.me)
		a.add(epoch, b.me)
		wantInSync(t, a.read(), a.me, b.me)
	}
	b.elect(epoch)
}

func malformedID(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	a, b := nodes[0], nodes[1]
	h.put(t, prefix+"id", `{"id":"0"}`)
	_, err := a.Read(h.ctx)
	wantMalformed(t, "Read", err, prefix+"id")
	_, err = a.Create(h.ctx, what, a.self)
	wantErr(t, "Create", err, election.ErrExists)
	h.put(t, prefix+"id", long)
	wantMalformed(t, "AddInSync", a.AddInSync(h.ctx, epoch, b.me), prefix+"id")
}

func unknownKeys(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	want := nodes[0].read()
	for _, rest := range []string{"", "insync", "replicas", "id/x", "primary/", "later", "later/x", long[:10_000],
		"\xff"} {
		h.put(t, prefix+rest, "anything")
	}
	got := nodes[0].read()
	want.Revision = got.Revision
	if len(got.InSync) != 2 || len(got.Replicas) != 2 || got.Primary != want.Primary || got.Group != want.Group {
		t.Errorf("with unknown keys: %+v", got)
	}
	nodes[1].elect(epoch)
}

func tooManyKeys(t *testing.T, h *harness) {
	nodes, epoch := h.founded(t, "a", "b")
	many := map[string]string{}
	for i := range 1030 {
		many[fmt.Sprint(prefix, "zzz/", i)] = ""
	}
	h.Put(t, many)
	_, err := nodes[0].Read(h.ctx)
	wantMalformed(t, "Read", err, prefix)
	wantMalformed(t, "RemoveInSync", nodes[0].RemoveInSync(h.ctx, epoch, nodes[1].me), prefix)
	nodes[1].elect(epoch) // reads what it needs, and no more
}

// A group that lost its id isn't made anew over who is in sync.
func idIsGone(t *testing.T, h *harness) {
	n := h.node(t, "a", 1)
	h.put(t, prefix+"primary", `{"name":"a","incarnation":"1"}`)
	_, err := n.Create(h.ctx, what, n.self)
	wantMalformed(t, "Create over a primary", err, prefix+"id")
	_, epoch, err := n.Primary(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantMalformed(t, "AddInSync", n.AddInSync(h.ctx, epoch, n.me), prefix+"id")
}

func onlyInSync(t *testing.T, h *harness) {
	n := h.node(t, "a", 1)
	h.put(t, prefix+"insync/b", "1")
	_, err := n.Create(h.ctx, what, n.self)
	wantMalformed(t, "Create over somebody in sync", err, prefix+"id")
}

func onlyID(t *testing.T, h *harness) {
	n := h.node(t, "a", 1)
	h.put(t, prefix+"id", `{"id":"ff"}`)
	_, err := n.Create(h.ctx, what, n.self)
	wantErr(t, "Create over an id", err, election.ErrExists)
}
