// Package machine runs a replicated application on one replica: it executes what is ordered, one
// turn at a time, keeps what each turn has said, and gives and takes snapshots at a turn's
// boundary. It executes what it is told to; it knows nothing of roles, epochs or other replicas.
//
// An [App] is the application of the process: its methods, its state, and the turns, which outlive
// a [Machine]. A Machine is the application in one life of the replica: what its turns have said,
// and how far it has executed. Whoever has a turn ([Machine.Take]) does one thing in it:
//
//	Execute     a message that was just ordered here (FIG. 7)
//	Own         an entry of the group's own, which executes no handler
//	Snapshot    the state is given
//	Restore     the state is replaced
//
// and ends it ([Machine.End]). [Machine.Replay] takes a turn by itself for many messages, and
// [Machine.Read] reads between turns.
//
// A Machine's mutex is a leaf: nothing is called while it is held.
package machine
