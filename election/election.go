// Package election lets at most one replica of a group be primary in an epoch, and never forgets
// who may be.
//
// An epoch is the revision of the transaction that began it, so epochs only grow, across restarts
// of every process. What is kept, per group, under /understudy/<group>/:
//
//	id               what the group was created with     no lease   Create (AddInSync and RemoveInSync put it
//	                                                                again as it is, see AddInSync)
//	primary          who is primary; its ModRevision     no lease   Create, Elect
//	                 is the epoch
//	insync/<name>    who may be elected                  no lease   Create, Elect, AddInSync, RemoveInSync
//	replicas/<name>  who is alive, and where             lease      Register
//
// A replica registers, then either creates the group or waits to be taken in sync by its primary;
// when the primary is gone, those in sync stand for election:
//
//	e := election.NewEtcd(client, "greeter")
//	self, err := e.Register(ctx, me, election.Member{})
//	epoch, err := e.Create(ctx, group, self)        // ErrExists: somebody else did
//	state, err := e.Read(ctx)
//	epoch, err = e.Elect(ctx, self, state.Epoch)    // ErrLost: somebody else was faster
//
// An etcd client asks its members in turn, and one of them may accept what it is asked and never
// answer. So NewEtcd asks again what isn't answered within 100 ms, transactions too: of their
// copies at most one takes place, and where it isn't known which, the outcome is unknown as ever.
//
// A lease is only a hint of who is alive: being primary rests on the epoch that every message
// carries, and on reading `primary` anew, never on a lease.
//
// Two implementations keep one contract, which package electiontest checks: NewEtcd, and package
// memory for tests in virtual time.
package election

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Member is one incarnation of one replica: a name outlives processes, each start is a new
// incarnation. The zero Member means nobody.
type Member struct {
	// Name is what ValidName accepts.
	Name string
	// Incarnation tells the starts of one name apart. Chosen at random at each start; never 0.
	Incarnation uint64
}

// IsZero reports whether m is nobody.
func (m Member) IsZero() bool { return m == Member{} }

// String returns name#incarnation, with the incarnation in hexadecimal as it stands in the store.
func (m Member) String() string {
	if m.IsZero() {
		return "nobody"
	}
	return m.Name + "#" + strconv.FormatUint(m.Incarnation, 16)
}

// Validate returns an *InvalidError unless m can stand in the store.
func (m Member) Validate() error {
	if err := ValidName(m.Name); err != nil {
		return err
	}
	if m.Incarnation == 0 {
		return &InvalidError{Field: "incarnation", Reason: "is 0"}
	}
	return nil
}

// A Replica is a registered member and where it is reached.
type Replica struct {
	Member
	// Addr is the host:port that clients dial. Never empty.
	Addr string
	// PeerAddr is the host:port that other replicas dial.
	PeerAddr string
	// Host tells machines, and network namespaces, apart: a loopback address is the same place on
	// the same Host only. Empty: not known. At most 128 bytes.
	Host string
}

// Validate returns an *InvalidError unless r can be registered.
func (r Replica) Validate() error {
	if err := r.Member.Validate(); err != nil {
		return err
	}
	if r.Addr == "" {
		return &InvalidError{Field: "address", Reason: "is empty"}
	}
	if err := validText("address", r.Addr, maxAddr); err != nil {
		return err
	}
	if err := validText("host", r.Host, maxName); err != nil {
		return err
	}
	return validText("peer address", r.PeerAddr, maxAddr)
}

// A Group is what a group was created with. It never changes.
type Group struct {
	// ID is random and never 0. Another ID means another store, or one restored from nothing.
	ID uint64
	// Protocol is the number of the protocol that the group's members speak with each other and
	// with clients; 0: none is recorded.
	Protocol uint32
	// Level is the group's level of replication. At most 128 bytes.
	Level string
	// Version is the version of the service that created the group. At most 128 bytes.
	Version string
	// Replaces names the groups whose place this one has taken, by an operator's act and without
	// their state: their ids as in the store, the newest first, separated by commas; at most 16.
	// Empty for a group that is the first of its name.
	Replaces string
}

// maxReplaces bounds how many groups a group names that it replaces.
const maxReplaces = 16

// Replacing returns g as the group that takes the place of another one, known by its id and, if its
// record was found, by that.
func (g Group) Replacing(id uint64, record Group) Group {
	ids := []string{encodeHex(id)}
	if record.ID == id && record.Replaces != "" {
		ids = append(ids, strings.Split(record.Replaces, ",")...)
	}
	g.Replaces = strings.Join(ids[:min(len(ids), maxReplaces)], ",")
	return g
}

// HasReplaced reports whether g has taken the place of the group with this id.
func (g Group) HasReplaced(id uint64) bool {
	return g.Replaces != "" && slices.Contains(strings.Split(g.Replaces, ","), encodeHex(id))
}

// IsZero reports whether there is no group.
func (g Group) IsZero() bool { return g == Group{} }

// Validate returns an *InvalidError unless a group can be created with g.
func (g Group) Validate() error {
	if g.ID == 0 {
		return &InvalidError{Field: "group id", Reason: "is 0"}
	}
	if err := validText("level", g.Level, maxName); err != nil {
		return err
	}
	if err := validText("version", g.Version, maxName); err != nil || g.Replaces == "" {
		return err
	}
	replaces := strings.Split(g.Replaces, ",")
	if len(replaces) > maxReplaces {
		return &InvalidError{Field: "replaced groups",
			Reason: fmt.Sprintf("are %d, at most %d are allowed", len(replaces), maxReplaces)}
	}
	for _, id := range replaces {
		if n, err := decodeHex(id); err != nil || n == 0 || n == g.ID {
			return &InvalidError{Field: "replaced group", Reason: fmt.Sprintf("%.40q can't be one", id)}
		}
	}
	return nil
}

// A State is one linearizable view of a group, all of one revision. The caller owns it.
type State struct {
	// Revision is the store's revision of this view. A lower one than seen before means a store
	// that was replaced or restored.
	Revision int64
	// Group is zero when the group doesn't exist yet.
	Group Group
	// Primary is zero when there is none.
	Primary Member
	// Epoch is the ModRevision of `primary`; 0 when there is none.
	Epoch uint64
	// Fence is the ModRevision of `id`: it grows with each change of InSync by AddInSync or
	// RemoveInSync. 0 when there is no group.
	Fence int64
	// InSync are those who may be elected, and the primary itself, sorted by name.
	InSync []Member
	// Replicas are those alive under their lease, sorted by name.
	Replicas []Replica
	// Suspect says why the store isn't believed now: all else is what it said before. Nil: it is
	// believed. No election of this package's sets it: who remembers what it has read does.
	Suspect error
}

// IsDown reports whether there is a group, none of whose members that are in sync is alive.
func (s State) IsDown() bool {
	return !s.Group.IsZero() && !slices.ContainsFunc(s.InSync, func(m Member) bool {
		r, ok := s.Replica(m.Name)
		return ok && r.Member == m
	})
}

// IsInSync reports whether this incarnation of m is in sync.
func (s State) IsInSync(m Member) bool {
	for _, other := range s.InSync {
		if other == m {
			return true
		}
	}
	return false
}

// Replica returns the replica registered under name, whichever incarnation it is.
func (s State) Replica(name string) (Replica, bool) {
	for _, r := range s.Replicas {
		if r.Name == name {
			return r, true
		}
	}
	return Replica{}, false
}

// An Election is one group's place in the store, as one process sees it. Its methods may run
// concurrently.
//
// A store that is away never blocks a method past the end of its context; without a deadline a
// method may wait as long as the store is away. An error that satisfies IsUnknown says that the
// transaction may have taken place, or may still: see each method for what to do. Any other error
// says that it did not and will not.
type Election interface {
	// Read returns a linearizable view. A *MalformedError names the key that can't be understood;
	// malformed keys under replicas/ are left out of the view instead, with a log entry.
	Read(ctx context.Context) (State, error)

	// Primary is the linearizable read that R10 counts authority from: nobody else was primary when
	// the call began, if it returns this member. It reads one key and is cheap enough to be called
	// every 250 ms. Without a group it returns the zero Member, 0 and nil.
	Primary(ctx context.Context) (primary Member, epoch uint64, err error)

	// Register publishes r under a lease, which is kept alive until the registration is closed or
	// lost; ctx bounds only the call. It fails with a *NameTakenError while another incarnation
	// holds the name, unless that holder is displaces: then one transaction replaces it, and the
	// holder's registration is lost. (The caller has found displaces dead; a zero displaces
	// displaces nobody.) The same incarnation may register again, as after an unknown outcome: the
	// newest registration counts.
	Register(ctx context.Context, r Replica, displaces Member) (Registration, error)

	// Create makes the group in one transaction: `id`, `primary` = self, `insync/<self>`. It
	// returns the epoch, which is the transaction's revision. ErrExists when there is a group,
	// unless g.Replaces begins with its id: then g takes its place, and nobody of it stays in sync;
	// ErrAlive while one of them is registered. ErrNotRegistered when self is not alive under its
	// lease. After an unknown outcome, Read: if State.Group is g, the group was made.
	Create(ctx context.Context, g Group, self Registration) (epoch uint64, err error)

	// Elect is R8: in one transaction, if `primary` still has ModRevision seen, insync/<self> holds
	// this incarnation, and replicas/<self> is alive under this registration's lease, it puts
	// `primary` = self and deletes insync/<former primary>. It returns the new epoch, which is the
	// transaction's revision.
	//
	// ErrLost: `primary` has changed since it was seen. ErrNotInSync: self may not be elected.
	// ErrNotRegistered: self is not alive under its lease (which comes back by itself; see
	// Registration). ErrPrimary: self already is the primary.
	//
	// After an unknown outcome, Read: State.Primary is self, in an epoch above seen, if and only if
	// the transaction took place (and nobody was elected since). While it isn't, the transaction
	// may still take place, unless Elect with the same seen is called again: then at most one of
	// them does, and ErrLost says to Read.
	Elect(ctx context.Context, self Registration, seen uint64) (epoch uint64, err error)

	// AddInSync is half of R13: it puts insync/<m>, if `primary` still has ModRevision epoch (else
	// ErrDeposed) and replicas/<m> is registered with that incarnation (else ErrNotRegistered).
	// Another incarnation of the same name is replaced. Adding a member that is there is nil.
	//
	// After an unknown outcome m may be in sync, now or later, until the next AddInSync or
	// RemoveInSync of any member returns nil: from then on the unknown transaction can't take place
	// any more. So count m as in sync until RemoveInSync(m) has returned nil.
	AddInSync(ctx context.Context, epoch uint64, m Member) error

	// RemoveInSync is the other half of R13: it deletes insync/<m>, if `primary` still has
	// ModRevision epoch (else ErrDeposed). Only that incarnation is removed; removing an absent one
	// is nil. The primary can't remove itself (ErrPrimary). After an unknown outcome m counts as in
	// sync, see AddInSync.
	RemoveInSync(ctx context.Context, epoch uint64, m Member) error

	// Watch sends a State for every change until ctx ends, then closes the channel. The first State
	// comes at once (without a group too). States are coalesced: a slow receiver misses some in
	// between, never the newest. Watch survives compaction and loss of the connection: it lists
	// again. While the store is away, or holds a malformed key, nothing comes; a State therefore
	// says what was, not what is. Revisions go back only if the store's did.
	Watch(ctx context.Context) <-chan State
}

// A Registration is one replica's entry among those alive. Its methods may run concurrently.
//
// A lease that merely expired (store away, process paused) is replaced by registering the same
// incarnation under a new lease, by itself, with backoff. Meanwhile Create and Elect return
// ErrNotRegistered.
type Registration interface {
	// Replica returns what was registered.
	Replica() Replica
	// Lost is closed when this registration can't come back: another incarnation took the name
	// after it, or it was closed. One that a restored store has under the name from before doesn't
	// count: this one waits for its lease's end.
	Lost() <-chan struct{}
	// Err says why it is lost: a *NameTakenError, or ErrClosed. It is nil while Lost is open.
	Err() error
	// Close withdraws the registration (it revokes the lease) within ctx, and stops its goroutines
	// even if ctx has ended. A lease that could not be revoked expires by itself; the error then
	// says so. Closing twice is nil.
	Close(ctx context.Context) error
}

// Errors of an Election. Test with errors.Is.
var (
	// ErrExists: the group was created before.
	ErrExists = errors.New("election: the group exists")
	// ErrLost: somebody else was elected since the epoch that was seen.
	ErrLost = errors.New("election: the primary has changed since it was seen")
	// ErrNotInSync: this incarnation may not be elected.
	ErrNotInSync = errors.New("election: not in sync")
	// ErrNotRegistered: this incarnation isn't alive under its lease now.
	ErrNotRegistered = errors.New("election: not registered")
	// ErrDeposed: the epoch in whose name a change was asked for is over.
	ErrDeposed = errors.New("election: deposed, the epoch is over")
	// ErrPrimary: that can't be done by, or to, the primary itself.
	ErrPrimary = errors.New("election: is the primary")
	// ErrAlive: a group can't be replaced while one of its members that are in sync is registered.
	ErrAlive = errors.New("election: the group is alive: somebody in sync is registered")
	// ErrClosed: the registration was closed.
	ErrClosed = errors.New("election: registration closed")
)

// A NameTakenError says that another incarnation holds the name.
type NameTakenError struct {
	Holder Replica

	since int64 // the ModRevision of the holder's key in etcd
}

func (e *NameTakenError) Error() string {
	return fmt.Sprintf("election: the name %q is taken by %v at %q", e.Holder.Name, e.Holder.Member, e.Holder.Addr)
}

// An UnknownError says that a transaction may have taken place, or may still.
type UnknownError struct {
	// Op is the method that failed, in lower case.
	Op  string
	Err error
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("election: %s: outcome unknown: %v", e.Op, e.Err)
}

// Unwrap returns the cause: a deadline, a lost connection.
func (e *UnknownError) Unwrap() error { return e.Err }

// IsUnknown reports whether err leaves open if the transaction took place.
func IsUnknown(err error) bool {
	var unknown *UnknownError
	return errors.As(err, &unknown)
}

// A MalformedError names a key of the store whose value can't be understood.
type MalformedError struct {
	Key    string
	Reason string
}

func (e *MalformedError) Error() string {
	return fmt.Sprintf("election: malformed key %q: %s", e.Key, e.Reason)
}

// An InvalidError names an argument that the store can't hold. Nothing was sent.
type InvalidError struct {
	Field  string
	Reason string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("election: invalid %s: %s", e.Field, e.Reason)
}

// What the store holds is bounded, so that reading it is.
const (
	maxName = 128 // bytes of a name
	maxAddr = 512 // bytes of an address
)

// ValidName returns an *InvalidError unless name may be that of a replica or of a group: 1 to 128
// bytes of printable UTF-8 without '/', and without '?', '#' and '%', which mean something else in
// the target that ends with the name.
func ValidName(name string) error {
	if name == "" {
		return &InvalidError{Field: "name", Reason: "is empty"}
	}
	if err := validText("name", name, maxName); err != nil {
		return err
	}
	if i := strings.IndexAny(name, "/?#%"); i >= 0 {
		return &InvalidError{Field: "name", Reason: fmt.Sprintf("contains %q", name[i])}
	}
	return nil
}

// validText checks a field that is printed, logged and stored.
func validText(field, s string, limit int) error {
	if len(s) > limit {
		return &InvalidError{Field: field, Reason: fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), limit)}
	}
	if !utf8.ValidString(s) {
		return &InvalidError{Field: field, Reason: "is not UTF-8"}
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return &InvalidError{Field: field, Reason: fmt.Sprintf("contains the unprintable %q", r)}
		}
	}
	return nil
}
