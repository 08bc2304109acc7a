package replica

import "time"

// Role is what a replica does in its group.
type Role string

// The roles, in the order in which a replica may come to them.
const (
	// Joining waits for a primary, and for the group's state.
	Joining Role = "joining"
	// Following has a state, and does what its primary has ordered.
	Following Role = "following"
	// TakingOver was elected, and asks the others what they have seen of the former primary.
	TakingOver Role = "taking over"
	// Leading orders the group's calls, and answers them.
	Leading Role = "leading"
	// Ended has lost its role, and will join anew, or Serve has ended.
	Ended Role = "ended"
)

// Failover reports a takeover by this replica. The times are of this replica's wall clock.
type Failover struct {
	Group, From, To string
	Epoch           uint64
	Suspected       time.Time // the old primary was suspected
	Elected         time.Time // this replica was elected
	Opened          time.Time // its gate opened: calls are executed again
	PeersAnswered   int
	SessionsAwaited int
	SessionsGivenUp int
	FirstOrderNum   uint64
}

// Status is what a replica says of itself.
type Status struct {
	Role     Role
	Name     string
	Primary  string // as this replica knows it
	Epoch    uint64 // acknowledged
	InSync   []string
	Executed uint64 // every turn up to here is in the state
	Stable   uint64 // every in-sync replica holds order and messages up to here, as far as this replica knows
	Suspect  string // why the store isn't believed: calls wait, and the state is kept; empty: it is believed
	// JoinFailure is why the last attempt to join the group has failed; empty once this replica is
	// in-sync. It tries again, after up to 12.8 s.
	JoinFailure string
	// at the primary: how many backups can't hear one session, summed over the sessions; replies to
	// these wait for these backups
	Detached int
	// Counters since the process started.
	Turns, Duplicates, Refused, Forged, Dropped uint64
}
