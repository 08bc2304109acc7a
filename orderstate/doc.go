// Package orderstate is the protocol's state, as values that are given events and return what to
// do. If the code here is right, and its callers do what it says in the order in which it says it,
// no message is lost, executed twice, or executed in two orders. It has what the patent draws in
// FIG. 7 to 10, and what a takeover needs. The words and the rules (R1 to R13) are explained in
// docs/concepts.md.
//
// There is one type per role:
//
//	Source    a client, or a group that calls another one     FIG. 8 and 9 at the first object
//	Primary   orders messages and announces the order         FIG. 7, 8 and 9
//	Backup    follows the order                               FIG. 10
//	Takeover  a backup that was elected, until its epoch starts     R12
//
// Promotion hands one [History] from role to role: Backup → Takeover → Primary, and a [Tail] has
// what is still to be executed then. An event returns what it has moved: [Moved] is what its caller
// owes.
//
// Where a rule decides, the code asks without(rule) as well. That is false: in builds for make
// mutants alone one rule of rules.go is taken away, to see that exploration misses it. A first
// reader may pass over it.
//
// Nothing here has a goroutine, a clock, a lock or a channel, and nothing reads or writes the
// network: callers serialise their calls on one value. So the same code can be explored
// exhaustively, fuzzed, and run in production. What only explorers and tests call: AppendTo, Clone
// and Valid of each role, [History.Above] and [Source.PendingRemoteOrder].
package orderstate
