//go:build mutants

package explore

import (
	"fmt"

	"github.com/understudy-rpc/understudy/orderstate"
)

// Mutant is a rule that can be taken away, and where that shows.
type Mutant struct {
	Rule string
	// Scope is the name of one of Scopes.
	Scope string
	// Unseen says why nothing is to be seen, where the rule is a second line behind others.
	Unseen string
}

// Mutants has a row for each rule that can be taken away.
var Mutants = mutants()

func mutants() []Mutant {
	var ms []Mutant
	for _, seen := range seen {
		ms = append(ms, Mutant{Rule: seen[0], Scope: seen[1]})
	}
	return append(ms, unseen...)
}

// unseen is what was explored without, and wasn't missed.
var unseen = []Mutant{
	{
		"R3: acknowledgements count in their epoch", "again",
		"a backup acknowledges to who leads its epoch, on that one's stream",
	},
	{
		"R11: a stream begins with none attached", "detached3",
		"a backup keeps what it waits for, and what was on an old stream never arrives after what is on the new one " +
			"here; that is the runtime's to ensure",
	},
	{
		"R12.4", "detached5",
		"replies wait for a peer that hasn't said, in this epoch, that it hears their session, or holds what they " +
			"depend on (R11); and until a peer holds what is below the epoch, its takeover waits for all",
	},
	{
		"R12.3: the highest epoch wins", "partition",
		"an entry brings where its epoch starts, so that the table has made the other one void already",
	},
}

// seen is each rule with the scope that shows it to be needed.
var seen = [][2]string{
	{"R1", "headers"},
	{"R1b", "stable1"},
	{"R1b: acknowledgements count in their epoch", "joinagain"},
	{"R1b: a change of the required set is pushed", "evict"},
	{"R2: what was sent isn't held", "replies"},
	{"R2: held is 0 in a new epoch", "stable1"},
	{"FIG. 8: what is reflected stays", "streams1"},
	{"R3: one source's reflection isn't enough", "replies"},
	{"R3: every in-sync backup", "again"},
	{"R3: held with the message", "nulls"},
	{"R4", "nulls"},
	{"R7: Rand is seeded by the epoch of the first order", "again"},
	{"R8: the former primary leaves in-sync", "partition"},
	{"R9: a source accepts no reply from below its epoch", "partition"},
	{"R9: a backup accepts nothing from below its epoch", "partition"},
	{"R9: what is void is dropped", "partition"},
	{"I5: lost by any later epoch", "skipped"},
	{"I5: stable means in every later epoch", "oldstore"},
	{"I5: a backup refuses an epoch that lacks what is stable", "oldstore"},
	{"R10", "reads"},
	{"R11: reads wait for the deaf", "readsdeaf"},
	{"R12.4: calls wait at Stable, as reads do", "readsstable"},
	{"R11: detached when confirmed", "detached"},
	{"R11: the confirmation follows what replies depend on", "detached"},
	{"R11: replies wait for the deaf", "detached"},
	{"R11: a confirmation has a number", "detached3"},
	{"R11: a session begins detached", "detached"},
	{"R11: an epoch begins with none attached", "detached6"},
	{"R11: who is attached is waited for", "detached"},
	{"R11: what is below the epoch is held", "detached5"},
	{"R12.1: nothing is executed between the answer and the start", "deaths"},
	{"R12.1: nothing is acknowledged between the answer and the start", "again"},
	{"R12.2: every in-sync peer answers", "again"},
	{"R12.2: every session answers", "takeover3"},
	{"R12.2: who is named by what is lacked answers", "detached2"},
	{"R12.3: (stable, N] is pending", "again"},
	{"R12.3: the table says what is void", "partition"},
	{"R13: a joiner is counted before it is in-sync", "join"},
	{"R13: a joiner holds all that is ordered before it is in-sync", "join"},
	{"R13: its snapshot is stable before a joiner is in-sync", "join"},
	{"R13: etcd first, when a replica is evicted", "evict"},
}

// Caught is what became of a mutant.
type Caught struct {
	Mutant
	Result
}

// AsSaid says whether it was caught, or wasn't for a known reason.
func (c Caught) AsSaid() bool { return (c.Broken != nil) == (c.Unseen == "") }

func (c Caught) String() string {
	line := fmt.Sprintf("%-64s %-9s %8d states  ", c.Rule, c.Mutant.Scope, c.States)
	switch {
	case c.Broken != nil:
		return line + fmt.Sprintf("%2d steps: %v", c.Depth+1, c.Broken)
	case c.Unseen != "":
		return line + "not missed: " + c.Unseen
	default:
		return line + "NOT CAUGHT"
	}
}

// Catch takes a rule away, and explores.
func (m Mutant) Catch(limits Limits) Caught {
	orderstate.Without = m.Rule
	for _, s := range Scopes {
		if s.Name == m.Scope {
			return Caught{m, Search(s, limits)}
		}
	}
	panic("no scope " + m.Scope)
}
