package explore

import "github.com/understudy-rpc/understudy/orderstate"

// Scope bounds a group, and says what may happen to it.
type Scope struct {
	Name string
	// Why says what the scope is to find.
	Why      string
	Level    Level
	Replicas int
	Sources  int
	// Calls is how many each source issues, of which at most Outstanding wait for their replies.
	Calls       [maxSources]int
	Outstanding int
	// Header is how many announcements a reply carries at most (R5): the rest goes on the session's
	// stream. 0 is no bound.
	Header int
	// Reads is how many read-only calls each source issues, one at a time.
	Reads int
	// Max is pendingSourceOrderMax.
	Max int
	// Begin is what has happened already, as a trace says it: from there on all is explored.
	Begin []string
	// Epochs is how many there may be.
	Epochs orderstate.Epoch
	// What may befall the group, and how often.
	Faults Faults
	// Absent is how many of the replicas are yet to join.
	Absent int
	// Bound is how many states make explore visits, where it can't visit all; 0 is no bound.
	Bound int
	// Truncate: the history is cut wherever it may be.
	Truncate bool
	// Attaching: sessions begin detached, and who hears one says so (R11). Else each is attached in
	// the step in which it might be said.
	Attaching bool
}

// Level is section 3's knob.
type Level uint8

const (
	Reflected Level = iota
	Direct
	Stable
)

func (l Level) String() string { return [...]string{"reflected", "direct", "stable"}[l] }

// Faults is how often each may happen.
type Faults struct {
	// Crashes are of replicas, Deaths of sources.
	Crashes, Deaths int
	// Losses are of a call's request or reply; the call is issued again.
	Losses int
	// Cuts are of a stream, with what was on it.
	Cuts int
	// Breaks leave a source and a backup that can't hear each other, till that mends.
	Breaks int
	// Depositions are elections while the primary lives.
	Depositions int
	// Evictions are of replicas that live.
	Evictions int
	// Skips are of sessions that live: a takeover waits no longer for them.
	Skips int
	// Restores are of the store, to before an eviction: who was evicted, lives and doesn't know it
	// is in-sync again.
	Restores int
}

// Scopes is what make explore visits. What had only been argued before comes first: detaching, null
// messages, the taking over of (stable, N].
var Scopes = []Scope{
	{
		Name: "detached", Why: "R11: a source and a backup can't hear each other, and the primary dies",
		Level: Reflected, Replicas: 2, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Max: 8, Epochs: 2,
		Attaching: true,
		Faults:    Faults{Crashes: 1, Breaks: 1},
	},
	{
		Name: "detached2", Why: "R11: another source's reply depends on a message that the backup can't hear",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Max: 8, Epochs: 2,
		Attaching: true,
		Faults:    Faults{Crashes: 1, Breaks: 1},
	},
	{
		Name: "detached3", Why: "R11: detached, attached, detached again, and cut while they say so",
		Level: Reflected, Replicas: 2, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Max: 8, Epochs: 2,
		Attaching: true,
		Faults:    Faults{Crashes: 1, Breaks: 2, Cuts: 1},
	},
	{
		Name: "detached4", Why: "R11: a peer that hears, and two takeovers",
		Level: Reflected, Replicas: 3, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Max: 8, Epochs: 3,
		Attaching: true,
		Faults:    Faults{Crashes: 1, Breaks: 1, Depositions: 1}, Bound: 1e6,
	},
	{
		Name: "detached5", Why: "R11, R12.4: the marks of one epoch in the next",
		Level: Reflected, Replicas: 3, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Max: 8, Epochs: 3,
		Attaching: true,
		Faults:    Faults{Crashes: 2, Breaks: 1}, Bound: 3e6,
	},
	{
		Name: "detached6", Why: "R11: an epoch has just started, and the other backup can't hear the source",
		Level: Reflected, Replicas: 3, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Max: 8, Epochs: 3,
		Attaching: true,
		Faults:    Faults{Crashes: 2, Breaks: 1},
		Begin: []string{"S3 can't hear C1", "S1 dies", "S2 is elected", "S2→S3", "S3→S2", "S2→C1", "C1→S2",
			"C1→S2"},
	},
	{
		Name: "detached7", Why: "R11, R13: who joins hears the source before it is counted in-sync, or after",
		Level: Reflected, Replicas: 3, Absent: 1, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Max: 8, Epochs: 2,
		Attaching: true,
		Faults:    Faults{Crashes: 1, Breaks: 1}, Bound: 1e6,
	},
	{
		Name: "nulls", Why: "R4: null messages, and what a dead source leaves",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Max: 1, Epochs: 2,
		Faults: Faults{Crashes: 1, Deaths: 1, Cuts: 1},
	},
	{
		Name: "again", Why: "R12.3: who takes over takes (stable, N] into its pendingSourceOrder, and dies",
		Level: Reflected, Replicas: 3, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Max: 8, Epochs: 3,
		Faults: Faults{Crashes: 2},
	},
	{
		Name: "takeover", Why: "R1-R3, R12: a source and the primary die",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{2, 2}, Outstanding: 1, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1, Deaths: 1}, Bound: 1e6,
	},
	{
		Name: "takeover3", Why: "R12: three replicas",
		Level: Reflected, Replicas: 3, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1},
	},
	{
		Name: "replies", Why: "R1, R2: replies are lost, and overtake each other",
		Level: Reflected, Replicas: 2, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1, Losses: 1},
	},
	{
		Name: "headers", Why: "R5, R1: what doesn't fit a header goes on the session's stream, and is overtaken",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Header: 1, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1},
	},
	{
		Name: "streams1", Why: "FIG. 8: a second call reflects what the first brought",
		Level: Reflected, Replicas: 2, Sources: 1, Calls: [2]int{2}, Outstanding: 1, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1, Cuts: 2},
	},
	{
		Name: "deaths", Why: "R12.1: what a dead source has sent arrives late, and not everywhere",
		Level: Reflected, Replicas: 3, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1, Deaths: 1}, Bound: 1e6,
	},
	{
		Name: "reads", Why: "R10: what was accepted is read, though the old primary lives on, and a session is skipped",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{0, 1}, Outstanding: 1, Reads: 1, Max: 8, Epochs: 2,
		Faults: Faults{Depositions: 1, Skips: 1},
	},
	{
		Name: "readsstable", Why: "R10: the same at Stable, where a takeover doesn't wait for sessions",
		Level: Stable, Replicas: 2, Sources: 2, Calls: [2]int{0, 1}, Outstanding: 1, Reads: 1, Epochs: 2,
		Faults: Faults{Depositions: 1},
	},
	{
		Name: "readsdeaf", Why: "R10, R11: the same, of a session that the new primary can't hear",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{0, 1}, Outstanding: 1, Reads: 1, Max: 8, Epochs: 2,
		Attaching: true,
		Faults:    Faults{Depositions: 1, Breaks: 1},
		Begin:     []string{"S2 can't hear C1"},
	},
	{
		Name: "skipped", Why: "I5: a session sleeps through an epoch in which its reply was lost",
		Level: Reflected, Replicas: 3, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Max: 8, Epochs: 3,
		Faults: Faults{Crashes: 2, Skips: 1},
		Begin: []string{
			"C1 calls", "RPC c1.1", "RPC c1.1", "S1 dies", "S2 is elected", "S2→S3", "S3→S2", "S2→C2", "C2→S2",
			"S2 gives C1 up",
			"S2→S3", "S3→S2", "S2→C2",
		},
	},
	{
		Name: "streams", Why: "FIG. 8, R3: streams are cut with what was on them",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1, Cuts: 1},
	},
	{
		Name: "partition", Why: "R8, R9: the old primary lives on, and a session is skipped",
		Level: Reflected, Replicas: 3, Sources: 1, Calls: [2]int{2}, Outstanding: 1, Max: 8, Epochs: 3,
		Faults: Faults{Depositions: 2, Skips: 1}, Bound: 1e6,
	},
	{
		Name: "direct", Why: "the primary multicasts to its backups",
		Level: Direct, Replicas: 3, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Epochs: 3,
		Faults: Faults{Crashes: 2, Deaths: 1, Cuts: 1},
	},
	{
		Name: "stable1", Why: "R1b: two crashes, one source",
		Level: Stable, Replicas: 3, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Epochs: 3,
		Faults: Faults{Crashes: 2, Cuts: 1},
	},
	{
		Name: "fig9", Why: "R3: a source reflects, and dies with its frames; the primary dies",
		Level: Reflected, Replicas: 2, Sources: 2, Calls: [2]int{2, 1}, Outstanding: 2, Max: 8, Epochs: 2,
		Faults: Faults{Crashes: 1, Deaths: 1, Losses: 1}, Bound: 1e6,
	},
	{
		Name: "stable", Why: "R1b: three crashes, a source's among them",
		Level: Stable, Replicas: 3, Sources: 2, Calls: [2]int{1, 1}, Outstanding: 1, Epochs: 3,
		Faults: Faults{Crashes: 2, Deaths: 1}, Bound: 1e6,
	},
	{
		Name: "stableold", Why: "R1b, R9: the old primary lives on",
		Level: Stable, Replicas: 3, Sources: 1, Calls: [2]int{1}, Outstanding: 1, Epochs: 3,
		Faults: Faults{Crashes: 1, Depositions: 2, Cuts: 1}, Bound: 1e6,
	},
	{
		Name: "evict", Why: "R13: shrink",
		Level: Stable, Replicas: 3, Sources: 1, Calls: [2]int{2}, Outstanding: 1, Epochs: 3,
		Faults: Faults{Crashes: 1, Depositions: 1, Evictions: 1}, Bound: 1e6,
	},
	{
		Name: "oldstore", Why: "I5: a store that was restored elects who was evicted: what was stable is gone, and " +
			"whoever knew it is told",
		Level: Stable, Replicas: 3, Sources: 1, Calls: [2]int{2}, Outstanding: 1, Epochs: 3,
		Faults: Faults{Crashes: 2, Evictions: 1, Restores: 1}, Bound: 1e6,
		Begin: []string{"S1 evicts S3"},
	},
	{
		Name: "join", Why: "R13: grow, while the history is cut",
		Level: Stable, Replicas: 3, Absent: 1, Sources: 1, Calls: [2]int{2}, Outstanding: 1, Epochs: 3, Truncate: true,
		Faults: Faults{Crashes: 2}, Bound: 1e6,
	},
	{
		Name: "joinagain", Why: "R1b, R13: a transfer starts again in the next epoch, and who joins had " +
			"acknowledged in the one before",
		Level: Stable, Replicas: 3, Absent: 1, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Epochs: 2,
		Faults: Faults{Crashes: 1}, Bound: 1e6,
		Begin: []string{"S3 joins with S1's snapshot", "C1 calls", "C1 calls", "RPC c1.1", "RPC c1.2"},
	},
	{
		Name: "joinlow", Why: "R13: grow below Stable",
		Level: Reflected, Replicas: 3, Absent: 1, Sources: 1, Calls: [2]int{2}, Outstanding: 2, Max: 8, Epochs: 3,
		Truncate: true,
		Faults:   Faults{Crashes: 2}, Bound: 1e6,
	},
}
